"""Weights from a file into a model: everything, or an error that names what does not fit.

Files of weights come from anywhere, so only safetensors are read: a pickle may run any code.
"""

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from nextvid.errors import UserError

PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
HEADER = 8
"""Bytes before the JSON that a safetensors file begins with."""


@dataclass(frozen=True)
class Fit:
    """Names of saved tensors beside those that a model wants: the same in both, absent there, absent here, and those of
    another shape (there, here).
    """

    fitting: list[str]
    missing: list[str]
    unknown: list[str]
    misfitting: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def complete(self) -> bool:
        """Whether the two hold the same."""
        return not (self.missing or self.unknown or self.misfitting)

    def sentences(self) -> list[str]:
        """One for each tensor that does not fit."""
        return [
            *(f"{name} is missing" for name in self.missing),
            *(f"{name} is unknown" for name in self.unknown),
            *(f"{name} is {there}, not {here}" for name, (there, here) in self.misfitting.items()),
        ]


def fit_of(saved: Mapping[str, torch.Size], wanted: Mapping[str, torch.Tensor]) -> Fit:
    """How the names and shapes ``saved`` fit the tensors ``wanted``."""
    both = [name for name in wanted if name in saved]
    other = {
        name: (tuple(saved[name]), tuple(wanted[name].shape)) for name in both if saved[name] != wanted[name].shape
    }
    return Fit(
        fitting=[name for name in both if name not in other],
        missing=[name for name in wanted if name not in saved],
        unknown=[name for name in saved if name not in wanted],
        misfitting=other,
    )


def load_weights(model: torch.nn.Module, file: Path, prefix: str = "") -> None:
    """Load the tensors of ``file`` whose names begin with ``prefix``: all that the model has, and in its shapes.

    Raises ``UserError`` naming what does not fit.
    """
    saved = read_tensors(file)
    fill(model, {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}, file)


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file. Raises ``UserError`` where it cannot be read as one."""
    with _reading(file):
        return load_file(file)


def read_metadata(file: Path) -> dict[str, str]:
    """What a safetensors file says of itself. Raises ``UserError`` where it cannot be read as one."""
    with _reading(file), safe_open(str(file), framework="pt") as handle:
        return handle.metadata() or {}


def read_shapes(file: Path) -> dict[str, torch.Size]:
    """The names of a safetensors file's tensors, and their shapes. Raises ``UserError`` where it cannot be read as one."""
    with _reading(file), safe_open(str(file), framework="pt") as handle:
        return {name: torch.Size(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118


def fill(model: torch.nn.Module, saved: Mapping[str, torch.Tensor], origin: Path) -> None:
    """Give ``model`` exactly the tensors ``saved``, which came from ``origin``, in the model's own precision.

    Raises ``UserError`` naming what does not fit.
    """
    check_fit({key: value.shape for key, value in saved.items()}, model.state_dict(), origin)
    model.load_state_dict(saved)


def check_fit(saved: Mapping[str, torch.Size], wanted: Mapping[str, torch.Tensor], origin: Path) -> None:
    """Raise ``UserError`` where the names and shapes ``saved`` in ``origin`` are not those ``wanted``, naming some."""
    found = fit_of(saved, wanted).sentences()
    if found:
        shown = "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
        raise UserError(
            f"{origin} holds another architecture than asked for: {shown}. Use the recipe that it was made with"
        )


def is_pickle(file: Path) -> bool:
    """Whether a file is a pickle, by what it begins with, or by its name where that says nothing. Nothing of it is run."""
    with file.open("rb") as handle:
        start = handle.read(HEADER + 1)
    if start[HEADER:] == b"{":
        return False
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        return True
    if start[:2] == b"PK" and zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    return file.suffix.lower() in PICKLE_SUFFIXES


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """What goes wrong with ``file`` is a sentence; a pickle is refused before anything of it is read as such."""
    try:
        if is_pickle(file):
            raise UserError(
                f"{file} is a pickle, as torch.save writes them: reading one can run any code that it holds, so it is not "
                f"read. Give a safetensors file; convert this one by tensors = torch.load('{file}', weights_only=True), "
                "which runs none of it, and safetensors.torch.save_file(tensors, 'weights.safetensors') (docs/export.md)"
            )
        yield
    except (OSError, SafetensorError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} cannot be read as safetensors ({error})") from error
