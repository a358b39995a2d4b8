"""Named tensors in a folder, by torch's distributed checkpoint: written by any number of processes and read by any other.

Its index is a pickle. It is read here by an unpickler that knows the index's own classes and nothing else, and tensors are
read with ``weights_only``, so that a checkpoint from anywhere can hold no code that runs.
"""

import pickle
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from nextvid.errors import UserError
from nextvid.training.distributed import World

# What one process saves for itself is meant so. (A filter for good: what warns may be another thread.)
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

INDEX = ".metadata"
_CHECKPOINT = "torch.distributed.checkpoint.metadata"
_INDEX_CLASSES = {
    _CHECKPOINT: {
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties", "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool", "strided"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "pathlib._local": {"PosixPath"},
}  # fmt: skip


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _INDEX_CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no index of tensors does")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        return read_index(Path(self.path))


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], world: World) -> Future[Any]:
    """Begin to write ``tensors``, which all processes name alike, to ``folder``; they may change as soon as this returns.

    The future ends when every process has written its part, with the error of any of them.
    """
    future = async_save(
        dict(tensors),
        storage_writer=FileSystemWriter(folder),
        process_group=world.saving,
        no_dist=world.ranks == 1,
    )
    assert isinstance(future, Future)
    return future


def read_index(folder: Path) -> Metadata:
    """The index of a folder of tensors. Raises ``UserError`` where it is none, or holds anything but tensors."""
    file = folder / INDEX
    try:
        with file.open("rb") as handle:
            return _checked(handle)
    except (OSError, EOFError, pickle.UnpicklingError, AttributeError, ValueError, IndexError, TypeError) as error:
        raise UserError(f"{file} cannot be read as an index of tensors ({error})") from error


def _checked(handle: IO[bytes]) -> Metadata:
    found = _IndexUnpickler(handle).load()
    if not isinstance(found, Metadata):
        raise ValueError(f"it is a {type(found).__name__}")
    other = [name for name, entry in found.state_dict_metadata.items() if not isinstance(entry, TensorStorageMetadata)]
    if other:
        raise ValueError(f"{other[0]} is not a tensor")
    return found


def shapes(folder: Path) -> dict[str, torch.Size]:
    """The names of the tensors in ``folder``, and their shapes."""
    return {name: entry.size for name, entry in _entries(folder).items()}


def read_tensors(folder: Path, wanted: Callable[[str], bool] | Iterable[str] = lambda _name: True) -> dict[str, Tensor]:
    """Whole tensors of ``folder``, on the CPU, in this process alone: those named, or those whose names are wanted.

    Raises ``UserError`` where they cannot be read.
    """
    entries = _entries(folder)
    names = [name for name in entries if wanted(name)] if callable(wanted) else list(wanted)
    tensors = {name: torch.empty(entries[name].size, dtype=entries[name].properties.dtype) for name in names}
    _load(folder, tensors, World())
    return tensors


def fill_tensors(folder: Path, tensors: dict[str, Tensor], world: World) -> None:
    """Overwrite ``tensors`` with those of ``folder``, each process what it holds of each. Raises ``UserError``."""
    _load(folder, tensors, world)


def _entries(folder: Path) -> dict[str, TensorStorageMetadata]:
    return cast(dict[str, TensorStorageMetadata], read_index(folder).state_dict_metadata)


def _load(folder: Path, tensors: dict[str, Tensor], world: World) -> None:
    try:
        load(dict(tensors), storage_reader=_Reader(folder), process_group=world.saving, no_dist=world.ranks == 1)
    except (OSError, RuntimeError, KeyError, ValueError, CheckpointException) as error:
        raise UserError(f"the tensors of {folder} cannot be read ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
