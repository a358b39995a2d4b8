"""One attention function: every back end computes the same, and it is what the pattern says."""

import math
from typing import Any

import pytest
import torch
from builders import seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from nextvid.models import attention
from nextvid.models.attention import attend, frame_causal_mask

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}

frames_and_tokens = st.fixed_dictionaries(
    {
        "query_frames": st.integers(1, 4),
        "older_frames": st.integers(0, 3),
        "a_query_frame": st.integers(1, 5),
        "a_key_frame": st.integers(1, 5),
        "heads": st.integers(1, 3),
        "head_width": st.sampled_from([2, 6, 16]),
        "seed": st.integers(0, 1000),
    }
)


def tensors(shape: dict[str, int], dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, ...]:
    """q, k, v and a direction to differentiate along."""
    key_frames = shape["query_frames"] + shape["older_frames"]
    queries, keys = shape["query_frames"] * shape["a_query_frame"], key_frames * shape["a_key_frame"]
    draw = seeded(shape["seed"])
    sizes = (queries, keys, keys, queries)
    made = [torch.randn(2, shape["heads"], size, shape["head_width"], generator=draw) for size in sizes]
    return tuple(x.to(device, dtype) for x in made)


def run(shape: dict[str, int], parts: tuple[Tensor, ...], backend: Any) -> tuple[Tensor, ...]:
    """The output, and the gradients of q, k and v."""
    *qkv, direction = (x.clone() for x in parts)
    leaves = [x.requires_grad_() for x in qkv]
    q, k, v = leaves
    out = attend(q, k, v, shape["query_frames"], shape["query_frames"] + shape["older_frames"], backend=backend)
    return out, *torch.autograd.grad((out * direction).sum(), leaves)


def by_the_book(shape: dict[str, int], parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Softmax over the keys that a query may read, in double precision, from the words of the docstring."""
    *qkv, direction = (x.double() for x in parts)
    q, k, v = (x.clone().requires_grad_() for x in qkv)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    for query in range(q.shape[2]):
        for key in range(k.shape[2]):
            if key // shape["a_key_frame"] > query // shape["a_query_frame"] + shape["older_frames"]:
                scores[:, :, query, key] = -math.inf
    out = scores.softmax(-1) @ v
    return out, *torch.autograd.grad((out * direction).sum(), (q, k, v))


@pytest.mark.parametrize("backend", ["frames", "mask", "auto"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@given(shape=frames_and_tokens)
def test_back_ends_agree_forward_and_backward(dtype: torch.dtype, backend: str, shape: dict[str, int]) -> None:
    parts = tensors(shape, dtype)
    for found, expected in zip(run(shape, parts, backend), by_the_book(shape, parts), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention is compiled for CUDA only")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-3), (torch.bfloat16, 3e-2)], ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        {"query_frames": 4, "older_frames": 0, "a_query_frame": 49, "a_key_frame": 49},
        {"query_frames": 3, "older_frames": 0, "a_query_frame": 256, "a_key_frame": 98},
        {"query_frames": 2, "older_frames": 3, "a_query_frame": 64, "a_key_frame": 64},
    ],
)
def test_flex_agrees_on_a_gpu(dtype: torch.dtype, tolerance: float, shape: dict[str, int]) -> None:
    shape = {**shape, "heads": 2, "head_width": 64, "seed": 0}
    parts = tensors(shape, dtype, "cuda")
    for flex, frames in zip(run(shape, parts, "flex"), run(shape, parts, "frames"), strict=True):
        torch.testing.assert_close(flex, frames, rtol=tolerance, atol=tolerance)


@given(
    query_frames=st.integers(1, 4),
    older=st.integers(0, 3),
    a_query_frame=st.integers(1, 3),
    a_key_frame=st.integers(1, 3),
)
def test_frame_causal_mask_is_what_it_says(query_frames: int, older: int, a_query_frame: int, a_key_frame: int) -> None:
    key_frames = query_frames + older
    mask = frame_causal_mask(query_frames, key_frames, query_frames * a_query_frame, key_frames * a_key_frame)
    for query, row in enumerate(mask):
        read = (query // a_query_frame + older + 1) * a_key_frame
        assert row.tolist() == [True] * read + [False] * (len(row) - read)


def test_the_other_patterns() -> None:
    shape = {"query_frames": 3, "older_frames": 0, "a_query_frame": 2, "a_key_frame": 2}
    q, k, v, _ = tensors({**shape, "heads": 2, "head_width": 4, "seed": 0}, torch.float64)
    scores = q @ k.transpose(-1, -2) / 2
    future = torch.ones(6, 6, dtype=torch.bool).triu(1)
    torch.testing.assert_close(attend(q, k, v, 3, 3, "full"), scores.softmax(-1) @ v)
    torch.testing.assert_close(
        attend(q, k, v, 3, 3, "token_causal"), scores.masked_fill(future, -math.inf).softmax(-1) @ v
    )


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_block_mask_for_flex_attention_is_frame_causal() -> None:
    """On a CPU only its uncompiled forward runs, which is enough to see that the mask says the same."""
    q, k = torch.randn(1, 2, 3 * 5, 16), torch.randn(1, 2, 4 * 6, 16)
    mask = attention._block_mask(3, 4, q.shape[2], k.shape[2], torch.device("cpu"))
    expected = attention.attend(q, k, k, 3, 4, backend="frames")
    torch.testing.assert_close(flex_attention(q, k, k, block_mask=mask), expected)
