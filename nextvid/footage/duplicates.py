"""Files with the same content: the first of each is kept."""

from collections import defaultdict

import numpy as np
import pyarrow as pa

from nextvid.data.locations import Place
from nextvid.data.manifest import SCHEMA
from nextvid.footage.inspect import SAMPLED_BYTES, content_of


def mark_duplicates(rows: pa.Table) -> pa.Table:
    """``rows`` in which every usable file whose content an earlier one has is a ``duplicate``.

    Large files that seem the same, by size and three parts of them, are read whole to be sure.
    """
    status = np.array(rows["status"].to_pylist(), dtype=object)
    status[status == "duplicate"] = "usable"
    usable = np.flatnonzero(status == "usable")
    contents = rows["content"].take(pa.array(usable)).combine_chunks().dictionary_encode().indices.to_numpy()
    _, first, inverse = np.unique(contents, return_index=True, return_inverse=True)
    later = np.flatnonzero(first[inverse] != np.arange(len(usable)))
    groups: dict[int, list[int]] = defaultdict(list)
    for place in later.tolist():
        groups[int(usable[first[inverse[place]]])].append(int(usable[place]))
    for original, copies in groups.items():
        for copy in copies if rows["bytes"][original].as_py() <= 3 * SAMPLED_BYTES else _same(rows, original, copies):
            status[copy] = "duplicate"
    place = SCHEMA.get_field_index("status")
    return rows.set_column(place, rows.schema.field(place), pa.array(status.tolist(), rows.schema.field(place).type))


def _same(rows: pa.Table, original: int, copies: list[int]) -> list[int]:
    """Those of ``copies`` that are the original's place again, or its content to the last byte."""
    places = {number: _place(rows, number) for number in (original, *copies)}
    whole = None
    same = []
    for copy in copies:
        if places[copy] != places[original]:
            try:
                whole = whole or content_of(places[original], sampled=False)
                if content_of(places[copy], sampled=False) != whole:
                    continue
            except OSError:  # gone meanwhile: training will name it
                continue
        same.append(copy)
    return same


def _place(rows: pa.Table, number: int) -> Place:
    row = rows.select(["path", "offset", "length"]).slice(number, 1).to_pylist()[0]
    return Place(row["path"], row["offset"] or 0, row["length"])
