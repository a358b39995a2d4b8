"""``nextvid generate``: what a trained model draws after a video or a picture, as films, a contact sheet and figures."""

from nextvid.generation.command import generate
from nextvid.generation.request import Request

__all__ = ["Request", "generate"]
