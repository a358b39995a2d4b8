"""A small probe while a run goes on, so that the checkpoint that reads best is kept."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from nextvid.config import Recipe
from nextvid.data import benchmarks
from nextvid.data.clip import ClipSpec
from nextvid.evaluation.benchmark import default_level
from nextvid.evaluation.features import RenderedClips, features, frozen, render
from nextvid.evaluation.fitting import fit_probe
from nextvid.evaluation.probe import ProbeConfig
from nextvid.inference.released import default_weights
from nextvid.models.encoder import Encoder
from nextvid.settings import ProbeConfig as WatchConfig
from nextvid.training.trainer import Trainer


class Watcher:
    """Probes the encoder that ``nextvid.load`` would give, on clips that are held out of the benchmark's train split.

    The clips have the form of the main stage's, as in any probe, so that figures of all stages compare; they are rendered
    once.
    """

    def __init__(self, config: WatchConfig, recipe: Recipe) -> None:
        """Raises ``UserError`` for an unknown benchmark or level."""
        main = recipe.main_stage
        self._clips = benchmarks.load(
            config.benchmark, config.level or default_level(config.benchmark), "train", config.clips
        )
        self._spec = ClipSpec(main.frames, main.fps, main.size)
        self._rendered: RenderedClips | None = None

    def __call__(self, trainer: Trainer) -> float:
        """Top-1 on the held-out clips, from 0 to 1: the first process probes, the others wait for what it says."""
        exports = trainer.objective.exports()
        encoder = exports[default_weights(list(exports))]
        state = {name: _whole(tensor) for name, tensor in encoder.state_dict().items()}
        score = self._probe(encoder, state, trainer.device) if trainer.world.first else 0.0
        return trainer.world.gather(score)[0]

    def _probe(self, encoder: Encoder, state: dict[str, Tensor], device: torch.device) -> float:
        if self._rendered is None:
            self._rendered = render(self._clips, self._spec, progress=False)
        copied = Encoder(encoder.config).to(device)
        copied.load_state_dict(state)
        found = features(frozen(copied), self._rendered, progress=False, device=device)
        task = next(iter(found.tasks))
        return fit_probe(found, task, ProbeConfig(), progress=False, device=device).best.held_out_top1


def _whole(tensor: Tensor) -> Tensor:
    """Of a sharded tensor all of it, which all processes have to ask for."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
