"""The pixels that a model of transformers was trained on, from the file that its processor left beside the weights."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from nextvid.errors import UserError

Bytes = UInt8[Tensor, "batch frames 3 height width"]
Pixels = Float[Tensor, "batch frames 3 size size"]
FILES = ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json")
RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, which the files use."""
BILINEAR = 2


@dataclass(frozen=True)
class Preprocessing:
    """Bytes to what the model is given: ``(resized(bytes) * scale - offset - mean) / std``.

    ``size``: pixels a side of the square that the model sees. ``resize``: how clips of another size come to it. ``file``: where
    all this was read.
    """

    size: int
    scale: float
    offset: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str
    file: str

    def __call__(self, frames: Bytes, size: int) -> Pixels:
        """Pixels of ``frames``, resized to ``size`` where they have another size."""
        mean, std = (torch.tensor(values, device=frames.device)[:, None, None] for values in (self.mean, self.std))
        return (resized(frames, size, self.resize) * self.scale - self.offset - mean) / std

    def record(self, size: int) -> dict[str, Any]:
        """In plain values, for a file."""
        return {
            "size": size,
            "resize": described(self.resize),
            "scale": self.scale,
            "offset": self.offset,
            "mean": list(self.mean),
            "std": list(self.std),
            "read_from": self.file,
        }


def described(resize: str) -> str:
    """How clips of another size than the encoder's come to it, in words."""
    return f"clips of another size: {resize}" + ("" if resize == "nearest" else ", antialiased")


def resized(frames: Bytes, size: int, mode: str = "bilinear") -> Pixels:
    """``frames`` at ``size`` x ``size`` as floats of 0 to 255, rounded to whole ones as the processors of transformers do."""
    if frames.shape[-2:] == (size, size):
        return frames.float()
    antialias = mode != "nearest"
    images = interpolate(frames.flatten(0, 1).float(), (size, size), mode=mode, antialias=antialias)
    return images.round_().clamp_(0, 255).unflatten(0, frames.shape[:2])


def read_preprocessing(folder: Path) -> Preprocessing:
    """From a processor's file in ``folder``. Raises ``UserError`` where it is missing or says too little; nothing is guessed."""
    fields, file = _fields(folder)
    normalise = bool(fields.get("do_normalize", True))
    rescale = bool(fields.get("do_rescale", True))
    resample = fields.get("resample", BILINEAR)
    if resample not in RESAMPLING:
        raise UserError(
            f"{file} asks for resampling {resample!r}, which is not known here: set resample to 2 (bilinear) or 3 (bicubic)"
        )
    return Preprocessing(
        size=_size(fields, file),
        scale=_number(fields.get("rescale_factor", 1 / 255), "rescale_factor", file) if rescale else 1.0,
        offset=float(rescale and bool(fields.get("offset", _is_vivit(fields)))),
        mean=_statistics(fields, "image_mean", file) if normalise else (0.0, 0.0, 0.0),
        std=_statistics(fields, "image_std", file) if normalise else (1.0, 1.0, 1.0),
        resize=RESAMPLING[resample],
        file=file.name,
    )


def _is_vivit(fields: dict[str, Any]) -> bool:
    """ViViT's processors subtract one after rescaling, unless told otherwise."""
    return any(str(fields.get(f"{kind}_processor_type", "")).startswith("Vivit") for kind in ("image", "video"))


def read_settings(file: Path) -> dict[str, Any]:
    """What a JSON file of a model says; nothing where there is none. Raises ``UserError`` where it cannot be read."""
    try:
        found: Any = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError as error:
        raise UserError(f"{file} cannot be read as JSON ({error}): fetch it again from where the model came") from error
    if not isinstance(found, dict):
        raise UserError(
            f"{file} holds no settings, but a {type(found).__name__}: fetch it again from where the model came"
        )
    return found


def _fields(folder: Path) -> tuple[dict[str, Any], Path]:
    for name in FILES:
        file = folder / name
        found = read_settings(file)
        if name == "processor_config.json":
            found = found.get("video_processor") or found.get("image_processor") or {}
        if found:
            return found, file
    raise UserError(
        f"{folder} says nothing of the pixels that its model was trained on: there is none of {', '.join(FILES)}, and mean and "
        "deviation are not guessed. Put the file there that came with the model (or write it with its processor's "
        "save_pretrained)"
    )


def _size(fields: dict[str, Any], file: Path) -> int:
    """The side of the square that is left in the end: the crop's, or what pictures are resized to."""
    found = (fields.get("crop_size") if fields.get("do_center_crop", True) else None) or fields.get("size")
    if found is None and fields.get("max_num_patches") and fields.get("patch_size"):
        found = math.isqrt(fields["max_num_patches"]) * fields["patch_size"]
    if isinstance(found, dict):
        sides = {found[key] for key in ("height", "width", "shortest_edge") if found.get(key) is not None}
        found = sides.pop() if len(sides) == 1 else found
    if not isinstance(found, int) or found < 1:
        said = "no size" if found is None else f"the size {found}, which is that of no square"
        raise UserError(f"{file} has {said}: set size (or, with do_center_crop, crop_size) to one number of pixels")
    return found


def _statistics(fields: dict[str, Any], key: str, file: Path) -> tuple[float, float, float]:
    if key not in fields or fields[key] is None:
        raise UserError(
            f"{file} has no {key}, and it is not guessed: write in the three numbers that the model was trained with (or "
            '"do_normalize": false, where its pixels were not normalised)'
        )
    found = fields[key]
    values = found if isinstance(found, list) else [found] * 3
    if len(values) != 3:
        raise UserError(f"{file} has {key} {found}: give three numbers, for red, green and blue")
    red, green, blue = (_number(value, key, file) for value in values)
    if key == "image_std" and min(red, green, blue) <= 0:
        raise UserError(f"{file} has {key} {found}: a deviation must be above 0")
    return red, green, blue


def _number(value: Any, key: str, file: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{file} has {key} {value!r}, which is no number: mend it")
    return float(value)
