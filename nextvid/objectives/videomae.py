"""VideoMAE (arXiv 2203.12602): hide tubes of nine places in ten, encode the rest, fill in the pixels that were hidden."""

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from nextvid.data.loader import Batch
from nextvid.data.transforms import normalise
from nextvid.masking import Mask, TubeConfig, draw_batch, hidden_places, visible_count
from nextvid.models.encoder import Encoder, EncoderConfig, FrameTensor, gather_places, tokens_of
from nextvid.models.mae_decoder import MaeDecoder, MaeDecoderConfig
from nextvid.objectives.protocol import Flops, Health, Losses, Objective, ObjectiveConfig, parts_of
from nextvid.settings import StageConfig
from nextvid.targets.normalised import normalised_patches, restored_frames

Features = Float[Tensor, "batch latent_frames places width"]


class VideoMaeConfig(ObjectiveConfig):
    """The decoder's shape; the encoder's attention is full in the paper (``encoder.attention: full``)."""

    name: Literal["videomae"] = "videomae"
    decoder: MaeDecoderConfig = MaeDecoderConfig()

    stage_defaults: ClassVar[dict[str, Any]] = {"masks": [{"ratio": 0.9}], "weights": {"reconstruction": 1.0}}
    model_keys: ClassVar[tuple[str, ...]] = ("name", "decoder")

    def build(self, encoder: EncoderConfig) -> "VideoMae":
        """The method around a new encoder of this shape."""
        return VideoMae(encoder, self)

    def check_stage(self, stage: StageConfig, encoder: EncoderConfig) -> None:
        """Raise ``ValueError`` where a mask hides nothing: there would be nothing to fill in."""
        side = stage.size // encoder.patch
        for number, mask in enumerate(stage.masks or []):
            if visible_count(mask, side, side) == side**2:
                raise ValueError(
                    f"masks[{number}] hides none of the {side}x{side} places, so there is nothing to fill in; hide more"
                )


class VideoMae(Objective):
    """Encoder and decoder, and the error between what was hidden and what was filled in."""

    def __init__(self, encoder: EncoderConfig, config: VideoMaeConfig) -> None:
        super().__init__()
        self.encoder = Encoder(encoder)
        values = 3 * encoder.tubelet * encoder.patch**2
        self.decoder = MaeDecoder(config.decoder, encoder.width, values)
        self.masks: list[Mask] = [TubeConfig(0.9)]

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Encoder and decoder."""
        return parts_of(self, ("encoder", "decoder"))

    def exports(self) -> dict[str, Encoder]:
        """The encoder; there is no moving average."""
        return {"online": self.encoder}

    def begin_stage(self, stage: StageConfig) -> None:
        """Take over the stage's masks."""
        assert stage.masks
        self.masks = list(stage.masks)

    def forward(self, batch: Batch, weights: dict[str, float]) -> Losses:
        """The mean squared error over hidden patches, averaged over the mask generators."""
        frames = normalise(batch.frames)
        errors = [
            self.reconstruction_loss(frames, draw_batch(mask, batch.keys, f"mask {i}", *self.encoder.grid(frames)[1:]))
            for i, mask in enumerate(self.masks)
        ]
        loss = torch.stack(errors).mean()
        return Losses(weights["reconstruction"] * loss, {"reconstruction": loss}, lambda: self._health(frames))

    def reconstruction_loss(self, frames: FrameTensor, visible: Int[Tensor, "batch kept"]) -> Float[Tensor, ""]:
        """Mean of ``(filled - pixels)^2`` over the hidden patches, pixels normalised patch by patch and colour by colour."""
        visible = visible.to(frames.device)
        _, rows, columns = self.encoder.grid(frames)
        hidden = hidden_places(visible, rows * columns)
        config = self.encoder.config
        target = normalised_patches(frames, config.patch, config.tubelet).values
        return functional.mse_loss(self.fill(frames, visible, hidden).float(), gather_places(target, hidden))

    def fill(
        self, frames: FrameTensor, visible: Int[Tensor, "batch kept"], hidden: Int[Tensor, "batch hidden"]
    ) -> Float[Tensor, "batch latent_frames hidden values"]:
        """Normalised pixels at the ``hidden`` places from the ``visible`` ones."""
        tokens = tokens_of(self.encoder(frames, visible))
        return self.decoder(tokens, visible, hidden, self.encoder.grid(frames))

    @torch.no_grad()
    def reconstruct(self, frames: FrameTensor, visible: Int[Tensor, "batch kept"]) -> FrameTensor:
        """``frames`` with the hidden places filled in, each with the mean and contrast that it really has."""
        config = self.encoder.config
        _, rows, columns = self.encoder.grid(frames)
        hidden = hidden_places(visible, rows * columns)
        target = normalised_patches(frames, config.patch, config.tubelet)
        places = hidden[:, None, :, None].expand(-1, target.values.shape[1], -1, target.values.shape[3])
        values = target.values.scatter(2, places, self.fill(frames, visible, hidden).float())
        return restored_frames(values, target, config.patch, config.tubelet, *frames.shape[-2:])

    def flops(self, stage: StageConfig) -> Flops:
        """The encoder over what each mask leaves, and the decoder over everything."""
        config = self.encoder.config
        frames, side = stage.frames // config.tubelet, stage.size // config.patch
        kept = [visible_count(mask, side, side) for mask in stage.masks or self.masks]
        return Flops(
            {
                "encoder": sum(self.encoder.flops(frames, count) for count in kept),
                "decoder": sum(self.decoder.flops(frames, count, side * side) for count in kept),
            }
        )

    @torch.no_grad()
    def _health(self, frames: FrameTensor) -> Health:
        tokens = tokens_of(self.encoder(frames)).float()
        target = normalised_patches(frames, self.encoder.config.patch, self.encoder.config.tubelet).values
        features = functional.layer_norm(tokens, tokens.shape[-1:])
        return Health(features, {"reconstruction": target.square().mean().item()})
