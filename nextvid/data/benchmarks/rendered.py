"""Benchmarks that are rendered once, into the cache folder: in shards, by several processes, read as memory maps.

What is kept of a clip is one *row*, a uint8 array whose meaning is the benchmark's own. A shard holds ``SHARD`` rows and
is whole or absent, so that a rendering that was stopped goes on where it was. Only the shards that a split's length asks
for are rendered.

The processes are started afresh rather than forked, and by a command of their own rather than from ``__main__``, so that
any script, notebook or loader's worker can be the first to ask.
"""

import contextlib
import fcntl
import functools
import importlib.util
import io
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int, UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nextvid.data.clip import ClipSpec
from nextvid.data.film import Split, cache_folder
from nextvid.errors import UserError
from nextvid.files import replace_file

FRAMES = 32
FPS = 12.0
"""Every clip is rendered as 32 frames, 12 a second: 2.67 s of true time."""

SHARD = 48
DONE = b"whole shard "
ORDER_BYTES = 4
CANNOT_WRITE = 3

Row = UInt8[np.ndarray, "..."]
Draw = Callable[[int], Row]


@dataclass(frozen=True)
class Rendering:
    """How a benchmark's rows are made.

    ``package`` is the module that draws; a row has ``shape``. ``stage`` opens what draws one split (a function of a
    module, so that other processes find it) and gives a pure function from the number of a clip to its row. Whoever
    changes what the rows show raises ``version``.
    """

    name: str
    version: int
    package: str
    shape: tuple[int, ...]
    stage: Callable[[Split], AbstractContextManager[Draw]]

    def folder(self, split: Split) -> Path:
        """Where the shards of ``split`` are kept."""
        return cache_folder() / "benchmarks" / f"{self.name}-{self.version}-{split}"

    def shard(self, split: Split, number: int) -> Path:
        """The file of the rows from ``number * SHARD`` on."""
        return self.folder(split) / f"{number:04d}.npy"


@dataclass(frozen=True)
class Rows:
    """The rows of the first ``length`` clips of a split, rendered when the first of them that is missing is asked for."""

    rendering: Rendering
    split: Split
    length: int

    def __post_init__(self) -> None:
        """Raise ``UserError`` if something has yet to be rendered and the package that renders is not installed."""
        package = self.rendering.package
        if importlib.util.find_spec(package) is None and self.missing():
            raise UserError(
                f"{self.rendering.name} is rendered by {package}, which is not installed: "
                "pip install nextvid[benchmarks]"
            )

    def __getitem__(self, index: int) -> Row:
        """The row of clip ``index``, memory-mapped. Raises ``UserError`` where the cache cannot hold the rows."""
        number, place = divmod(index, SHARD)
        shard = self.rendering.shard(self.split, number)
        with contextlib.suppress(OSError, ValueError):
            return _mapped(shard, self.rendering.shape)[place]
        self.render()
        return _mapped(shard, self.rendering.shape)[place]

    def missing(self) -> list[int]:
        """The numbers of the shards that are absent or damaged."""
        return [
            number
            for number in range(math.ceil(self.length / SHARD))
            if not _whole(self.rendering.shard(self.split, number), self.rendering.shape)
        ]

    def render(self) -> None:
        """Render what is missing; of several processes that ask at once, one renders and the others wait.

        Raises ``UserError`` where the cache folder cannot be written or has too little room, and ``RuntimeError``, with
        its last words, where the renderer fails and nothing gets whole.
        """
        if not self.missing():
            return
        folder = self.rendering.folder(self.split)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder):
                self._make_room(folder, len(self.missing()))
                self._render_all()
        except OSError as error:
            raise self._cannot(folder, str(error)) from error

    def _render_all(self) -> None:
        """Render until nothing is missing: a game that crashed now and then is begun again, one that always does is not."""
        while missing := self.missing():
            try:
                _render(self.rendering, self.split, missing)
            except RuntimeError:
                if len(self.missing()) == len(missing):
                    raise

    def _make_room(self, folder: Path, shards: int) -> None:
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        free, needed = shutil.disk_usage(folder).free, shards * SHARD * math.prod(self.rendering.shape)
        if free < needed:
            raise self._cannot(folder, f"{needed >> 20} MiB are needed and {free >> 20} MiB are free")

    def _cannot(self, folder: Path, reason: str) -> UserError:
        return UserError(
            f"{self.rendering.name} ({self.split}) cannot be rendered into {folder}: {reason}. "
            "Set NEXTVID_CACHE to a folder that can be written and has room."
        )


def frame_numbers(name: str, spec: ClipSpec) -> Int[np.ndarray, " frames"]:
    """Which rendered frames make a clip of ``spec``: ``spec.fps`` a second of true time, about the middle one.

    Frame ``spec.frames // 2`` is always rendered frame ``FRAMES // 2``; above ``FPS`` frames repeat. Raises
    ``UserError`` for a clip that is longer than what is rendered.
    """
    steps = np.arange(spec.frames) - spec.frames // 2
    numbers = FRAMES // 2 + np.floor(steps * (FPS / spec.fps) + 1e-9).astype(np.int64)
    if numbers[0] < 0 or numbers[-1] >= FRAMES:
        raise UserError(
            f"A clip of {spec.frames} frames at {spec.fps:g} fps lasts {spec.frames / spec.fps:.1f} s, but those of {name} "
            f"last {FRAMES / FPS:.1f} s ({FRAMES} frames at {FPS:g} fps); ask for fewer frames or a higher fps."
        )
    return numbers


@functools.lru_cache(maxsize=512)
def _mapped(path: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    rows = np.load(path, mmap_mode="r")
    if rows.shape != (SHARD, *shape) or rows.dtype != np.uint8:
        raise ValueError(f"{path} holds {rows.dtype} {rows.shape}, not uint8 {(SHARD, *shape)}")
    return rows


def _whole(path: Path, shape: tuple[int, ...]) -> bool:
    try:
        _mapped(path, shape)
    except (OSError, ValueError):
        return False
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _render(rendering: Rendering, split: Split, missing: list[int]) -> None:
    """Have as many processes as there are processors render the shards ``missing``, and show how far they are."""
    crew = min(len(os.sched_getaffinity(0)), len(missing))
    with tempfile.TemporaryFile() as complaints, _progress(rendering, split, len(missing)) as advance:
        (taking, giving), (hearing, telling) = os.pipe(), os.pipe()
        workers = [_start(rendering, split, taking, telling, complaints) for _ in range(crew)]
        os.close(taking)
        os.close(telling)
        try:
            with contextlib.suppress(BrokenPipeError), open(giving, "wb") as orders:
                orders.write(b"".join(number.to_bytes(ORDER_BYTES, "little") for number in missing))
            with open(hearing, "rb") as lines:
                for line in lines:
                    if line.startswith(DONE):
                        advance()
            codes = [worker.wait() for worker in workers]
        finally:
            _stop(workers)
        _check(rendering, codes, complaints)


def _start(
    rendering: Rendering, split: Split, orders: int, output: int, complaints: BinaryIO
) -> subprocess.Popen[bytes]:
    """A process that takes one order after another from ``orders``, which all of them share."""
    program = "from nextvid.data.benchmarks.rendered import work; work()"
    command = [sys.executable, "-c", program, pickle.dumps((rendering, split)).hex()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdin=orders, stdout=output, stderr=complaints, env=environment)


def _stop(workers: list[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.wait()


def _check(rendering: Rendering, codes: list[int], complaints: BinaryIO) -> None:
    """Raise what went wrong in the processes that ended with ``codes``, in their own last words."""
    if not any(codes):
        return
    complaints.seek(0)
    words = complaints.read().decode(errors="replace").strip()
    if CANNOT_WRITE in codes:
        raise OSError(words.splitlines()[-1])
    raise RuntimeError(f"rendering {rendering.name} ended with {codes}:\n{words[-2000:]}")


@contextlib.contextmanager
def _progress(rendering: Rendering, split: Split, shards: int) -> Iterator[Callable[[], None]]:
    """A line on standard error and, on a terminal, a bar; what it gives is called for every whole shard."""
    console = Console(stderr=True)
    clips, title = shards * SHARD, f"{rendering.name} ({split})"
    room = clips * math.prod(rendering.shape) >> 20
    console.print(
        f"{title}: rendering {clips} clips once, {room} MiB in {rendering.folder(split)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=clips)
        yield lambda: bar.advance(task, SHARD)


def work() -> None:
    """What a rendering process does: take orders (numbers of shards) from standard input, render, and name what is whole.

    It ends with ``CANNOT_WRITE`` where the cache folder refuses, and by itself when nobody listens any longer.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # so that games and clients are closed
    rendering, split = pickle.loads(bytes.fromhex(sys.argv[1]))
    with rendering.stage(split) as draw:
        while order := os.read(0, ORDER_BYTES):
            number = int.from_bytes(order, "little")
            rows = np.stack([draw(index) for index in range(number * SHARD, (number + 1) * SHARD)])
            _save(rendering.shard(split, number), rows)
            os.write(1, DONE + b"%d\n" % number)


def _save(path: Path, rows: UInt8[np.ndarray, "..."]) -> None:
    content = io.BytesIO()
    np.save(content, rows)
    try:
        replace_file(path, content.getvalue())
    except OSError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(CANNOT_WRITE)
