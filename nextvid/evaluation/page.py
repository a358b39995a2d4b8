"""A probe's page: what one would rather look at, gathered while tokens and clips are there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from nextvid.data.clip import BrokenFile
from nextvid.data.view_reader import RenderedReader
from nextvid.data.views import Views, views_of
from nextvid.evaluation.looking import Look, Material, TokenGrid, first_views, look
from nextvid.evaluation.session import Reading, Session, numbers_of
from nextvid.report.probe_page import write_probe_page

MOST_CLIPS = 1000
"""Clips of a split that are looked at."""
ROWS = 32

Places = Int64[Tensor, " some"]


def page_of(session: Session, reading: Reading) -> Callable[[dict[str, Any]], Path]:
    """Gather the page's pictures now; what it gives writes ``probe.html`` from the figures, once they are complete."""
    scores = reading.result.scores
    seen: Look | None = None
    try:
        seen = _look(session, reading)
    except (BrokenFile, MemoryError, torch.OutOfMemoryError) as error:
        session.say(f"the page has no clips to look at: {error}")

    def write(found: dict[str, Any]) -> Path:
        session.folder.mkdir(parents=True, exist_ok=True)
        return write_probe_page(session.folder / "probe.html", found, scores, session.classes, seen)

    return write


def _look(session: Session, reading: Reading) -> Look:
    chosen = _some(len(reading.truth))
    tested = reading.places[chosen]
    return look(
        reading.fitted,
        first_views(reading.test, tested),
        _grid(session, reading),
        _frames(session, "test", reading.samples[chosen]),
        reading.truth[chosen],
        reading.probabilities[chosen],
        session.classes,
        train=_train(session, reading),
    )


def _some(clips: int) -> Places:
    """Up to ``MOST_CLIPS`` of so many, the same every time."""
    order = torch.randperm(clips, generator=torch.Generator().manual_seed(0))
    return order[:MOST_CLIPS].sort().values


def _train(session: Session, reading: Reading) -> Material:
    places = _some(len(reading.train))
    plan = [(0, rows) for rows in places.split(ROWS)]
    found = [(rows, tokens.float().mean(1).cpu()) for rows, tokens in reading.train.batches(plan) if len(rows)]
    read = torch.cat([rows for rows, _ in found])
    numbers = numbers_of(reading.train, read)
    labels = session.labels["train"][session.task][numbers]
    return Material(_frames(session, "train", numbers), labels, torch.cat([vectors for _, vectors in found]))


def _grid(session: Session, reading: Reading) -> TokenGrid | None:
    """How the tokens of a view lie, where places stand in a square."""
    frames = torch.zeros(1, session.spec.frames, 3, session.spec.size, session.spec.size, dtype=torch.uint8)
    with torch.inference_mode():
        layers = reading.encoder.encode(frames.to(session.device), reading.layers)
    time, places = layers[0].shape[1:3]
    side = round(places**0.5)
    if side * side != places or any(layer.shape != layers[0].shape for layer in layers):
        return None
    return TokenGrid(len(layers), session.recipe.segments, time, side, side)


def _frames(
    session: Session, split: str, numbers: Places
) -> Callable[[int], UInt8[np.ndarray, "frames height width 3"]]:
    """What gives the first segment of the first view of a clip, by its place in ``numbers``."""
    reader, clips = session.reader(split), session.clips[split]
    views = Views(session.recipe.segments, session.recipe.views, session.recipe.crop_share)

    def frames_of(place: int) -> UInt8[np.ndarray, "frames height width 3"]:
        number = int(numbers[place])
        if isinstance(reader, RenderedReader):
            return reader.frames[number].permute(0, 2, 3, 1).contiguous().numpy()
        return views_of(clips, number, session.spec, views, np.random.default_rng(0))[0, 0]

    return frames_of
