"""Models of transformers, from the folders that ``save_pretrained`` wrote."""

import importlib.util
from pathlib import Path

from nextvid.errors import UserError, nearest
from nextvid.evaluation.encoders.frozen import FrozenEncoder
from nextvid.evaluation.encoders.images import ImageEncoder
from nextvid.evaluation.encoders.preprocessing import read_preprocessing, read_settings
from nextvid.evaluation.encoders.videos import ARCHITECTURES, VideoEncoder

IMAGES = (
    "clip",
    "clip_vision_model",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "ijepa",
    "siglip",
    "siglip_vision_model",
    "siglip2",
    "siglip2_vision_model",
    "vit",
)


def open_folder(folder: Path) -> FrozenEncoder:
    """The video or image model in ``folder``; none of the code that may lie there is run, and no pickle is read.

    Raises ``UserError`` where there is no model, one that is not known, incomplete weights, or no word on its pixels.
    """
    kind = _model_type(folder)
    known = [*ARCHITECTURES, *IMAGES]
    if kind not in known:
        raise UserError(
            f"{folder} holds a model of the type '{kind}'{nearest(kind, known)}, whose tokens are not known here; known are the "
            f"video models {', '.join(ARCHITECTURES)} and the image models {', '.join(IMAGES)}. Write a module:function for it"
        )
    if importlib.util.find_spec("transformers") is None:
        raise UserError(f"{folder} needs transformers: pip install 'nextvid[encoders]'")
    preprocessing = read_preprocessing(folder)
    if kind in ARCHITECTURES:
        return VideoEncoder(folder, ARCHITECTURES[kind], preprocessing)
    return ImageEncoder(folder, preprocessing)


def _model_type(folder: Path) -> str:
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(
            f"there is no model at {folder} (no config.json): give the folder of a model that save_pretrained of transformers "
            "wrote; none is downloaded by name"
        )
    found = read_settings(file).get("model_type")
    if not isinstance(found, str):
        raise UserError(f"{file} names no model_type, so it is no model of transformers: give the folder of one")
    return found
