"""Hashes near others, found without comparing all with all."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8, UInt64

BANDS, BAND_BITS = 4, 16
_QUERIES, _CANDIDATES = 1 << 14, 1 << 22


class Near(NamedTuple):
    """Pairs of a query and a hash by their numbers, and the bits in which they differ."""

    query: Int64[np.ndarray, " pairs"]
    hash: Int64[np.ndarray, " pairs"]
    bits: UInt8[np.ndarray, " pairs"]


class HashIndex:
    """Hashes among which those within ``bits`` bits of others are found, without comparing all with all.

    Of four bands of 16 bits one must differ little: with ``bits = 4 r + a`` one of the first ``a + 1`` in at most ``r``
    bits, or one of the rest in at most ``r - 1`` (multi-index hashing: Norouzi, Punjani and Fleet 2012, section 3).
    """

    def __init__(self, hashes: Int64[np.ndarray, " hashes"], bits: int) -> None:
        self.bits, self._count = bits, len(hashes)
        self._bands = []
        radius, first = divmod(bits, BANDS)
        values = hashes.view(np.uint64)
        for band in range(BANDS):
            keys = _keys(values, band)
            order = np.argsort(keys, kind="stable")
            starts = np.searchsorted(keys[order], np.arange(2**BAND_BITS + 1))
            self._bands.append((order, values[order], starts, _masks(radius if band <= first else radius - 1)))

    def near(self, queries: Int64[np.ndarray, " queries"]) -> Near:
        """Every pair of a query and a hash that differ in no more than ``bits`` bits, once, by the query's number."""
        none = np.zeros(0, np.int64)
        parts = [Near(none, none, none.astype(np.uint8))]
        for start in range(0, len(queries), _QUERIES):
            parts += self._near(queries[start : start + _QUERIES].view(np.uint64), start)
        query, hash_, bits = (np.concatenate(column) for column in zip(*parts, strict=True))
        _, once = np.unique(query * self._count + hash_, return_index=True)
        return Near(query[once], hash_[once], bits[once])

    def _near(self, queries: UInt64[np.ndarray, " queries"], offset: int) -> Iterator[Near]:
        for band, (order, values, starts, masks) in enumerate(self._bands):
            by_key = np.argsort(_keys(queries, band))
            ordered = queries[by_key]
            keys = _keys(ordered, band)
            for mask in masks:
                first, end = starts[keys ^ mask], starts[(keys ^ mask) + 1]
                for part in _parts(end - first):
                    query, place, bits = _compare(ordered[part], first[part], end[part], values, self.bits)
                    if len(query):
                        yield Near(by_key[query + part.start] + offset, order[place], bits)


def _keys(values: UInt64[np.ndarray, " hashes"], band: int) -> Int64[np.ndarray, " hashes"]:
    shift = np.uint64(64 - BAND_BITS * (band + 1))
    return ((values >> shift) & np.uint64(2**BAND_BITS - 1)).astype(np.int64)


def _masks(radius: int) -> Int64[np.ndarray, " masks"]:
    """All numbers of ``BAND_BITS`` bits of which at most ``radius`` are set."""
    numbers = np.arange(2**BAND_BITS)
    return numbers[np.bitwise_count(numbers) <= radius] if radius >= 0 else numbers[:0]


def _parts(counts: Int64[np.ndarray, " queries"]) -> Iterator[slice]:
    """Neighbouring queries that have no more than some ``_CANDIDATES`` candidates together."""
    edges = np.searchsorted(np.cumsum(counts), np.arange(_CANDIDATES, counts.sum(), _CANDIDATES), side="right")
    bounds = np.unique(np.concatenate([[0], edges, [len(counts)]])).tolist()
    yield from (slice(*pair) for pair in itertools.pairwise(bounds))


def _compare(
    queries: UInt64[np.ndarray, " queries"],
    first: Int64[np.ndarray, " queries"],
    end: Int64[np.ndarray, " queries"],
    values: UInt64[np.ndarray, " hashes"],
    bits: int,
) -> Near:
    """The near ones among every query and ``values[first:end]``; the second numbers are places in ``values``."""
    counts = end - first
    ends = np.cumsum(counts)
    places = np.repeat(first - ends + counts, counts) + np.arange(ends[-1])
    differing = np.bitwise_count(np.repeat(queries, counts) ^ values[places])
    hits = np.flatnonzero(differing <= bits)
    return Near(np.searchsorted(ends, hits, side="right"), places[hits], differing[hits])
