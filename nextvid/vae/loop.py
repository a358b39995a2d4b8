"""Training an autoencoder, top to bottom: it stops, resumes and saves as ``pretrain`` does, in one process."""

import signal
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from nextvid.data.loader import batches
from nextvid.data.mixture import Mixture
from nextvid.errors import Stopped, UserError
from nextvid.files import saying_where_disks_fail
from nextvid.signals import collected
from nextvid.targets.vae_file import VAE_FILE, latent_statistics, write_vae
from nextvid.training.checkpoint import (
    Checkpoints,
    Retention,
    damage,
    list_checkpoints,
    load_checkpoint,
    set_aside,
    state_tensors,
    tidy,
)
from nextvid.training.device import warn_of_slow_half
from nextvid.training.display import Display
from nextvid.training.distributed import World
from nextvid.training.footage import BrokenFiles, SourceOpener, keep_footage
from nextvid.training.logs import closing_all, file_sinks, write_row
from nextvid.training.run import Run
from nextvid.vae.config import VaeRecipe
from nextvid.vae.evaluation import Judge
from nextvid.vae.page import write_vae_page
from nextvid.vae.trainer import VaeTrainer, build_vae_trainer, learning_rate, plan_of, train_step

BAD_STEPS = 20
"""So many steps in a row that are not finite end the training: rates are too high."""


def train_vae(
    recipe: VaeRecipe, out: Path, until: int | None = None, console: Console | None = None, *, allow: bool = False
) -> dict[str, Any]:
    """Run ``recipe`` in the folder ``out``, or go on with what is there; returns the final figures, also in ``metrics.json``.

    Raises ``Stopped`` on SIGINT or SIGTERM, after saving, and ``UserError`` for anything that the user can mend.
    """
    console = console or Console()
    with saying_where_disks_fail(out), closing(Run(out)) as run:
        changes = run.check(recipe, allow)
        trainer = build_vae_trainer(recipe)
        opener = SourceOpener(recipe.data, 1, out, console)
        mixture = opener.mixture(recipe.data.sources, recipe.seed)
        judge = Judge.of(recipe, opener, mixture)
        run.open(recipe)
        if not _resume(trainer, run, console) and recipe.model.linear:
            trainer.model.autoencoder.start_as_components(judge.statistics(trainer.device))
        keep_footage([mixture], out)
        if changes:
            run.change(recipe, changes, trainer.progress.step)
            console.print(f"the recipe has changed since: {'; '.join(changes)}", highlight=False, markup=False)
        run.write_environment(trainer.device)
        warn_of_slow_half(recipe.training.precision, trainer.device, console)
        end = min(until or recipe.steps, recipe.steps)
        if trainer.progress.step < end:
            with collected() as stop:
                VaeSession(trainer, run, mixture, judge, console, stop).train(end)
        console.print("measuring reconstructions …")
        figures = {"reconstruction": judge.figures(trainer.model.autoencoder, console)}
        found = run.update_metrics({"vae": _summary(trainer), **figures})
        console.print(f"page: {write_vae_page(out, judge, trainer.model.autoencoder)}", highlight=False)
        return found


class VaeSession:
    """A run from where it stands to where it stops."""

    def __init__(
        self, trainer: VaeTrainer, run: Run, mixture: Mixture, judge: Judge, console: Console, stop: list[int]
    ) -> None:
        self.trainer, self.run, self.mixture, self.judge = trainer, run, mixture, judge
        self.console, self.stop = console, stop
        self.saver = Checkpoints(run.checkpoints, World(), Retention(trainer.recipe.training.keep_checkpoints))
        self.broken = BrokenFiles(run.path, console, writes=True)

    def train(self, end: int) -> None:
        """All steps up to ``end``. Raises ``Stopped`` on a signal, after saving, and ``UserError`` where it diverges."""
        recipe, progress = self.trainer.recipe, self.trainer.progress
        started, sinks = time.monotonic() - progress.seconds, file_sinks(self.run, progress.step)
        plans = [plan_of(recipe, step) for step in range(progress.step, end)]
        stream = batches(
            [self.mixture],
            plans,
            recipe.data.workers,
            recipe.seed,
            seconds=recipe.data.timeout,
            lost=self.broken.lost,
            pin=self.trainer.device.type == "cuda",
        )
        stopped = 0
        try:
            with Display(self.console, end, progress.step) as display, closing(stream), closing_all(sinks):
                for batch in stream:
                    figures = train_step(self.trainer, batch)
                    self._count(figures)
                    progress.seconds = time.monotonic() - started
                    if batch.broken:
                        self.broken.add(batch.broken)
                    stopped = self.stop[0] if self.stop else 0
                    last = progress.step == end or bool(stopped)
                    saves = progress.step % recipe.training.checkpoint_every == 0 or last
                    if progress.step % recipe.training.log_every == 0 or progress.step == recipe.steps:
                        write_row(sinks, self._row(saves))
                    display.update(progress.step, "autoencoder", _shown(figures))
                    if saves:
                        self._save()
                    if last:
                        break
            self.saver.wait()
        finally:
            self.saver.close()
        if progress.step < end:
            raise Stopped(f"stopped by {signal.Signals(stopped).name} after step {progress.step}; everything is saved")

    def _count(self, figures: dict[str, float]) -> None:
        """Add a step to the progress and to the sums of the window under way."""
        progress = self.trainer.progress
        progress.step += 1
        if figures.pop("bad"):
            progress.skipped += 1
            progress.bad_in_a_row += 1
            if progress.bad_in_a_row >= BAD_STEPS:
                raise UserError(
                    f"{BAD_STEPS} steps in a row up to step {progress.step} were not finite; lower training.lr, or set "
                    "training.precision=float32, and start again from the last checkpoint"
                )
            return
        progress.bad_in_a_row = 0
        for name, value in figures.items():
            progress.window[name] = progress.window.get(name, 0.0) + value
            progress.window[f"count {name}"] = progress.window.get(f"count {name}", 0.0) + 1

    def _row(self, judged: bool) -> dict[str, Any]:
        """The window's means, which is then empty; with the PSNR of held-out pictures where a checkpoint is saved."""
        trainer, progress = self.trainer, self.trainer.progress
        names = [name for name in progress.window if not name.startswith("count ")]
        means = {name: progress.window[name] / progress.window[f"count {name}"] for name in names}
        progress.window.clear()
        norms = {name.partition("/")[2]: means.pop(name) for name in names if name.startswith("grad_norm/")}
        rate = learning_rate(trainer.recipe, progress.step - 1)
        pictures = progress.step * trainer.recipe.batch * trainer.recipe.frames
        psnr = {"psnr": self.judge.psnr(trainer.model.autoencoder)} if judged else {}
        return {
            "step": progress.step,
            "stage": "autoencoder",
            **means,
            **psnr,
            "grad_norms": norms,
            "lr": dict.fromkeys(norms, rate),
            "skipped": progress.skipped,
            "pictures": pictures,
            "time": {"seconds": progress.seconds, "pictures_per_second": pictures / max(progress.seconds, 1e-9)},
        }

    def _save(self) -> None:
        trainer, run = self.trainer, self.run
        network = trainer.model.autoencoder
        mean, std = latent_statistics(network, self.judge.statistics(trainer.device))
        held = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
        facts = {"recipe": trainer.recipe.name, "step": trainer.progress.step, "size": trainer.recipe.size}

        def export(_checkpoint: Path) -> None:
            write_vae(held, mean, std, trainer.recipe.model, facts, run.path / VAE_FILE)

        self.saver.save(state_tensors(trainer.model, trainer.optimiser), trainer.progress, then=export)


def _shown(figures: dict[str, float]) -> dict[str, float]:
    names: Sequence[str] = ("reconstruction", "perceptual", "cosine", "discriminator")
    return {name: figures[name] for name in names if name in figures}


def _resume(trainer: VaeTrainer, run: Run, console: Console) -> bool:
    """Load the newest checkpoint that is whole; whether there is one."""
    tidy(run.checkpoints)
    for checkpoint in reversed(list_checkpoints(run.checkpoints)):
        wrong = damage(checkpoint)
        if wrong:
            aside = set_aside(checkpoint)
            console.print(f"[yellow]{checkpoint} is damaged ({wrong}): it is {aside} from now on")
            continue
        trainer.progress = load_checkpoint(checkpoint, trainer.model, trainer.optimiser, World())
        console.print(f"going on from {checkpoint} ({trainer.progress.step} of {trainer.recipe.steps} steps done)")
        break
    if trainer.progress.step > trainer.recipe.steps:
        raise UserError(
            f"{run.path} has {trainer.progress.step} steps behind it, and the recipe has {trainer.recipe.steps} in all; use "
            "more steps, or another --out"
        )
    run.rewind_metrics(trainer.progress.step)
    return trainer.progress.step > 0


def _summary(trainer: VaeTrainer) -> dict[str, Any]:
    recipe, progress = trainer.recipe, trainer.progress
    network = trainer.model.autoencoder
    return {
        "steps": progress.step,
        "pictures": progress.step * recipe.batch * recipe.frames,
        "seconds": progress.seconds,
        "skipped": progress.skipped,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "stride": recipe.model.stride,
        "latent_channels": recipe.model.latent_channels,
        "compression": 3 * recipe.model.stride**2 / recipe.model.latent_channels,
        "device": str(torch.device(trainer.device)),
    }
