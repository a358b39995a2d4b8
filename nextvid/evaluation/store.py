"""Tokens on disk: Arrow files, mapped into memory, written shard by shard so that an interrupted extraction goes on.

A shard holds the rows of some samples. Its columns are ``row`` and ``tokens``, a fixed-size list of float16 or float32. Of
float16 the file's metadata hold a ``centre`` and a ``scale`` for each channel, by which values are kept near 0 and 1: features
whose mean is large beside their deviation would lose it otherwise.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nextvid.errors import Stopped, UserError
from nextvid.evaluation.features import Plan, Rows, track
from nextvid.evaluation.fresh import READ_CLIPS, FreshTokens, RowTokens
from nextvid.files import read_json, replace_json, replacing, saying_where_disks_fail
from nextvid.training.distributed import World

Kind = Literal["float16", "float32"]
FORMAT_VERSION = 1
BROKEN = ".broken.json"
"""How the names of files end that say what could not be read, beside a shard."""
SHARD_BYTES = 2**28
"""About how large a shard is."""


def check_room(folder: Path, wanted: int, share: float, what: str) -> str:
    """A sentence with the size of a cache. Raises ``UserError`` where it is more than ``share`` of the disk that is free for it.

    What lies in ``folder`` already is part of the cache, and counts as free.
    """
    free = room_in(folder)
    sentence = f"{what}: {_size(wanted)} in {folder}, {wanted / max(1, free):.0%} of the {_size(free)} that are free"
    if wanted > share * free:
        raise UserError(
            f"{sentence}, and more than disk_share={share:g} of it: make room, choose another --out, raise disk_share, or "
            "encode in every epoch with features=fresh"
        )
    return sentence


def room_in(folder: Path) -> int:
    """Free bytes of the disk that ``folder`` is on, with those of the shards that lie there already."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(there).free + sum(file.stat().st_size for file in folder.rglob("*.arrow"))


def _size(count: int | float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def write_store(
    supply: FreshTokens,
    folder: Path,
    title: str,
    copies: int = 1,
    kind: Kind = "float16",
    *,
    world: World | None = None,
    progress: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> "StoredTokens":
    """Encode all of ``supply`` into ``folder``, but what is there already; ``copies`` draws of each sample's augmentation.

    Each process writes its own shards. Raises ``UserError`` where the disk does not take it, or nothing could be read, and
    ``Stopped`` where ``stop`` says so: whole shards are kept.
    """
    world = world or World()
    folder.mkdir(parents=True, exist_ok=True)
    with saying_where_disks_fail(folder):
        with world.together():
            samples = _samples_a_shard(supply, copies)
        shards = list(torch.arange(len(supply)).split(samples))
        # What the first process sees before any writes: each looking for itself would see what faster ones have done since.
        todo = world.gather([number for number in range(len(shards)) if not _file(folder, number).is_file()])[0]
        with world.together():
            missing = todo
            mine = missing[world.rank :: world.ranks]
            for number in track(mine, len(mine), f"{title}, shards", progress and world.first):
                if stop():
                    break
                _write_shard(supply, _file(folder, number), shards[number], copies, kind)
        if world.most([int(stop())])[0]:
            raise Stopped("stopped while features were stored")
        if world.first and not (folder / "store.json").is_file():
            replace_json(folder / "store.json", {"format_version": FORMAT_VERSION, "shards": len(shards)})
        world.gather(None)
    return StoredTokens(folder, supply.tasks, supply.labels, supply.views, supply.groups, copies)


def _samples_a_shard(supply: FreshTokens, copies: int) -> int:
    """By the size of the first sample that can be read."""
    plan = ([(0, _rows_of(sample, supply.views))] for sample in torch.arange(len(supply)).split(1))
    sizes = (tokens.numel() for one in plan for _, tokens in supply.batches(one))
    sample = next(filter(None, sizes), 1) * copies * 4
    return max(1, min(SHARD_BYTES // sample, len(supply)))


def _rows_of(samples: Int64[Tensor, " samples"], views: int) -> Rows:
    return (samples[:, None] * views + torch.arange(views)).flatten()


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.arrow"


def _write_shard(supply: FreshTokens, file: Path, samples: Int64[Tensor, " samples"], copies: int, kind: Kind) -> None:
    at_once = max(1, READ_CLIPS // (supply.views * supply.segments))
    plan = [(copy, _rows_of(part, supply.views)) for copy in range(copies) for part in samples.split(at_once)]
    writer: _Writer | None = None
    with replacing(file) as beside, pa.OSFile(str(beside), "wb") as sink:
        for (copy, _), (rows, tokens) in zip(plan, supply.batches(plan), strict=True):
            if len(rows):
                writer = writer or _Writer(sink, tokens, kind)
                writer.write(rows * copies + copy, tokens)
        if writer is None:
            writer = _Writer(sink, torch.zeros(1, 1, supply.width), kind)
        writer.close()
        if supply.reader.broken:  # before the shard itself is there: a shard without its note would hide what it lacks
            replace_json(file.with_name(file.stem + BROKEN), supply.reader.broken)


class _Writer:
    """Writes rows of tokens to an open file."""

    def __init__(self, sink: pa.NativeFile, first: RowTokens, kind: Kind) -> None:
        self.dtype = np.float16 if kind == "float16" else np.float32
        flat = first.float().flatten(0, 1).cpu()
        self.centre = flat.mean(0) if kind == "float16" else torch.zeros(flat.shape[-1])
        spread = flat.std(0, correction=0) if kind == "float16" else torch.ones(flat.shape[-1])
        self.scale = torch.where(spread > 1e-6 * self.centre.abs().clamp_min(1e-6), spread, 1.0)
        self.size = first.shape[1] * first.shape[2]
        value = pa.float16() if kind == "float16" else pa.float32()
        described = {
            "format_version": FORMAT_VERSION,
            "tokens": first.shape[1],
            "width": first.shape[2],
            "centre": self.centre.tolist(),
            "scale": self.scale.tolist(),
        }
        fields = [pa.field("row", pa.int64()), pa.field("tokens", pa.list_(value, self.size))]
        self.schema = pa.schema(fields, metadata={"nextvid": json.dumps(described)})
        self.file = pa.ipc.new_file(sink, self.schema)

    def write(self, rows: Rows, tokens: RowTokens) -> None:
        """One record batch. Raises ``UserError`` for values that are no numbers, or too large for float16."""
        with np.errstate(over="ignore"):
            values = ((tokens.float().cpu() - self.centre) / self.scale).numpy().astype(self.dtype)
        if not np.isfinite(values).all():
            raise UserError(
                "the encoder gives values that are no numbers, or beyond float16 even when they are scaled: look at the encoder, "
                "or set cached_as=float32"
            )
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), self.size)
        self.file.write_batch(pa.record_batch([pa.array(rows.numpy()), column], schema=self.schema))

    def close(self) -> None:
        """Write the file's end."""
        self.file.close()


@dataclass
class StoredTokens:
    """A :class:`nextvid.evaluation.features.Supply` of what :func:`write_store` has written.

    Epoch *e* reads copy *e* modulo ``copies``.
    """

    folder: Path
    tasks: dict[str, tuple[str, ...]]
    labels: dict[str, Int64[Tensor, " samples"]]
    views: int
    groups: int
    copies: int = 1

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self._shards[0].width

    def __len__(self) -> int:
        """The number of samples, those that could not be read included."""
        return len(next(iter(self.labels.values())))

    def batches(self, plan: Plan) -> Iterator[tuple[Rows, RowTokens]]:
        """See :class:`nextvid.evaluation.features.Supply`."""
        for epoch, rows in plan:
            stored = rows * self.copies + epoch % self.copies
            asked = zip(rows.tolist(), stored.tolist(), strict=True)
            there = [(row, self._places[number]) for row, number in asked if number in self._places]
            tokens = torch.empty(len(there), self._shards[0].tokens, self.width)
            for target, (_, (shard, place)) in zip(tokens, there, strict=True):
                self._shards[shard].fill(place, target)
            yield torch.tensor([row for row, _ in there], dtype=torch.int64), tokens

    @cached_property
    def _shards(self) -> "list[_Shard]":
        count = read_json(self.folder / "store.json").get("shards", 0)
        shards = [_Shard(_file(self.folder, number)) for number in range(count)]
        shards = [shard for shard in shards if len(shard.rows)]
        if not shards:
            raise UserError(
                f"{self.folder} holds no tokens: not one clip could be read; see which files are broken, and mend them"
            )
        return shards

    @cached_property
    def _places(self) -> dict[int, tuple[int, int]]:
        """Shard and place of every stored row."""
        return {
            row: (number, place)
            for number, shard in enumerate(self._shards)
            for place, row in enumerate(shard.rows.tolist())
        }


def broken_in(folder: Path) -> dict[str, str]:
    """The files that could not be read when the tokens in ``folder`` were made, and why."""
    return {file: why for noted in sorted(folder.glob(f"*{BROKEN}")) for file, why in read_json(noted).items()}


class _Shard:
    """One file, mapped into memory."""

    def __init__(self, file: Path) -> None:
        """Raises ``UserError`` where it is damaged."""
        try:
            opened = pa.ipc.open_file(pa.memory_map(str(file)))
            described = json.loads(opened.schema.metadata[b"nextvid"])
            batches = [opened.get_batch(number) for number in range(opened.num_record_batches)]
        except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file} is damaged ({error}): remove it, and the same command makes it anew") from error
        self.tokens, self.width = described["tokens"], described["width"]
        self.centre, self.scale = torch.tensor(described["centre"]), torch.tensor(described["scale"])
        self._values = [_values(batch, self.tokens, self.width) for batch in batches]
        self._first = np.cumsum([0, *(len(values) for values in self._values)])
        self.rows: Int64[np.ndarray, " rows"] = (
            np.concatenate([batch.column("row").to_numpy() for batch in batches]) if batches else np.empty(0, np.int64)
        )

    def fill(self, place: int, target: Float[Tensor, "tokens width"]) -> None:
        """Put row number ``place`` into ``target``, as it was encoded."""
        batch = int(np.searchsorted(self._first, place, side="right")) - 1
        torch.mul(self._values[batch][place - self._first[batch]], self.scale, out=target).add_(self.centre)


def _values(batch: pa.RecordBatch, tokens: int, width: int) -> Float[Tensor, "rows tokens width"]:
    """The numbers of a record batch, without a copy."""
    column = batch.column("tokens").flatten()
    dtype = np.float16 if pa.types.is_float16(column.type) else np.float32
    values = np.frombuffer(
        column.buffers()[1], dtype, count=len(column), offset=column.offset * np.dtype(dtype).itemsize
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the file cannot be written to, which nobody does
        return torch.from_numpy(values).view(-1, tokens, width)
