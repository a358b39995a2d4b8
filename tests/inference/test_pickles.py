"""Weights from anywhere run no code: a pickle is refused by name, and what a checkpoint holds is read without running it."""

import io
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import small_recipe
from rich.console import Console

import nextvid
from nextvid.cli import main
from nextvid.errors import UserError
from nextvid.files import checksum
from nextvid.settings import InitConfig
from nextvid.training import loop
from nextvid.training.release import start_from
from nextvid.training.trainer import build_objective
from nextvid.weights import is_pickle


class Trap:
    """Unpickled it creates a file."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.sprung), "w")


def zipped(trap: Trap) -> bytes:
    held = io.BytesIO()
    torch.save({"encoder.norm.weight": trap}, held)
    return held.getvalue()


def legacy(trap: Trap) -> bytes:
    held = io.BytesIO()
    torch.save({"encoder.norm.weight": trap}, held, _use_new_zipfile_serialization=False)
    return held.getvalue()


PICKLES: dict[str, Callable[[Trap], bytes]] = {
    "torch.pt": zipped,
    "torch.pth": zipped,
    "renamed.safetensors": zipped,
    "legacy.bin": legacy,
    "raw.pkl": pickle.dumps,
    "raw.safetensors": pickle.dumps,
    "old.pickle": lambda trap: pickle.dumps(trap, protocol=0),
}


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path / "sprung")


def start(origin: Path, **settings: Any) -> None:
    recipe = small_recipe()
    start_from(build_objective(recipe), recipe, InitConfig(origin=str(origin), **settings))


@pytest.mark.parametrize("make", [zipped, legacy, pickle.dumps], ids=["zip", "legacy", "raw"])
def test_the_traps_would_spring(trap: Trap, tmp_path: Path, make: Callable[[Trap], bytes]) -> None:
    (tmp_path / "weights").write_bytes(make(trap))
    if make is pickle.dumps:
        pickle.loads((tmp_path / "weights").read_bytes())
    else:
        torch.load(tmp_path / "weights", weights_only=False)
    assert trap.sprung.exists()


@pytest.mark.parametrize("name", list(PICKLES))
def test_a_pickle_is_refused_and_told_how_to_convert(trap: Trap, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(PICKLES[name](trap))
    for read in (nextvid.load, start, lambda path: start(path, strict=False)):
        with pytest.raises(UserError, match=r"is a pickle, .* can run any code .*weights_only=True.*save_file"):
            read(file)
    assert not trap.sprung.exists()


@pytest.mark.parametrize("make", [zipped, pickle.dumps], ids=["zip", "raw"])
def test_so_is_one_in_a_runs_folder(trap: Trap, tmp_path: Path, make: Callable[[Trap], bytes]) -> None:
    (tmp_path / "encoder.safetensors").write_bytes(make(trap))
    with pytest.raises(UserError, match="is a pickle"):
        nextvid.load(tmp_path)
    assert not trap.sprung.exists()


def test_on_the_command_line_it_is_a_sentence(
    trap: Trap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weights.pt").write_bytes(zipped(trap))
    command = ["nextvid", "pretrain", "tiny", f"init={tmp_path / 'weights.pt'}", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "is a pickle" in " ".join(capsys.readouterr().err.split())
    assert not trap.sprung.exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [(b"", "a.safetensors"), (b"words", "a.safetensors"), (b"PK\x03\x04 cut short", "a.safetensors"), (b"{}", "a")],
)
def test_other_files_are_not_called_pickles(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert not is_pickle(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        nextvid.load(tmp_path / name)


def test_a_header_whose_length_looks_like_a_pickle_is_none(tmp_path: Path) -> None:
    """A safetensors file begins with the length of its header: here 80 04, as a pickle does."""
    header = json.dumps({"__metadata__": {"note": ""}}).encode()
    header = header[:-3] + b"x" * (0x0480 - len(header)) + header[-3:]
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert (tmp_path / "a.safetensors").read_bytes()[:2] == b"\x80\x04"
    with pytest.raises(UserError, match="carries no configuration"):
        nextvid.load(tmp_path / "a.safetensors")


# A checkpoint in a run's folder is of torch's format, whose index is a pickle and whose tensors are torch.save's.


@pytest.fixture
def run(tmp_path: Path) -> Path:
    loop.pretrain(small_recipe(training={"threads": 1}), tmp_path / "run", until=1, console=Console(quiet=True))
    return tmp_path / "run"


def planted(run: Path, name: str, content: bytes) -> None:
    """Another content of a checkpoint's file, with its checksum made right."""
    checkpoint = run / "checkpoints/step_1"
    (checkpoint / name).write_bytes(content)
    state = json.loads((checkpoint / "state.json").read_text())
    state["sha256"][name] = checksum(checkpoint / name)
    (checkpoint / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize("make", [zipped, pickle.dumps], ids=["zip", "raw"])
@pytest.mark.parametrize("settings", [{}, {"strict": False}, {"optimiser": True}], ids=str)
def test_the_index_of_a_checkpoint_runs_no_code(
    run: Path, trap: Trap, make: Callable[[Trap], bytes], settings: dict[str, Any]
) -> None:
    start(run, **settings)
    planted(run, ".metadata", make(trap))
    with pytest.raises(UserError, match=r"\.metadata cannot be read as an index of tensors"):
        start(run, **settings)
    assert not trap.sprung.exists()


def test_the_tensors_of_a_checkpoint_run_no_code(run: Path, trap: Trap) -> None:
    content = zipped(trap)
    index = pickle.loads((run / "checkpoints/step_1/.metadata").read_bytes())
    for place in index.storage_data.values():
        place.offset, place.length = 0, len(content)
    planted(run, ".metadata", pickle.dumps(index))
    planted(run, "__0_0.distcp", content)
    with pytest.raises(UserError, match="cannot be read"):
        start(run)
    assert not trap.sprung.exists()
