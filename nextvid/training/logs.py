"""Where a run's rows go: ``metrics.jsonl``, TensorBoard, and Weights & Biases where it is asked for."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from nextvid.config import Recipe
from nextvid.errors import UserError
from nextvid.files import read_json, replace_json
from nextvid.randomness import key_of
from nextvid.training.run import Run

FORMAT_VERSION = 1
WANDB_FILE = "wandb.json"


class Sink(ABC):
    """Takes rows."""

    @abstractmethod
    def row(self, row: dict[str, Any]) -> None:
        """Take one."""

    def close(self) -> None:
        """Everything is where it belongs."""
        return


def open_sinks(run: Run, recipe: Recipe, step: int) -> list[Sink]:
    """All places where the rows after ``step`` go. Raises ``UserError`` where one is asked for and not to be had."""
    sinks = file_sinks(run, step)
    return [*sinks, _Wandb(run, recipe)] if recipe.training.wandb else sinks


def file_sinks(run: Run, step: int) -> list[Sink]:
    """Those in the run's folder."""
    return [_File(run), _TensorBoard(run, step)]


@contextmanager
def closing_all(sinks: list[Sink]) -> Iterator[None]:
    """Close them at the end; what one cannot write then is not more than what went wrong before."""
    try:
        yield
    except BaseException:
        for sink in sinks:
            with suppress(OSError):
                sink.close()
        raise
    for sink in sinks:
        sink.close()


def write_row(sinks: list[Sink], row: dict[str, Any]) -> None:
    """Give a row to all of them. Raises ``UserError`` where the disk does not take it."""
    try:
        for sink in sinks:
            sink.row(row)
    except OSError as error:
        raise UserError(
            f"the row of step {row['step']} could not be written ({error}); make room or mend the disk, and the same command "
            "goes on from the last checkpoint"
        ) from error


def check_sinks(recipe: Recipe) -> None:
    """Raise ``UserError`` where a recipe asks for a place that is not installed."""
    if recipe.training.wandb:
        try:
            import wandb  # noqa: F401, PLC0415
        except ImportError as error:
            raise UserError(
                f"training.wandb={recipe.training.wandb} needs Weights & Biases: pip install 'nextvid[wandb]', or leave it out"
            ) from error


class _File(Sink):
    def __init__(self, run: Run) -> None:
        self._run = run

    def row(self, row: dict[str, Any]) -> None:
        self._run.append_row(row)


class _TensorBoard(Sink):
    def __init__(self, run: Run, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

        self._writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1)

    def row(self, row: dict[str, Any]) -> None:
        for name, value in scalars(row):
            self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._writer.close()


class _Wandb(Sink):
    """One run there for one folder here, however often it is interrupted; without a network set WANDB_MODE=offline."""

    def __init__(self, run: Run, recipe: Recipe) -> None:
        import wandb  # noqa: PLC0415

        file = run.path / WANDB_FILE
        if not file.is_file():
            name = f"{key_of('wandb', str(run.path.resolve()), recipe.seed):x}"
            replace_json(file, {"format_version": FORMAT_VERSION, "id": name})
        try:
            self._run = wandb.init(
                project=recipe.training.wandb,
                name=run.path.name,
                id=read_json(file)["id"],
                resume="allow",
                dir=str(run.path),
                config=recipe.model_dump(mode="json"),
            )
        except wandb.Error as error:
            raise UserError(
                f"training.wandb={recipe.training.wandb}: {error}; log in with 'wandb login', set WANDB_MODE=offline, or leave "
                "it out"
            ) from error

    def row(self, row: dict[str, Any]) -> None:
        self._run.log(dict(scalars(row)), step=row["step"])

    def close(self) -> None:
        self._run.finish()


def scalars(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a row by name, those of an inner mapping as ``outer/inner``."""
    for name, value in row.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{key}", inner) for key, inner in value.items() if isinstance(inner, int | float))
        elif isinstance(value, int | float) and name != "step":
            yield name, value
