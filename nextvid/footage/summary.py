"""What a scan has found, in figures."""

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

FORMAT_VERSION = 1


def summarise(rows: pa.Table) -> dict[str, Any]:
    """The figures of a manifest's rows: ``found = usable + broken + duplicates + too_short``, and ``hours`` of usable video.

    ``broken`` counts by reason; ``videos``, ``pictures``, ``bytes``, ``codecs``, ``rotated`` and ``labels`` (how many
    different ones) are of what is usable.
    """
    status = Counter(rows["status"].to_pylist())
    broken = Counter(rows.filter(pc.equal(rows["status"], "broken"))["reason"].to_pylist())
    usable = rows.filter(pc.equal(rows["status"], "usable"))
    kinds = Counter(usable["kind"].to_pylist())
    return {
        "format_version": FORMAT_VERSION,
        "found": rows.num_rows,
        "usable": status["usable"],
        "broken": dict(sorted(broken.items())),
        "duplicates": status["duplicate"],
        "too_short": status["too_short"],
        "hours": (pc.sum(usable["seconds"]).as_py() or 0.0) / 3600,
        "videos": kinds["video"],
        "pictures": kinds["picture"],
        "bytes": pc.sum(usable["bytes"]).as_py() or 0,
        "codecs": dict(Counter(usable["codec"].to_pylist()).most_common()),
        "rotated": pc.sum(pc.not_equal(usable["rotation"], 0)).as_py() or 0,
        "labels": pc.count_distinct(usable["label"]).as_py(),
    }


def words_of(summary: dict[str, Any]) -> str:
    """The counts in one line."""
    return (
        f"{summary['found']} files found, {summary['usable']} usable ({summary['hours']:.2f} h), "
        f"{sum(summary['broken'].values())} broken, {summary['duplicates']} duplicates, {summary['too_short']} too short"
    )
