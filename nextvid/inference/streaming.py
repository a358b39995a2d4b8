"""A camera through the encoder, one latent frame at a time."""

import torch

from nextvid.data.transforms import AnyFrames, prepare
from nextvid.models.encoder import Cache, Encoder, FrameTokens, tokens_of


class Stream:
    """Tokens of each new latent frame, from cached keys and values of the last ``window`` latent frames.

    Up to the window they equal those of the whole clip; from then on the oldest frame is forgotten. Rotary positions are
    relative, so a stream has no end.
    """

    def __init__(self, encoder: Encoder, window: int) -> None:
        if window < 1:
            raise ValueError(f"a stream's window is at least one latent frame, not {window}")
        if encoder.config.attention != "frame_causal":
            raise ValueError(
                f"only a frame-causal encoder can stream; this one's attention is '{encoder.config.attention}'"
            )
        if encoder.config.positions != "rope":
            raise ValueError(
                f"only an encoder with rotary positions can stream; this one's are '{encoder.config.positions}', which end"
            )
        self.encoder = encoder
        self.window = window
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next frames begin a new clip."""
        self.cache = Cache(self.window)

    @torch.inference_mode()
    def push(self, frames: AnyFrames) -> FrameTokens:
        """Tokens ``(B, 1, N, D)`` of the next frame pair ``(B, 2, 3, H, W)``, uint8 or float in [0, 1]."""
        tubelet = self.encoder.config.tubelet
        if frames.shape[1] != tubelet:
            raise ValueError(f"a stream takes {tubelet} frames at a time, not {frames.shape[1]}")
        return tokens_of(self.encoder(prepare(frames, tubelet), cache=self.cache))
