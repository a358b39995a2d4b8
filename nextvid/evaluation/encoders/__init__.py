"""Frozen encoders to be read: ours, transformers' from their folders, and anyone's function, all behind one interface."""

from nextvid.evaluation.encoders.frozen import FrozenEncoder

__all__ = ["FrozenEncoder"]
