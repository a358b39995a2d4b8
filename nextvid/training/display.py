"""What a person watching a run sees: a bar on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

SECONDS_BETWEEN_LINES = 20.0


class Display:
    """Progress of ``steps`` steps with live figures."""

    def __init__(self, console: Console, steps: int, done: int) -> None:
        self.console = console
        self.steps = steps
        self.started = time.monotonic()
        self.first = done
        self.last_line = self.started
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("pretraining", total=steps, completed=done, figures="")

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(self, step: int, stage: str, figures: dict[str, float]) -> None:
        """Show that ``step`` steps are done."""
        text = "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
        self.bar.update(self.task, completed=step, description=stage, figures=text)
        now = time.monotonic()
        if not self.console.is_terminal and (now - self.last_line > SECONDS_BETWEEN_LINES or step == self.steps):
            self.last_line = now
            left = (now - self.started) / max(step - self.first, 1) * (self.steps - step)
            self.console.print(
                f"{stage}: step {step}/{self.steps}, {left:.0f} s left  {text}", highlight=False, soft_wrap=True
            )
