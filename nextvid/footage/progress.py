"""What a person who waits for shards sees: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nextvid.footage.latent_shard import LatentShard
from nextvid.footage.plan import Shard
from nextvid.footage.shard import ShardFacts, ShardProgress, ShardTask

SECONDS_BETWEEN_LINES = 20.0


class _Made(NamedTuple):
    """Clips, bytes and seconds of footage."""

    clips: int = 0
    bytes: int = 0
    work: float = 0.0

    def plus(self, other: "_Made", sign: int = 1) -> "_Made":
        return _Made(self.clips + sign * other.clips, self.bytes + sign * other.bytes, self.work + sign * other.work)


class ShardsDisplay:
    """Progress over all shards of a plan, in seconds of footage, with clips a second, bytes written and the time left."""

    def __init__(self, console: Console, shards: list[Shard], left: list[ShardTask]) -> None:
        """``left``: the shards that are to be made."""
        self.console = console
        self.total = sum(shard.work for shard in shards)
        self.before = self.total - sum(task.shard.work for task in left)
        self.shards = len(shards)
        self.started = self.last_line = time.monotonic()
        self.parts: dict[int, _Made] = {}
        self.made = _Made()
        self.finished = len(shards) - len(left)
        self.bar = _bar("preparing", console)
        self.task = self.bar.add_task("", total=self.total, words="")
        self.bar.update(self.task, completed=self.before)

    def __enter__(self) -> "ShardsDisplay":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(self, task: ShardTask, part: ShardProgress | ShardFacts) -> None:
        """Show how far a shard is, or that it is done."""
        done = isinstance(part, ShardFacts)
        made = _Made(part.clips, part.bytes, task.shard.work if isinstance(part, ShardFacts) else part.work)
        self.made = self.made.plus(made).plus(self.parts.get(task.shard.number, _Made()), -1)
        self.parts[task.shard.number] = made
        self.finished += done
        self.bar.update(self.task, completed=self.before + self.made.work, words=self._words())
        now = time.monotonic()
        if not self.console.is_terminal and (now - self.last_line > SECONDS_BETWEEN_LINES or self._is_last(done)):
            self.last_line = now
            self.console.print(f"preparing: {self._words()}, {self._seconds_left():.0f} s left", highlight=False)

    def _is_last(self, done: bool) -> bool:
        return done and self.finished == self.shards

    def _words(self) -> str:
        seconds = max(time.monotonic() - self.started, 1e-9)
        return (
            f"{self.finished}/{self.shards} shards, {self.made.clips / seconds:.1f} clips/s, "
            f"{self.made.work / seconds:.1f} times real time, {self.made.bytes / 1e6:.0f} MB"
        )

    def _seconds_left(self) -> float:
        left = self.total - self.before - self.made.work
        return (
            max(0.0, time.monotonic() - self.started) * max(0.0, left) / self.made.work
            if self.made.work
            else float("inf")
        )


class FramesDisplay:
    """Progress over the frames that are encoded, with frames a second and the time left."""

    def __init__(self, console: Console, tasks: Sequence[LatentShard], left: Sequence[LatentShard]) -> None:
        self.console = console
        self.total, self.done = sum(task.frames for task in left), 0
        self.started = self.last_line = time.monotonic()
        self.bar = _bar("encoding", console)
        before = sum(task.frames for task in tasks) - self.total
        self.task = self.bar.add_task("", total=before + self.total, completed=before, words="")

    def __enter__(self) -> "FramesDisplay":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def add(self, frames: int) -> None:
        """Show that so many more frames are done."""
        self.done += frames
        now = time.monotonic()
        rate = self.done / max(now - self.started, 1e-9)
        self.bar.update(self.task, advance=frames, words=f"{rate:.0f} frames/s")
        if not self.console.is_terminal and (now - self.last_line > SECONDS_BETWEEN_LINES or self.done == self.total):
            self.last_line = now
            words = (
                f"{self.done}/{self.total} frames, {rate:.0f} frames/s, {(self.total - self.done) / rate:.0f} s left"
            )
            self.console.print(f"encoding: {words}", highlight=False)


def _bar(what: str, console: Console) -> Progress:
    return Progress(
        TextColumn(what),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[words]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=console,
        disable=not console.is_terminal,
    )
