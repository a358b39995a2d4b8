"""An encoder measured on a user's own videos, which have no labels: retrieval, the arrow of time, the order of clips."""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel
from rich.table import Table

from nextvid.data.clip import ClipSpec
from nextvid.errors import UserError
from nextvid.evaluation.encoders.frozen import FrozenEncoder
from nextvid.evaluation.features import Encode
from nextvid.evaluation.probe import ProbeConfig
from nextvid.evaluation.readers.arrow import arrow_of_time
from nextvid.evaluation.readers.encoding import Tokens, encode_both_ways
from nextvid.evaluation.readers.order import CLIPS, clip_order
from nextvid.evaluation.readers.retrieval import retrieve
from nextvid.evaluation.readers.videos import FEWEST_CLIPS, FEWEST_VIDEOS, VideoClips, video_clips
from nextvid.report.tables import score_words

FORMAT_VERSION = 1
MOST_VIDEOS = 512
FRAMES, FPS = 16, 8.0
"""The clip of an encoder that does not say what it was trained on."""
TITLES = {"retrieval": "same-video retrieval", "arrow": "arrow of time", "order": "clip order"}


def measure_footage(
    encoder: FrozenEncoder,
    source: str,
    *,
    spec: ClipSpec | None = None,
    clips: int = CLIPS,
    videos: int = MOST_VIDEOS,
    others: Mapping[str, Encode] | None = None,
    config: ProbeConfig | None = None,
    seed: int = 0,
    batch: int = 8,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """What ``encoder`` makes of ``source``, beside ``others`` (baselines by name, uint8 frames in), ready for JSON.

    ``source`` is a folder, file, glob, list, tar, URL, manifest or prepared shards of videos (:func:`video_clips`). Each gives up
    to ``clips`` clips of ``spec`` (by default the encoder's own) that do not overlap. Three tasks: does a video's first clip find
    its last among those of all videos; is a clip shown forwards or backwards; in which order are three clips shown. The latter
    two cross-fit attentive probes over videos; ``config`` says how, but for its seed, which is ``seed``. ``order`` is left out,
    and ``skipped`` says why, where too few videos hold three clips. ``device``: where frames are sent; the encoders must be
    there. Clips lie on disk (in the cache folder) meanwhile, and one encoder's tokens at a time in memory.

    Raises ``UserError`` for clips that the encoder cannot read, for a source that is not there, and for fewer than 8 videos.
    """
    spec = spec or encoder.clip or ClipSpec(FRAMES, FPS, encoder.size)
    _check(clips, videos)
    encoder.check(spec)
    config = (config or ProbeConfig()).model_copy(update={"seed": seed})
    with video_clips(source, spec, clips=clips, videos=videos, seed=seed, progress=progress) as footage:

        def read(name: str, encode: Encode) -> dict[str, BaseModel]:
            title = f"encoding: {name.replace('_', ' ')}"
            tokens = encode_both_ways(encode, footage, title=title, batch=batch, device=device, progress=progress)
            return _tasks(tokens, footage, config, device, progress)

        found = read("this encoder", encoder)
        beside = {name: read(name, other) for name, other in (others or {}).items()}
        return {
            "format_version": FORMAT_VERSION,
            "source": source,
            "videos": len(footage.names),
            "clips": len(footage),
            "left_out": footage.left_out,
            "broken_files": [list(broken) for broken in footage.broken_files],
            "clip": {"frames": spec.frames, "fps": spec.fps, "size": spec.size, "most_of_a_video": clips},
            "seed": seed,
            "tasks": {
                task: score.model_dump(mode="json") | {"baselines": _scores(task, beside)}
                for task, score in found.items()
            },
            "skipped": _skipped(footage),
        }


def table_of(found: dict[str, Any]) -> Table:
    """What :func:`measure_footage` gives, for people: a row an encoder, a column a task."""
    table = Table(title=f"{found['videos']} videos of {found['source']}, top-1 in percent (95% interval)")
    table.add_column("encoder")
    tasks = found["tasks"]
    for task in tasks:
        table.add_column(TITLES[task], justify="right")
    table.add_row("this encoder", *[score_words(score) for score in tasks.values()])
    for name in dict.fromkeys(name for score in tasks.values() for name in score["baselines"]):
        cells = [score_words(score["baselines"].get(name)) for score in tasks.values()]
        table.add_row(name.replace("_", " "), *cells)
    table.add_row("chance", *[f"{100 * score['chance']:.1f}" for score in tasks.values()])
    return table


def _check(clips: int, videos: int) -> None:
    if clips < FEWEST_CLIPS:
        raise UserError(
            f"clips is {clips}, and retrieval needs {FEWEST_CLIPS} of each video: set clips to {CLIPS} or more"
        )
    if videos < FEWEST_VIDEOS:
        raise UserError(f"videos is {videos}, and {FEWEST_VIDEOS} are needed at least: set videos higher")


def _tasks(
    tokens: Tokens, footage: VideoClips, config: ProbeConfig, device: torch.device | str, progress: bool
) -> dict[str, BaseModel]:
    pairs = footage.clips_of(FEWEST_CLIPS)
    vectors = tokens[:, 0].mean((1, 2))
    first, last = (vectors[[int(rows[end]) for rows in pairs]] for end in (0, -1))
    found: dict[str, BaseModel] = {
        "retrieval": retrieve(first, last),
        "arrow": arrow_of_time(tokens.flatten(2, 3), footage.videos, config, device=device, progress=progress),
    }
    if "order" not in _skipped(footage):
        threes = torch.stack([rows[[0, len(rows) // 2, -1]] for rows in footage.clips_of(CLIPS)])
        found["order"] = clip_order(tokens[:, 0].mean(2)[threes], config, device=device, progress=progress)
    return found


def _skipped(footage: VideoClips) -> dict[str, str]:
    """Tasks that these videos are too short for, and why."""
    videos = len(footage.clips_of(CLIPS))
    if videos >= FEWEST_VIDEOS:
        return {}
    return {
        "order": f"{videos} videos give {CLIPS} clips that do not overlap, and {FEWEST_VIDEOS} are needed: give longer videos, "
        f"take shorter clips, or allow {CLIPS} clips of a video"
    }


def _scores(task: str, beside: Mapping[str, Mapping[str, BaseModel]]) -> dict[str, dict[str, Any]]:
    both = {name: scores[task].model_dump(mode="json") for name, scores in beside.items()}
    return {name: {"top1": score["top1"], "ci95": score["ci95"]} for name, score in both.items()}
