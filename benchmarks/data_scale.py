"""A manifest of a thousand rows and of ten million, each used in a fresh process."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa

from nextvid.data.manifest import BATCH_ROWS, SCHEMA, write_manifest

SMALL = 1000
NEW_FILES = 500

WORKER = """
import json, os, sys, time
import numpy as np
from nextvid.data.footage import FootageSource
from nextvid.data.manifest import Manifest
from nextvid.data.mixture import Mixture
from nextvid.data.loader import BatchPlan, batches

def private():
    with open("/proc/self/smaps_rollup") as file:
        rows = dict(line.split(":") for line in file if line.startswith("Private_Dirty"))
    return sum(int(size.split()[0]) for size in rows.values()) / 1024

before, start = private(), time.perf_counter()
mixture = Mixture([FootageSource(Manifest(sys.argv[1]))], [1.0], 0)
mixture.choice(0)
opened = time.perf_counter() - start
source, count = mixture.sources[0], 20000
start = time.perf_counter()
for number in range(count):
    source.manifest[mixture.choice(number * 7919).item]
sampled = (time.perf_counter() - start) / count
print(json.dumps({"start_seconds": opened, "sample_microseconds": sampled * 1e6, "private_mb": private() - before}))
"""

SCAN = """
import json, shutil, sys, time
from pathlib import Path
from rich.console import Console
from nextvid.footage import scan as scanning

marks = []
look = scanning._look_at

def timed(*arguments):
    marks.append(time.perf_counter())
    try:
        return look(*arguments)
    finally:
        marks.append(time.perf_counter())

scanning._look_at = timed
files = len(list(Path(sys.argv[1]).iterdir()))
start = time.perf_counter()
scanning.scan([sys.argv[1]], Path(sys.argv[2]), console=Console(quiet=True))
found = {"scan_start_seconds": marks[0] - start, "scan_milliseconds_a_file": (marks[1] - marks[0]) / files * 1e3}
print(json.dumps(found))
"""


def scale(home: Path, rows: int) -> dict[str, Any]:
    """Start-up, time a sample and private memory of a worker for both sizes, and what a new file costs a scan."""
    found: dict[str, Any] = {}
    for count in (SMALL, rows):
        manifest = home / f"{count}.parquet"
        start = time.perf_counter()
        write_manifest(manifest, _rows(count), {"settings": {"everything": False, "min_frames": 2}})
        found[str(count)] = {
            "write_seconds": time.perf_counter() - start,
            "manifest_mb": manifest.stat().st_size / 1e6,
            "arrow_mb": manifest.with_name(f"{manifest.name}.arrow").stat().st_size / 1e6,
            **_run(WORKER, str(manifest)),
            **_run(SCAN, str(_new_files(home / f"new-{count}")), str(manifest)),
        }
    for figure in ("sample_microseconds", "scan_milliseconds_a_file"):
        found[f"{figure}: ratio"] = round(found[str(rows)][figure] / found[str(SMALL)][figure], 3)
    return found


def _new_files(folder: Path) -> Path:
    """Videos that no row is of."""
    folder.mkdir()
    for number in range(NEW_FILES):
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width = stream.height = 64
            for level in range(10):
                picture = np.full((64, 64, 3), (level * 20 + number) % 256, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    return folder


def _run(code: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def _rows(count: int) -> Iterator[pa.RecordBatch]:
    """Videos of 10 s, every twentieth broken."""
    for start in range(0, count, BATCH_ROWS):
        numbers = np.arange(start, min(start + BATCH_ROWS, count))
        size = len(numbers)
        columns: dict[str, Any] = {field.name: pa.nulls(size, field.type) for field in SCHEMA}
        columns |= {
            "path": pa.array(
                [f"/footage/part-{number // 1000:05d}/video-{number:08d}.mp4" for number in numbers.tolist()]
            ),
            "offset": pa.repeat(pa.scalar(0, pa.int64()), size),
            "status": pa.array(np.where(numbers % 20 == 0, "broken", "usable")),
            "reason": pa.array(np.where(numbers % 20 == 0, "truncated", "")),
            "kind": pa.repeat("video", size),
            "codec": pa.repeat("h264", size),
            "width": pa.repeat(pa.scalar(340, pa.int32()), size),
            "height": pa.repeat(pa.scalar(256, pa.int32()), size),
            "fps": pa.repeat(30.0, size),
            "frames": pa.repeat(pa.scalar(300, pa.int64()), size),
            "seconds": pa.repeat(10.0, size),
            "decoded": pa.repeat("part", size),
            "bytes": pa.array(10_000 + numbers),
            "modified": pa.repeat(1.0, size),
        }
        yield pa.record_batch([columns[field.name].cast(field.type) for field in SCHEMA], schema=SCHEMA)
