"""The built-in sprites: 5000 handwritten digits of MNIST, 400 train and 100 test digits of each class."""

import functools
from dataclasses import dataclass
from importlib import resources

import numpy as np
from jaxtyping import UInt8

from nextvid.data.film import Split

DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class Digits:
    """The digits of one split, white ink on black, and their classes."""

    images: UInt8[np.ndarray, "digits 28 28"]
    labels: UInt8[np.ndarray, " digits"]

    def numbers_of(self, label: int) -> np.ndarray:
        """The rows of the digits of class ``label``."""
        return np.flatnonzero(self.labels == label)


@functools.cache
def load_digits(split: Split) -> Digits:
    """The digits of ``split``; train and test share none."""
    path = resources.files("nextvid.data") / "assets" / "digits.npz"
    with path.open("rb") as file, np.load(file) as arrays:
        return Digits(arrays[f"{split}_images"], arrays[f"{split}_labels"])
