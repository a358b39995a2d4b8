"""The same encoder before it has learnt anything."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from nextvid.evaluation.encoders.frozen import FrozenEncoder
from nextvid.randomness import key_of
from nextvid.targets.space import digest_of

NAME = "random_init"
AnyFrozen = TypeVar("AnyFrozen", bound=FrozenEncoder)


@contextmanager
def first_weights() -> Iterator[None]:
    """Weights that are drawn within it are always the same, and nothing else that is random is touched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_of("random encoder", 0))
        yield


def as_baseline(encoder: AnyFrozen) -> AnyFrozen:
    """A copy of ``encoder`` to be given other weights."""
    made = copy.deepcopy(encoder)
    made.name, made.kind, made.digest = NAME, "baseline", digest_of(NAME, encoder.digest)
    return made
