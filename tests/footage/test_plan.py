"""Which rows go into which shard."""

import itertools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextvid.data.manifest import SCHEMA, write_manifest
from nextvid.errors import UserError
from nextvid.footage.plan import PrepareSettings, files_of, plan_digest, plan_shards


def row(number: int, status: str = "usable", kind: str = "video", seconds: float = 10.0) -> dict[str, Any]:
    facts = {"path": f"{number}.mp4", "status": status, "kind": kind, "seconds": seconds if kind == "video" else 0.0}
    return {**dict.fromkeys(SCHEMA.names), **facts, "width": 640, "height": 360, "fps": 25.0, "bytes": 9}


def write(path: Path, rows: list[dict[str, Any]], batch: int = 7) -> Path:
    """A manifest in row groups of ``batch``."""
    write_manifest(path, pa.Table.from_pylist(rows, SCHEMA).to_batches(batch), {})
    return path


KINDS = st.tuples(
    st.sampled_from(["usable", "usable", "broken", "duplicate"]),
    st.sampled_from(["video", "picture"]),
    st.floats(0.0, 100.0),
)


@given(st.lists(KINDS, min_size=1, max_size=60), st.floats(0.01, 5.0), st.integers(1, 70))
def test_every_usable_row_is_in_exactly_one_shard_and_in_order(
    kinds: list[tuple[str, str, float]], shard_mb: float, batch: int
) -> None:
    rows = [row(number, *kind) for number, kind in enumerate(kinds)]
    usable = [number for number, kind in enumerate(kinds) if kind[0] == "usable"]
    settings = PrepareSettings(shard_mb=shard_mb)
    with tempfile.TemporaryDirectory() as folder:
        manifest = write(Path(folder) / "m.parquet", rows, batch)
        if not usable:
            with pytest.raises(UserError, match="no usable"):
                plan_shards(manifest, settings)
            return
        shards = plan_shards(manifest, settings)
        found = [[file.number for file in files_of(manifest, shard)] for shard in shards]
        assert plan_shards(write(Path(folder) / "n.parquet", rows), settings) == shards
    assert all(found)
    assert list(itertools.chain(*found)) == usable
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert [shard.work for shard in shards] == pytest.approx(
        [sum(rows[number]["seconds"] or 0.05 for number in numbers) for numbers in found]
    )


@pytest.mark.parametrize("name", ["seconds", "min_seconds", "fps", "shard_mb"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_settings_without_bounds_are_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name} is {value}; it must be a finite number"):
        PrepareSettings(**{name: value})


def test_shards_are_about_as_large_as_asked(tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.parquet", [row(number, seconds=1.0) for number in range(1000)])
    few, many = (len(plan_shards(manifest, PrepareSettings(shard_mb=size))) for size in (8.0, 2.0))
    assert 3.5 < many / few < 4.5
    assert len(plan_shards(manifest, PrepareSettings(shard_mb=1e-6))) == 1000
    assert len(plan_shards(manifest, PrepareSettings(shard_mb=1e6))) == 1


def test_a_relative_path_is_relative_to_the_manifest_and_named_as_it_is(tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.parquet", [row(0), {**row(1), "path": "/far/a.mp4"}, {**row(2), "name": "x.mp4"}])
    (shard,) = plan_shards(manifest, PrepareSettings())
    files = files_of(manifest, shard)
    assert [file.place.path for file in files] == [str(tmp_path / "0.mp4"), "/far/a.mp4", str(tmp_path / "2.mp4")]
    assert [file.called for file in files] == ["0.mp4", "/far/a.mp4", "x.mp4"]


def test_the_digest_changes_with_rows_and_settings_alone(tmp_path: Path) -> None:
    rows = [row(0), row(1)]
    manifest, settings = write(tmp_path / "m.parquet", rows), PrepareSettings()
    same = plan_digest(write(tmp_path / "n.parquet", rows), settings)
    assert plan_digest(manifest, settings) == same
    assert plan_digest(manifest, replace(settings, crf=24)) != same
    assert plan_digest(write(tmp_path / "o.parquet", [row(0), {**row(1), "label": "a"}]), settings) != same
