"""Keyed randomness: every draw is a pure function of a key, never of what was drawn before.

A sample's clip, crop, masks, flow times and noise all come from ``sample_key(seed, number)``, where ``number``
counts samples over the whole run. Neither the worker, the world size nor a restart can then change a sample.
"""

import hashlib

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def key_of(*parts: int | str) -> int:
    """A 63-bit key from any integers and words; equal parts give an equal key on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def sample_key(seed: int, number: int) -> int:
    """The key of sample ``number`` (counted from the start of the run) under ``seed``."""
    return key_of("sample", seed, number)


def generator(*parts: int | str) -> np.random.Generator:
    """A NumPy generator that starts from ``key_of(*parts)``."""
    return np.random.Generator(np.random.Philox(key_of(*parts)))


def normal(
    keys: list[int], purpose: str, shape: tuple[int, ...], device: torch.device | str = "cpu"
) -> Float[Tensor, "batch ..."]:
    """Standard normal noise ``(len(keys), *shape)``: row *b* depends on ``keys[b]`` and ``purpose`` only."""
    noise = torch.empty(len(keys), *shape, device=device)
    draw = torch.Generator(device=device)
    for row, key in zip(noise, keys, strict=True):
        draw.manual_seed(key_of(purpose, key))
        row.normal_(generator=draw)
    return noise


def uniform(
    keys: list[int], purpose: str, shape: tuple[int, ...], device: torch.device | str = "cpu"
) -> Float[Tensor, "batch ..."]:
    """Uniform numbers in ``[0, 1)`` of shape ``(len(keys), *shape)``: row *b* depends on ``keys[b]`` and ``purpose`` only."""
    rows = [generator(purpose, key).random(shape, dtype=np.float32) for key in keys]
    return torch.from_numpy(np.stack(rows)).to(device)
