"""Pretraining, top to bottom."""

import signal
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from nextvid.config import Recipe
from nextvid.data.footage import FootageSource
from nextvid.data.loader import Batch, batches
from nextvid.data.mixture import Mixture
from nextvid.errors import Stopped, UserError
from nextvid.files import saying_where_disks_fail
from nextvid.signals import collected
from nextvid.training.checkpoint import (
    Checkpoints,
    Retention,
    damage,
    list_checkpoints,
    load_checkpoint,
    read_part,
    read_progress,
    remove_checkpoint,
    set_aside,
    state_tensors,
    step_of,
    tidy,
)
from nextvid.training.device import warn_of_idle_devices, warn_of_slow_half
from nextvid.training.display import Display
from nextvid.training.distributed import World, world_of
from nextvid.training.footage import BrokenFiles, build_mixtures, keep_footage
from nextvid.training.latents import use_latents
from nextvid.training.logs import check_sinks, closing_all, open_sinks, write_row
from nextvid.training.release import start_from
from nextvid.training.rollback import Diverged, Rollback, read_rollbacks, write_rollbacks
from nextvid.training.rows import Rows
from nextvid.training.run import Run
from nextvid.training.start import InitReport, take_moments
from nextvid.training.trainer import (
    Trainer,
    build_objective,
    build_trainer,
    check_batches,
    first_clips,
    plan_of,
    train_step,
)

Watch = Callable[[Trainer], dict[str, float]]
"""A probe of the encoder as it is; all processes call it. Its figures are from 0 to 1, and ``probe`` is what counts."""


def pretrain(
    recipe: Recipe,
    out: Path,
    until: int | None = None,
    console: Console | None = None,
    *,
    allow: bool = False,
) -> dict[str, Any]:
    """Run ``recipe`` in the folder ``out``, or go on with what is there; ``until`` ends it after that many steps in all.

    Started by ``torchrun`` it is one of several processes (docs/training.md), of which the first speaks and writes. ``allow``:
    go on under a recipe that has changed since. Returns the final figures, also in ``metrics.json``. Raises ``Stopped`` on
    SIGINT or SIGTERM, after saving, and ``UserError`` for anything that the user can mend.
    """
    with world_of(recipe.training.timeout, recipe.training.device) as world:
        console = (console or Console()) if world.first else Console(quiet=True)
        with saying_where_disks_fail(out):
            return _pretrain(recipe, Run(out), until, console, world, allow)


def _pretrain(
    recipe: Recipe, run: Run, until: int | None, console: Console, world: World, allow: bool
) -> dict[str, Any]:
    world.same("the recipe", recipe.model_dump_json())
    with world.together():
        changes = run.check(recipe, allow) if world.first else []
        check_batches(recipe, world.ranks)
        check_sinks(recipe)
        watch = watch_of(recipe)
        objective = build_objective(recipe)
        fresh = not list_checkpoints(run.checkpoints)
        # Before anything is written, so that a wrong init leaves nothing behind.
        report = start_from(objective, recipe, recipe.init) if recipe.init is not None and fresh else None
        run.check_reliances(objective.relies_on())
        mixtures = build_mixtures(recipe, run.path, console)
        use_latents(objective, recipe, mixtures, run.path)
    world.same("what they start from", report.source.name if report is not None else "")
    world.same("the footage", "; ".join(_digests(mixtures)))
    with world.together():
        if world.first:
            run.open(recipe)
    with world.together():
        if not (run.path / "recipe.yaml").is_file():
            raise UserError(f"{run.path} is not seen here: --out must lie on storage that all machines share")
        trainer = build_trainer(recipe, world, objective)
    checkpoint = _resume(trainer, run, console)
    if world.first:
        run.keep_reliances(objective.relies_on())
        keep_footage(mixtures, run.path)
        _say_changes(run, recipe, changes, trainer.progress.step, console)
        run.write_environment(trainer.device, world.ranks)
    warn_of_slow_half(recipe.training.precision, trainer.device, console)
    warn_of_idle_devices(trainer.device, world.ranks, console)
    if checkpoint is not None:
        # A run that was killed between its checkpoint and its export has an older encoder beside it, or none.
        _export(trainer, run, checkpoint)
    else:
        _begin(trainer, run, report, mixtures[0], console)
    end = min(until or recipe.steps, recipe.steps)
    if trainer.progress.step < end:
        with collected() as stop:
            Session(trainer, run, mixtures, console, watch, stop).train(end)
    figures = {"pretrain": _summary(trainer)}
    if world.first:
        run.update_metrics(figures)
    return figures


def _begin(trainer: Trainer, run: Run, report: InitReport | None, mixture: Mixture, console: Console) -> None:
    """What comes before the first step: the moments of another run, and what an objective measures of its clips."""
    if report is not None:
        take_moments(trainer.optimiser, report, trainer.world)
        if trainer.world.first:
            report.write(run.path)
        for line in report.lines():
            console.print(line, highlight=False, markup=False)
    if report is None or report.measures:
        trainer.objective.before_training(first_clips(trainer, mixture))


def watch_of(recipe: Recipe) -> Watch | None:
    """The probe of ``training.probe``. Raises ``UserError`` where there is no such benchmark."""
    if recipe.training.probe is None:
        return None
    from nextvid.evaluation.during import Watcher  # noqa: PLC0415 (evaluation builds on training)

    return Watcher(recipe.training.probe, recipe)


class Session:
    """A run from where it stands to where it stops."""

    def __init__(
        self,
        trainer: Trainer,
        run: Run,
        mixtures: list[Mixture],
        console: Console,
        watch: Watch | None,
        stop: list[int],
    ) -> None:
        training, self.world = trainer.recipe.training, trainer.world
        self.trainer, self.run, self.mixtures, self.console, self.watch = trainer, run, mixtures, console, watch
        self.stop = stop
        retention = Retention(training.keep_checkpoints, training.keep_every)
        self.saver = Checkpoints(run.checkpoints, self.world, retention)
        self.broken = BrokenFiles(run.path, console, writes=self.world.first)

    def train(self, end: int) -> None:
        """All steps up to ``end``, going back where they diverge. Raises ``Stopped`` on a signal, after saving."""
        try:
            while self.trainer.progress.step < end:
                try:
                    self._train_on(end)
                except Diverged as error:
                    self._wait_for_save()
                    _roll_back(self.trainer, self.run, str(error), self.console)
        finally:
            self.saver.close()

    def _train_on(self, end: int) -> None:
        trainer, progress, training = self.trainer, self.trainer.progress, self.trainer.recipe.training
        with self.world.together():
            sinks = open_sinks(self.run, trainer.recipe, progress.step) if self.world.first else []
        rows, started, stopped = Rows(trainer, self.console), time.monotonic() - progress.seconds, 0
        with (
            Display(self.console, end, progress.step) as display,
            closing(self._stream(end)) as stream,
            closing_all(sinks),
        ):
            for batch in stream:
                result = train_step(trainer, batch)
                progress.step += 1
                progress.seconds = time.monotonic() - started
                rows.add(result)
                stopped, failed = self._tell(batch)
                watched = self._watched()
                if progress.step % training.log_every == 0 or progress.step == trainer.recipe.steps:
                    row = rows.row(result, watched)
                    write_row(sinks, row)
                display.update(progress.step, trainer.schedule.stage_of(progress.step - 1).name, rows.shown(result))
                if progress.bad_in_a_row >= training.bad_steps:
                    raise Diverged(f"{progress.bad_in_a_row} steps in a row were not finite")
                last = progress.step == end or bool(stopped)
                if not failed and (progress.step % training.checkpoint_every == 0 or last):
                    self._save(watched.get("probe"))
                if failed or last:
                    break
        self._wait_for_save()
        if progress.step < end:
            raise Stopped(f"stopped by {signal.Signals(stopped).name} after step {progress.step}; everything is saved")

    def _stream(self, end: int) -> Generator[Batch, None, None]:
        trainer, data = self.trainer, self.trainer.recipe.data
        return batches(
            self.mixtures,
            [plan_of(trainer.schedule, step) for step in range(trainer.progress.step, end)],
            data.workers,
            trainer.recipe.seed,
            seconds=data.timeout,
            lost=self.broken.lost,
            rank=self.world.rank,
            ranks=self.world.ranks,
            pin=trainer.device.type == "cuda",
        )

    def _tell(self, batch: Batch) -> tuple[int, bool]:
        """What any process has to tell the others after a step: the signal that stops it, and whether a save has failed.

        Files that failed are told, too, where there are any.
        """
        here = [self.stop[0] if self.stop else 0, int(self.saver.failed), len(batch.broken)]
        signals, failed, files = self.world.most(here)
        if files:
            self.broken.add([entry for part in self.world.gather(batch.broken) for entry in part])
        return signals, bool(failed)

    def _watched(self) -> dict[str, float]:
        probe = self.trainer.recipe.training.probe
        if probe is None or self.watch is None or self.trainer.progress.step % probe.every:
            return {}
        return self.watch(self.trainer)

    def _save(self, score: float | None) -> None:
        self._wait_for_save()
        trainer, run = self.trainer, self.run
        tensors = state_tensors(trainer.objective, trainer.optimiser)
        self.saver.save(tensors, trainer.progress, score, lambda checkpoint: _export(trainer, run, checkpoint))

    def _wait_for_save(self) -> None:
        with self.world.together():
            self.saver.wait()


def _export(trainer: Trainer, run: Run, checkpoint: Path) -> None:
    """The encoder of a checkpoint, from its files: no other process is needed, however it was sharded."""
    if trainer.world.first:
        state = read_part(checkpoint)
        run.export_encoder(trainer.objective, trainer.recipe, step_of(checkpoint), state)


def _resume(trainer: Trainer, run: Run, console: Console) -> Path | None:
    """Load the newest checkpoint that is whole; returns it."""
    world = trainer.world
    if world.first:
        tidy(run.checkpoints)
    trainer.rollbacks = world.gather(read_rollbacks(run.path))[0]
    found, damaged, listed = None, [], world.gather(list_checkpoints(run.checkpoints))[0]
    for checkpoint in reversed(listed):
        wrong = damage(checkpoint, world)
        if wrong:
            damaged.append(checkpoint)
            console.print(f"[yellow]{checkpoint} is damaged ({wrong}); going back to the one before")
            continue
        with world.together():
            progress = read_progress(checkpoint)
        trainer.progress = load_checkpoint(checkpoint, trainer.objective, trainer.optimiser, world)
        console.print(f"going on from {checkpoint} ({progress.step} of {trainer.recipe.steps} steps done)")
        found = checkpoint
        break
    with world.together():
        if found is None and listed and trainer.recipe.init is not None:
            raise UserError(
                f"all checkpoints of {run.path} are damaged, and it began from {trainer.recipe.init.origin}; remove "
                f"{run.checkpoints}, and the same command begins from there again"
            )
        if trainer.progress.step > trainer.recipe.steps:
            raise UserError(
                f"{found} has {trainer.progress.step} steps behind it, and the recipe has {trainer.recipe.steps} in all; use a "
                "recipe with more, or another --out with init"
            )
    if world.first:
        for path in damaged:  # where it stands, what is saved from now on would count as older
            console.print(f"it is {set_aside(path)} from now on", highlight=False)
        run.rewind_metrics(trainer.progress.step)
    return found


def _roll_back(trainer: Trainer, run: Run, why: str, console: Console) -> None:
    """Back to the newest checkpoint before the first bad step, with smaller rates. Raises ``UserError`` where that is no use."""
    training, world, step = trainer.recipe.training, trainer.world, trainer.progress.step
    advice = "lower the learning rates, or set training.precision=float32"
    listed = world.gather(list_checkpoints(run.checkpoints))[0]
    good = [c for c in listed if damage(c, world) is None and read_progress(c).bad_in_a_row == 0]
    # From right before the first bad step on, whatever the rates, that step would be the same again.
    good = [c for c in good if step_of(c) < step - trainer.progress.bad_in_a_row] or good
    with world.together():
        if not good:
            raise UserError(f"{why} up to step {step}, and there is no good checkpoint to go back to; {advice}")
        if len(trainer.rollbacks) >= training.rollbacks:
            raise UserError(
                f"{why} up to step {step}, after {len(trainer.rollbacks)} times of going back with smaller rates; {advice}. "
                f"{good[-1]} is good"
            )
    back = Rollback(step=step, to=step_of(good[-1]), scale=training.lr_after_rollback)
    trainer.rollbacks.append(back)
    if world.first:
        # In this order: a kill in between leads to the same divergence, and back here.
        for later in [c for c in listed if step_of(c) > back.to]:
            remove_checkpoint(later)
        write_rollbacks(run.path, trainer.rollbacks)
        run.rewind_metrics(back.to)
    console.print(
        f"[yellow]{why} up to step {step}: going back to {good[-1]}, and on from there with learning rates times "
        f"{back.scale:g}",
        highlight=False,
    )
    trainer.progress = load_checkpoint(good[-1], trainer.objective, trainer.optimiser, world)


def _say_changes(run: Run, recipe: Recipe, changes: list[str], step: int, console: Console) -> None:
    if changes:
        run.change(recipe, changes, step)
        console.print(
            f"the recipe has changed since the run began: {'; '.join(changes)}", highlight=False, markup=False
        )


def _digests(mixtures: list[Mixture]) -> list[str]:
    sources = [source for mixture in mixtures for source in mixture.sources]
    return [f"{s.name} {s.manifest.digest}" for s in sources if isinstance(s, FootageSource)]


def _summary(trainer: Trainer) -> dict[str, Any]:
    step, seconds = trainer.progress.step, trainer.progress.seconds
    clips = int(trainer.schedule.first_sample[step - 1]) + trainer.schedule.stage_of(step - 1).batch if step else 0
    return {
        "steps": step,
        "clips": clips,
        "seconds": seconds,
        "clips_per_second": clips / max(seconds, 1e-9),
        "skipped": trainer.progress.skipped,
        "rollbacks": len(trainer.rollbacks),
    }
