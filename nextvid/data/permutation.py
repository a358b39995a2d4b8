"""A shuffled order of any length without a list: place *n* of it is computed alone."""

from nextvid.randomness import generator, key_of

LISTED = 4096
"""Up to this length the order is a shuffled list after all: a network over a few bits is not even enough."""
_ROUNDS = 4


class Permutation:
    """A keyed bijection of ``range(length)``: as a shuffled list, in no memory.

    A Feistel network over the next power of four, whose outputs beyond ``length`` are sent through again until they fall
    inside (cycle walking: Black and Rogaway 2002), so at most four rounds of it on average.
    """

    def __init__(self, length: int, *key: int | str) -> None:
        """``key``: what the order depends on. Raises ``ValueError`` for a length below 1."""
        if length < 1:
            raise ValueError(f"a permutation of {length} things")
        self.length = length
        self._list = generator("permutation", *key).permutation(length).tolist() if length <= LISTED else None
        self._half = max(1, ((length - 1).bit_length() + 1) // 2)
        self._mask = (1 << self._half) - 1
        self._keys = [key_of("permutation", *key, number) for number in range(_ROUNDS)]

    def __getitem__(self, place: int) -> int:
        """What stands at ``place``. Raises ``IndexError`` outside ``0 <= place < length``."""
        if not 0 <= place < self.length:
            raise IndexError(f"place {place} of {self.length}")
        if self._list is not None:
            return int(self._list[place])
        found = self._mixed(place)
        while found >= self.length:
            found = self._mixed(found)
        return found

    def _mixed(self, value: int) -> int:
        left, right = value >> self._half, value & self._mask
        for key in self._keys:
            left, right = right, left ^ (_scrambled(right ^ key) & self._mask)
        return left << self._half | right


def _scrambled(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit of the result depends on every bit."""
    value &= 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31
