"""What is drawn from: clips of a video, of several, of a built-in benchmark; or a picture."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from nextvid.data import benchmarks
from nextvid.data.backends import TIME_TOLERANCE
from nextvid.data.clip import BrokenFile, ClipSpec, Frames
from nextvid.data.decode import decode_clip, is_picture, probe_file
from nextvid.data.locations import Place
from nextvid.data.transforms import centre_crop, resized_crop
from nextvid.errors import UserError, nearest
from nextvid.evaluation.benchmark import default_level
from nextvid.evaluation.features import render, track
from nextvid.footage.listing import list_sources

Kind = Literal["videos", "picture", "benchmark"]
Clips = UInt8[Tensor, "clips frames 3 size size"]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Material:
    """What was named: files by their places, or a benchmark and its level. ``stem`` is fit for a folder's name."""

    name: str
    stem: str
    kind: Kind
    places: list[Place] = field(default_factory=list)
    benchmark: tuple[str, str] | None = None


@dataclass(frozen=True)
class Cut:
    """What is cut from each video: a clip such as ``spec`` from ``start`` seconds on, or as much of it as there is.

    ``fewest``: frames that there must be. ``clips``: at most so many.
    """

    spec: ClipSpec
    fewest: int
    start: float
    clips: int


@dataclass(frozen=True)
class Footage:
    """Clips of one length, uint8; ``names`` says what each is of, and ``left_out`` why a file gave none."""

    clips: Clips
    names: list[str]
    left_out: dict[str, str] = field(default_factory=dict)


def find_material(name: str) -> Material:
    """A video, a picture, a folder or glob of videos, or ``BENCHMARK:LEVEL``. Raises ``UserError`` where there is none."""
    benchmark, _, level = name.partition(":")
    if not os.path.lexists(name):
        if benchmark in benchmarks.names():
            level = level or default_level(benchmark)
            return Material(f"{benchmark}:{level}", f"{benchmark}-{level}", "benchmark", benchmark=(benchmark, level))
        hint = nearest(benchmark, benchmarks.names())
        if hint:
            raise UserError(f"there is no file {name}, and no benchmark of that name{hint}")
    places = [entry.place for entry in list_sources([name]) if entry.reason is None]
    moving = [place for place in places if not is_picture(place)]
    stem = (
        re.sub(r"[^\w.-]+", "_", os.path.splitext(os.path.basename(os.path.normpath(name)))[0]).strip("_") or "footage"
    )
    if len(places) == 1 and not moving:
        return Material(name, stem, "picture", places)
    if not moving:
        raise UserError(f"{name} holds no video; one picture can be drawn from at a time: name it")
    return Material(name, stem, "videos", moving)


def read_material(material: Material, cut: Cut, progress: bool = True) -> Footage:
    """The clips that are asked for, sampled by true time and cropped in the middle; a picture stands still.

    Of videos that end early all are cut to the shortest. Raises ``UserError`` where none can be used.
    """
    if material.benchmark is not None:
        labelled = benchmarks.load(*material.benchmark, "test", cut.clips)
        clips = render(labelled, cut.spec, progress=progress).frames
        return Footage(clips, [f"{material.name} {i}" for i in range(len(clips))])
    if material.kind == "picture":
        picture = _read(material.places[0], np.zeros(1), cut.spec.size)
        return Footage(_stacked([np.repeat(picture, cut.fewest, axis=0)]), [str(material.places[0])])
    return _read_videos(material, cut, progress)


def _read_videos(material: Material, cut: Cut, progress: bool) -> Footage:
    found: dict[str, Frames] = {}
    left_out: dict[str, str] = {}
    for place in track(material.places, len(material.places), "reading videos", progress):
        if len(found) == cut.clips:
            break
        try:
            found[str(place)] = _read_video(place, cut)
        except UserError as error:
            left_out[str(place)] = str(error)
    if not found:
        one = next(iter(left_out.values()))
        many = f"none of the {len(left_out)} videos of {material.name} can be used; the first: {one}"
        raise UserError(one if len(left_out) == 1 else many)
    known = min(len(frames) for frames in found.values())
    return Footage(_stacked([frames[:known] for frames in found.values()]), list(found), left_out)


def _read_video(place: Place, cut: Cut) -> Frames:
    """As many of the frames as the video has."""
    info = _explained(place, lambda: probe_file(place))
    times = cut.start + np.arange(cut.spec.frames) / cut.spec.fps
    known = int((times < max(info.seconds, 1 / info.fps) - TIME_TOLERANCE).sum())
    if known < cut.fewest:
        raise UserError(
            f"{place} lasts {info.seconds:.2f} s, from {cut.start:g} s on {known} frames at {cut.spec.fps:g} a second, and "
            f"{cut.fewest} are needed: begin earlier (--start), or take frames closer together (--fps)"
        )
    return _read(place, times[:known], cut.spec.size)


def _read(place: Place, times: Float[np.ndarray, " frames"], size: int) -> Frames:
    frames = _explained(place, lambda: decode_clip(place, times, size))
    return resized_crop(frames, centre_crop(*frames.shape[1:3]), size)


def _explained(place: Place, read: Callable[[], Result]) -> Result:
    try:
        return read()
    except BrokenFile as error:
        raise UserError(
            f"{place} cannot be read as a video or a picture: it is {error.reason.replace('_', ' ')}"
        ) from error


def _stacked(clips: list[Frames]) -> Clips:
    return torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3).contiguous()
