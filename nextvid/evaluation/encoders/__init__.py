"""Frozen encoders to be read: ours, transformers' from their folders, and anyone's function, all behind one interface."""

from nextvid.evaluation.encoders.frozen import FrozenEncoder
from nextvid.evaluation.encoders.function import FunctionEncoder
from nextvid.evaluation.encoders.opening import open_encoder
from nextvid.evaluation.encoders.own import OwnEncoder

__all__ = ["FrozenEncoder", "FunctionEncoder", "OwnEncoder", "open_encoder"]
