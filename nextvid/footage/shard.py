"""One shard: a WebDataset tar of clips, and beside it a Parquet file that says what is in it."""

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from nextvid.data.clip import BrokenFile
from nextvid.data.locations import written
from nextvid.data.manifest import SCHEMA, explained_writing
from nextvid.files import checksum, replacing
from nextvid.footage.encode import Clip, FileEncoder
from nextvid.footage.plan import FORMAT_VERSION, PrepareSettings, Shard, SourceFile, files_of

_FACTS = b"nextvid-shard"
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class ShardTask:
    """All that a worker on any machine needs to make a shard; it must see ``manifest``, its footage and ``folder``.

    ``plan``: the digest of the plan; ``broken``: the files that are not to be tried, by their row, and why.
    """

    folder: Path
    manifest: Path
    settings: PrepareSettings
    plan: str
    shard: Shard
    broken: tuple[tuple[int, str], ...] = ()

    @property
    def tar(self) -> Path:
        """The clips."""
        return self.folder / f"{self.shard.stem}.tar"

    @property
    def sidecar(self) -> Path:
        """What is in them; there once the shard is whole."""
        return self.folder / f"{self.shard.stem}.parquet"


@dataclass(frozen=True)
class ShardProgress:
    """How far a shard is: the manifest's row at work, clips and bytes so far, and the seconds of footage behind them.

    ``row``: None once all files are done and the shard is being closed.
    """

    row: int | None
    clips: int
    bytes: int
    work: float


@dataclass(frozen=True)
class ShardFacts:
    """What a shard holds: ``files = usable + broken + too_short``; ``shots = clips' shots + left_out``.

    ``too_short``: videos of which no shot has frames enough for a clip. ``seconds``: of video clips.
    ``bytes`` and ``sha256`` are the tar's, ``bytes_in`` the usable files'.
    """

    format_version: int
    plan: str
    number: int
    files: int
    usable: int
    broken: dict[str, int]
    too_short: int
    clips: int
    videos: int
    shots: int
    left_out: int
    seconds: float
    bytes_in: int
    bytes: int
    sha256: str


Report = Callable[[ShardProgress], None]


def make_shard(task: ShardTask, report: Report = lambda progress: None) -> ShardFacts:
    """Encode the shard's files and write it, whole or not at all: the tar first, then what says that it is there.

    A file that cannot be decoded to its end is counted with its reason and none of its clips is kept. The same task
    gives the same bytes. Raises ``UserError`` where the disk cannot take it.
    """
    task.sidecar.unlink(missing_ok=True)
    with explained_writing(task.tar), replacing(task.tar) as beside:
        with beside.open("wb") as file:
            contents = _Contents(task, file, report)
            for source in files_of(task.manifest, task.shard):
                contents.add(source)
            contents.close()
        facts = contents.facts(checksum(beside))
    table = pa.Table.from_pylist(contents.rows, SCHEMA)
    with explained_writing(task.sidecar), replacing(task.sidecar) as beside:
        pq.write_table(table.replace_schema_metadata({_FACTS: json.dumps(asdict(facts))}), beside, compression="zstd")
    return facts


def read_shard(sidecar: Path) -> tuple[ShardFacts, pa.Table]:
    """What is in a shard: a row a clip and a row a file without. ``OSError`` or ``ValueError`` where that cannot be read."""
    table = pq.read_table(sidecar)
    facts = json.loads((table.schema.metadata or {}).get(_FACTS, b"{}"))
    try:
        return ShardFacts(**facts), table.replace_schema_metadata(None)
    except TypeError as error:
        raise ValueError(f"{sidecar} does not say what is in its shard") from error


def is_whole(task: ShardTask, verify: bool = False) -> bool:
    """Whether the shard is there as the task would make it, by its size, or with ``verify`` by its checksum."""
    try:
        facts, _ = read_shard(task.sidecar)
        return (
            facts.plan == task.plan
            and facts.number == task.shard.number
            and task.tar.stat().st_size == facts.bytes
            and (not verify or checksum(task.tar) == facts.sha256)
        )
    except (OSError, ValueError):
        return False


class _Tar:
    """A tar that is written front to back, and can be taken back to where it was."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = 0

    def add(self, name: str, content: bytes) -> int:
        """Write a member; returns where its content begins."""
        header = tarfile.TarInfo(name)
        header.size = len(content)
        self._file.write(header.tobuf(tarfile.USTAR_FORMAT))
        self._file.write(content + bytes(-len(content) % _BLOCK))
        begin = self.size + _BLOCK
        self.size = begin + len(content) + -len(content) % _BLOCK
        return begin

    def take_back(self, size: int) -> None:
        """Forget all after the first ``size`` bytes."""
        self._file.seek(size)
        self._file.truncate()
        self.size = size

    def close(self) -> None:
        """Write the end mark."""
        self._file.write(bytes(2 * _BLOCK))
        self._file.flush()
        self.size += 2 * _BLOCK


class _Contents:
    """What has gone into a shard so far."""

    def __init__(self, task: ShardTask, file: BinaryIO, report: Report) -> None:
        self.task = task
        self.report = report
        self.tar = _Tar(file)
        self.rows: list[dict[str, Any]] = []
        self.files = self.clips = self.shots = self.left_out = self.too_short = self.bytes_in = 0
        self.work = self.seconds = 0.0
        self.reasons = Counter[str]()
        self.skip = dict(task.broken)

    def add(self, source: SourceFile) -> None:
        """Encode a file; one that breaks leaves nothing but its row."""
        size = self.tar.size
        self.files += 1
        self._say(source.number, 0, 0.0)
        try:
            if source.number in self.skip:
                raise BrokenFile(str(source.place), self.skip[source.number])
            self._keep(source, *self._encode(source))
        except BrokenFile as error:
            self.tar.take_back(size)
            self.reasons[error.reason] += 1
            self.rows.append(_row_without_clip(source, "broken", error.reason))
        self.work += source.work

    def close(self) -> None:
        """End the tar; this, and what comes after it, is no file's work."""
        self._say(None, 0, 0.0)
        self.tar.close()

    def _encode(self, source: SourceFile) -> tuple[list[dict[str, Any]], int]:
        """The rows of a file's clips, which are written; how many shots were left out."""
        encoder = FileEncoder(source.place, source.kind, self.task.settings)
        rows: list[dict[str, Any]] = []
        for clip in encoder.clips():
            rows.append(self._write(source, clip, len(rows)))
            self._say(source.number, len(rows), min(clip.end, source.work))
        return rows, encoder.left_out

    def _keep(self, source: SourceFile, rows: list[dict[str, Any]], left_out: int) -> None:
        self.rows += [{name: row[name] for name in SCHEMA.names} for row in rows]
        self.clips += len(rows)
        self.shots += len({row["shot"] for row in rows}) if source.kind == "video" else 0
        self.left_out += left_out
        if not rows:
            self.too_short += 1
            self.rows.append(_row_without_clip(source, "too_short"))
            return
        self.seconds += sum(row["seconds"] for row in rows)
        self.bytes_in += source.bytes

    def _say(self, row: int | None, clips: int, work: float) -> None:
        self.report(ShardProgress(row, self.clips + clips, self.tar.size, self.work + work))

    def _write(self, source: SourceFile, clip: Clip, number: int) -> dict[str, Any]:
        """Write a clip's members; returns its row, and the number of its shot."""
        key = f"{source.number:09d}_{number:05d}"
        name = f"{key}.{'jpg' if clip.kind == 'picture' else 'mp4'}"
        offset = self.tar.add(name, clip.data)
        about = {"source": source.called, "row": source.number, "label": source.label}
        times = {"start": clip.start, "end": clip.end, "shot": clip.shot, "frames": clip.frames}
        self.tar.add(f"{key}.json", json.dumps({**about, **times}).encode())
        if source.label is not None and source.label.isdecimal():
            self.tar.add(f"{key}.cls", source.label.encode())
        video = clip.kind == "video"
        return {
            **dict.fromkeys(SCHEMA.names),
            "path": self.task.tar.name,
            "offset": offset,
            "length": len(clip.data),
            "name": f"{self.task.tar.name}/{name}",
            "status": "usable",
            "kind": clip.kind,
            "codec": clip.codec,
            "width": clip.width,
            "height": clip.height,
            "rotation": 0,
            "fps": clip.fps,
            "frames": clip.frames,
            "seconds": clip.seconds,
            "keyframe_seconds": min(clip.seconds, self.task.settings.keyframes / clip.fps) if video else None,
            "decoded": "all",
            "shots": [0.0] if video else [],
            "label": source.label,
            "bytes": len(clip.data),
            "content": hashlib.blake2b(clip.data, digest_size=16).hexdigest(),
            "shot": clip.shot,
        }

    def facts(self, sha256: str) -> ShardFacts:
        """What has come of it."""
        broken = sum(self.reasons.values())
        return ShardFacts(
            format_version=FORMAT_VERSION,
            plan=self.task.plan,
            number=self.task.shard.number,
            files=self.files,
            usable=self.files - broken - self.too_short,
            broken=dict(sorted(self.reasons.items())),
            too_short=self.too_short,
            clips=self.clips,
            videos=sum(row["kind"] == "video" for row in self.rows),
            shots=self.shots + self.left_out,
            left_out=self.left_out,
            seconds=self.seconds,
            bytes_in=self.bytes_in,
            bytes=self.tar.size,
            sha256=sha256,
        )


def _row_without_clip(source: SourceFile, status: str, reason: str | None = None) -> dict[str, Any]:
    return {
        **dict.fromkeys(SCHEMA.names),
        "path": written(source.place.path),
        "offset": source.place.offset or None,
        "length": source.place.length,
        "name": source.place.name or None,
        "status": status,
        "reason": reason,
        "label": source.label,
        "bytes": source.bytes,
    }
