"""A small probe while a run goes on, so that the checkpoint that reads best is kept."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from nextvid.config import Recipe
from nextvid.data import benchmarks
from nextvid.data.clip import ClipSpec, LabelledClips
from nextvid.data.view_reader import ViewReader
from nextvid.errors import UserError, nearest
from nextvid.evaluation.benchmark import default_level, random_encoder
from nextvid.evaluation.features import Encode, RenderedClips, features, frozen
from nextvid.evaluation.fitting import fit_probe
from nextvid.evaluation.fresh import labels_of
from nextvid.evaluation.probe import ProbeConfig
from nextvid.inference.released import default_weights
from nextvid.models.encoder import Encoder
from nextvid.settings import ProbeConfig as WatchConfig
from nextvid.training.trainer import Trainer

READ_CLIPS = 32


class Watcher:
    """Probes the encoder that ``nextvid.load`` would give, on clips that are held out of the benchmark's train split.

    The clips have the form of the main stage's, as in any probe, so that figures of all stages compare; they are made once, and
    kept in memory. Files that cannot be read are left out.
    """

    def __init__(self, config: WatchConfig, recipe: Recipe) -> None:
        """Raises ``UserError`` for an unknown benchmark, level or task."""
        main = recipe.main_stage
        self._clips = benchmarks.load(
            config.benchmark, config.level or default_level(config.benchmark), "train", config.clips
        )
        known = list(self._clips.tasks)
        if config.task is not None and config.task not in known:
            raise UserError(
                f"training.probe.task: {config.benchmark} has no task '{config.task}'{nearest(config.task, known)}; it has "
                f"{', '.join(known)}"
            )
        self._task = config.task or known[0]
        self._spec = ClipSpec(main.frames, main.fps, main.size)
        self._made: RenderedClips | None = None
        self._untrained: float | None = None

    def __call__(self, trainer: Trainer) -> dict[str, float]:
        """``probe``: top-1 on the held-out clips, from 0 to 1, and ``probe_untrained``: of an encoder that has learnt nothing.

        The first process probes, the others wait for what it says.
        """
        exports = trainer.objective.exports()
        encoder = exports[default_weights(list(exports))]
        state = {name: _whole(tensor) for name, tensor in encoder.state_dict().items()}
        found = self._probe(encoder, state, trainer.device) if trainer.world.first else {}
        return trainer.world.gather(found)[0]

    def _probe(self, encoder: Encoder, state: Mapping[str, Tensor], device: torch.device) -> dict[str, float]:
        if self._made is None:
            self._made = made(self._clips, self._spec)
        if self._untrained is None:
            with torch.random.fork_rng(devices=[]):
                self._untrained = self._top1(random_encoder(encoder.config, device=device), self._made, device)
        copied = Encoder(encoder.config).to(device)
        copied.load_state_dict(state)
        return {"probe": self._top1(frozen(copied), self._made, device), "probe_untrained": self._untrained}

    def _top1(self, encode: Encode, clips: RenderedClips, device: torch.device) -> float:
        found = features(encode, clips, progress=False, device=device)
        return fit_probe(found, self._task, ProbeConfig(), progress=False, device=device).best.held_out_top1


def made(clips: LabelledClips, spec: ClipSpec) -> RenderedClips:
    """All clips that can be read. Raises ``UserError`` where none can."""
    batches = [(0, rows.tolist()) for rows in torch.arange(len(clips)).split(READ_CLIPS)]
    parts = list(ViewReader(clips, spec).read(batches))
    kept = [sample for samples, _ in parts for sample in samples]
    if not kept:
        raise UserError(f"not one clip of {clips.name} could be read: see which files are broken, and mend them")
    frames = torch.cat([part[:, 0, 0] for _, part in parts])
    labels = {task: column[kept] for task, column in labels_of(clips).items()}
    return RenderedClips(frames, labels, dict(clips.tasks))


def _whole(tensor: Tensor) -> Tensor:
    """Of a sharded tensor all of it, which all processes have to ask for."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
