"""Small models, clips and masks that the tests are made from."""

import math
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from nextvid.config import Recipe, parse_recipe
from nextvid.data.loader import Batch
from nextvid.models.decoder import Decoder, DecoderConfig
from nextvid.models.encoder import Encoder, EncoderConfig
from nextvid.models.predictor import PredictorConfig
from nextvid.objectives.nextvid import NextVid, NextVidConfig
from nextvid.targets.pixels import PixelsConfig

Module = TypeVar("Module", bound=nn.Module)
WEIGHTS = {"flow": 0.5, "alignment": 1.0}


@dataclass(frozen=True)
class Case:
    """A clip of ``frames`` latent frames of ``height`` x ``width`` patches, and the model that reads it."""

    frames: int = 4
    height: int = 2
    width: int = 3
    batch: int = 2
    patch: int = 4
    tubelet: int = 2
    model_width: int = 24
    heads: int = 2
    depth: int = 2
    seed: int = 0

    @property
    def places(self) -> int:
        return self.height * self.width

    @property
    def grid(self) -> tuple[int, int]:
        return self.height, self.width


def cases(min_frames: int = 2, max_frames: int = 5) -> st.SearchStrategy[Case]:
    return st.builds(
        Case,
        frames=st.integers(min_frames, max_frames),
        height=st.integers(1, 4),
        width=st.integers(1, 4),
        batch=st.integers(1, 2),
        patch=st.sampled_from([2, 4]),
        tubelet=st.integers(1, 2),
        model_width=st.sampled_from([24, 32]),
        heads=st.sampled_from([1, 2, 4]),
        seed=st.integers(0, 1000),
    )


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomise(module: Module, seed: int) -> Module:
    """Weights of about unit gain: a fresh model's zeros (queries, gates, the decoder's output) would hide what flows there."""
    draw = seeded(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 1 / math.sqrt(parameter.shape[-1]) if parameter.ndim > 1 else 0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=draw))
    return module


def encoder_config(case: Case, **changes: Any) -> EncoderConfig:
    shape = {"width": case.model_width, "depth": case.depth, "heads": case.heads, "mlp_hidden": 2 * case.model_width}
    return EncoderConfig(**{**shape, "patch": case.patch, "tubelet": case.tubelet, **changes})


def make_encoder(case: Case, **changes: Any) -> Encoder:
    return randomise(Encoder(encoder_config(case, **changes)), case.seed)


def make_decoder(case: Case, channels: int = 5, condition_width: int = 7) -> Decoder:
    config = DecoderConfig(case.model_width, case.depth, case.heads, 2 * case.model_width)
    return randomise(Decoder(config, channels, condition_width), case.seed)


def objective_config(case: Case, **changes: Any) -> NextVidConfig:
    shape = (case.model_width, case.depth, case.heads, 2 * case.model_width)
    parts = {"predictor": PredictorConfig(*shape), "decoder": DecoderConfig(*shape), "target": PixelsConfig()}
    return NextVidConfig(**{**parts, **changes})


def make_objective(case: Case, attention: str = "frame_causal", **changes: Any) -> NextVid:
    """Random weights everywhere; the reference encoder has others than the online one."""
    return randomise(NextVid(encoder_config(case, attention=attention), objective_config(case, **changes)), case.seed)


def make_clip(case: Case, seed: int | None = None) -> Tensor:
    """Noise in [-1, 1], as an encoder takes it."""
    shape = (case.batch, case.frames * case.tubelet, 3, case.height * case.patch, case.width * case.patch)
    return 2 * torch.rand(shape, generator=seeded(case.seed + 1 if seed is None else seed)) - 1


def make_video(case: Case, seed: int | None = None) -> Tensor:
    """Noise in bytes, as a decoder gives it."""
    return ((make_clip(case, seed) + 1) * 127.5).round().to(torch.uint8)


def make_batch(case: Case, keys: list[int] | None = None) -> Batch:
    """Noise for the objective; clips are square."""
    assert case.height == case.width
    return Batch(make_video(case), keys or [case.seed + 100 + i for i in range(case.batch)])


def make_visible(case: Case, kept: int) -> Tensor:
    """``kept`` random places of each sample, sorted."""
    draw = seeded(case.seed + 2)
    rows = [torch.randperm(case.places, generator=draw)[:kept].sort().values for _ in range(case.batch)]
    return torch.stack(rows)


def pixels_at(case: Case, places: Tensor) -> Tensor:
    """True at every pixel of the named places ``(batch, kept)`` of each sample: ``(batch, 1, 1, rows, columns)``."""
    shown = torch.zeros(case.batch, case.height * case.patch, case.width * case.patch, dtype=torch.bool)
    for sample, row in enumerate(places.tolist()):
        for place in row:
            top, left = place // case.width * case.patch, place % case.width * case.patch
            shown[sample, top : top + case.patch, left : left + case.patch] = True
    return shown[:, None, None]


def small_recipe(**changes: Any) -> Recipe:
    """A recipe whose model fits in a test."""
    return parse_recipe({**recipe_mapping(), **changes}, "test")


def recipe_mapping() -> dict[str, Any]:
    """A small recipe as YAML gives it; only what must be said is said."""
    part = {"width": 24, "depth": 1, "heads": 2, "mlp_hidden": 48}
    return {
        "name": "small",
        "encoder": {"width": 24, "depth": 2, "heads": 2, "mlp_hidden": 48, "patch": 4},
        "objective": {"name": "nextvid", "predictor": dict(part), "decoder": dict(part)},
        "data": {"sources": [{"builtin": "film"}]},
        "stages": [
            {
                "name": "only",
                "steps": 2,
                "batch": 2,
                "frames": 4,
                "fps": 6,
                "size": 16,
                "lr": {"encoder": 1.0e-3, "predictor": 1.0e-3, "decoder": [0, 1.0e-3]},
            }
        ],
    }


class _References(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]


def references(page: str) -> list[str]:
    """Everything that a page refers to, within itself or elsewhere."""
    parser = _References()
    parser.feed(page)
    return parser.found
