"""What an encoder has learned: frozen features, attentive probes, baselines and the supervised ceiling."""

from nextvid.evaluation.benchmark import Measurement, measure, prepare

__all__ = ["Measurement", "measure", "prepare"]
