"""Other ways to read a frozen encoder than the attentive probe: with labels, with few, and with none."""

from nextvid.evaluation.readers.arrow import Arrow, arrow_of_time
from nextvid.evaluation.readers.few_shot import FewShot, few_shot
from nextvid.evaluation.readers.linear import linear_probe
from nextvid.evaluation.readers.neighbours import nearest_neighbours
from nextvid.evaluation.readers.order import Order, clip_order
from nextvid.evaluation.readers.pooled import Pooled, Reading, pool
from nextvid.evaluation.readers.retrieval import Retrieval, retrieve

__all__ = [
    "Arrow",
    "FewShot",
    "Order",
    "Pooled",
    "Reading",
    "Retrieval",
    "arrow_of_time",
    "clip_order",
    "few_shot",
    "linear_probe",
    "nearest_neighbours",
    "pool",
    "retrieve",
]
