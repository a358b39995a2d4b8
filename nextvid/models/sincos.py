"""Fixed sine-cosine positions (Vaswani et al., arXiv 1706.03762, section 3.5), as VideoMAE (arXiv 2203.12602) adds them."""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor


@lru_cache(maxsize=32)
def sincos_positions(
    frames: int, places: int, width: int, device: torch.device, first_frame: int = 0
) -> Float[Tensor, "frames places width"]:
    """What is added to the token at place ``i`` of frame ``t``: token ``n = t places + i`` has ``sin(n / 10000^(2j/width))`` in
    its dimensions ``2j`` and the cosine in ``2j + 1``. Frames and places are numbered in one line, as there.
    """
    with torch.inference_mode(False):  # what inference mode makes cannot be used in training later
        numbers = torch.arange(first_frame * places, (first_frame + frames) * places, dtype=torch.float64)
        rates = 10_000.0 ** (-(torch.arange(width) // 2 * 2).double() / width)
        angles = numbers[:, None] * rates
        table = torch.where(torch.arange(width) % 2 == 0, angles.sin(), angles.cos())
        return table.float().to(device).unflatten(0, (frames, places))
