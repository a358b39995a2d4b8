"""One attention function in front of every back end.

Tokens are ordered by frame, and every frame of a sequence has the same number of them. The one pattern that the method
needs is *frame-causal*: query frame ``i`` reads key frames ``0 … i + (key_frames - query_frames)``. The encoder uses it
with as many key frames as query frames; a stream with more keys than queries (the cache); the predictor, whose query
frame ``i`` stands for frame ``i + 1``, with the context of frames ``0 … T - 2``, which makes the mask strict.
"""

from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as nn
from jaxtyping import Bool, Float
from torch import Tensor

Pattern = Literal["frame_causal", "full", "token_causal"]
Backend = Literal["auto", "frames", "mask", "flex"]

SHORT = 2**15
"""Up to so many pairs of query and key one masked call is faster on a CPU than one call a frame, though it computes all."""

Heads = Float[Tensor, "batch heads queries head_width"]
Keys = Float[Tensor, "batch heads keys head_width"]


def attend(
    q: Heads,
    k: Keys,
    v: Keys,
    query_frames: int,
    key_frames: int,
    pattern: Pattern = "frame_causal",
    backend: Backend = "auto",
) -> Heads:
    """Scaled dot-product attention of ``query_frames`` frames of queries over ``key_frames`` frames of keys.

    ``backend`` chooses how the frame-causal pattern is computed: ``frames`` (one call a frame over the sliced past),
    ``mask`` (one call with a boolean mask), ``flex`` (FlexAttention, CUDA only), or ``auto``. All agree to rounding.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # On a CPU the backward of bfloat16 attention takes six times as long as that of float32.
        out = attend(q.float(), k.float(), v.float(), query_frames, key_frames, pattern, backend)
        return out.to(q.dtype)
    if pattern == "token_causal":
        return nn.scaled_dot_product_attention(q, k, v, is_causal=True)
    if pattern == "full" or query_frames == 1:
        return nn.scaled_dot_product_attention(q, k, v)
    if backend == "auto":
        backend = "flex" if q.is_cuda else "mask" if q.shape[2] * k.shape[2] <= SHORT else "frames"
    if backend == "frames":
        return _attend_frame_by_frame(q, k, v, query_frames, key_frames)
    if backend == "mask":
        added = _additive_mask(query_frames, key_frames, q.shape[2], k.shape[2], q.device, q.dtype)
        return nn.scaled_dot_product_attention(q, k, v, attn_mask=added)
    return _attend_flex(q, k, v, query_frames, key_frames)


def attended_pairs(pattern: Pattern, frames: int, queries: int, keys: int) -> int:
    """Pairs of query and key that ``frames`` frames of ``queries`` queries and ``keys`` keys each have to compute."""
    if pattern == "full":
        return frames * queries * frames * keys
    if pattern == "token_causal":
        return frames * queries * (frames * keys + 1) // 2
    return queries * keys * frames * (frames + 1) // 2


def frame_causal_mask(
    query_frames: int, key_frames: int, queries: int, keys: int, device: torch.device | str = "cpu"
) -> Bool[Tensor, "queries keys"]:
    """True where a query may read a key."""
    query_frame = torch.arange(queries, device=device) // (queries // query_frames) + key_frames - query_frames
    key_frame = torch.arange(keys, device=device) // (keys // key_frames)
    return key_frame[None, :] <= query_frame[:, None]


@lru_cache(maxsize=64)
def _additive_mask(
    query_frames: int, key_frames: int, queries: int, keys: int, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "queries keys"]:
    """0 where a query may read a key, else minus infinity: attention would make it of the boolean mask in every call."""
    with torch.inference_mode(False):  # what inference mode makes cannot be used in training later
        seen = frame_causal_mask(query_frames, key_frames, queries, keys, device)
        return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))


def _attend_frame_by_frame(q: Heads, k: Keys, v: Keys, query_frames: int, key_frames: int) -> Heads:
    a_frame = k.shape[2] // key_frames
    past = [(i + 1 + key_frames - query_frames) * a_frame for i in range(query_frames)]
    frames = zip(q.chunk(query_frames, dim=2), past, strict=True)
    return torch.cat([nn.scaled_dot_product_attention(qi, k[:, :, :n], v[:, :, :n]) for qi, n in frames], dim=2)


@lru_cache(maxsize=64)
def _block_mask(query_frames: int, key_frames: int, queries: int, keys: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask  # noqa: PLC0415

    a_query_frame, a_key_frame = queries // query_frames, keys // key_frames
    offset = key_frames - query_frames

    # A lambda: create_block_mask counts its parameters, which a function wrapped by the tests' shape checks would hide.
    return create_block_mask(
        lambda _b, _h, q, k: k // a_key_frame <= q // a_query_frame + offset, None, None, queries, keys, device=device
    )


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention  # noqa: PLC0415

    return torch.compile(flex_attention, dynamic=False)


def _attend_flex(q: Heads, k: Keys, v: Keys, query_frames: int, key_frames: int) -> Heads:
    mask = _block_mask(query_frames, key_frames, q.shape[2], k.shape[2], q.device)
    return _compiled_flex()(q, k, v, block_mask=mask)
