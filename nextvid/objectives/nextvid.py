"""Masked next-frame prediction: NExT-Vid (arXiv 2512.21004), METHOD "The forward pass"."""

import copy
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from nextvid.data.loader import Batch
from nextvid.data.transforms import normalise
from nextvid.masking import Mask, MaskConfig, draw_batch, visible_count
from nextvid.models.decoder import Decoder, DecoderConfig
from nextvid.models.encoder import Encoder, EncoderConfig, FrameTensor, tokens_of
from nextvid.models.predictor import Predictor, PredictorConfig
from nextvid.objectives.flow import DEFAULT_SAMPLING, Sampling, flow_loss, integrate, noisy_latents
from nextvid.objectives.protocol import Flops, Health, Losses, Objective, ObjectiveConfig, distance, parts_of
from nextvid.randomness import normal, uniform
from nextvid.settings import StageConfig
from nextvid.targets.pixels import PixelsConfig
from nextvid.targets.registry import AnyTarget, build_space
from nextvid.targets.space import MapSpace, Space, SpaceConfig

PredictedTokens = Float[Tensor, "batch predicted_frames places width"]
Latents = Float[Tensor, "batch predicted_frames places channels"]
Visible = Int[Tensor, "batch kept"]
Grid = tuple[int, int]
TERMS = ("flow", "alignment")


class NextVidConfig(ObjectiveConfig):
    """Masked next-frame prediction (METHOD, "The forward pass"); every switch is an ablation.

    ``tau_logit``: mean and deviation of a normal whose sigmoid is tau; without it tau is uniform on [0, 1).
    """

    name: Literal["nextvid"] = "nextvid"
    predictor: PredictorConfig = PredictorConfig()
    decoder: DecoderConfig = DecoderConfig()
    target: AnyTarget = PixelsConfig()
    prediction: Literal["velocity", "clean"] = "velocity"
    generation: Literal["flow", "regression"] = "flow"
    tau_logit: tuple[float, Annotated[float, Field(gt=0)]] | None = None
    reference: Literal["ema", "online"] = "ema"
    reference_norm: Literal["layer", "none", "batch"] = "layer"

    stage_defaults: ClassVar[dict[str, Any]] = {
        "masks": [{"blocks": 8, "scale": 0.15}, {"blocks": 2, "scale": 0.7}],
        "weights": {"flow": 0.5, "alignment": 1.0},
        "draws": 1,
        "ema": 0.99925,
    }
    model_keys: ClassVar[tuple[str, ...]] = ("name", "predictor", "decoder", "target", "prediction", "generation")

    def build(self, encoder: EncoderConfig) -> "NextVid":
        """The method around a new encoder of this shape."""
        return NextVid(encoder, self)

    def check_stage(self, stage: StageConfig, encoder: EncoderConfig) -> None:
        """Raise ``ValueError`` where there is no next frame, or no batch to normalise over."""
        if stage.frames < 2 * encoder.tubelet:
            raise ValueError(f"frames={stage.frames} is one latent frame; predicting the next one needs two or more")
        if self.reference_norm == "batch" and stage.batch < 2:
            raise ValueError("objective.reference_norm=batch needs a batch of two or more")

    def needs_whole_batch(self) -> str | None:
        """Normalisation over the batch does."""
        return "objective.reference_norm=batch" if self.reference_norm == "batch" else None


@dataclass
class Settings:
    """What the present stage asks for."""

    masks: list[Mask]
    draws: int
    ema: float


class NextVid(Objective):
    """Encoder, reference encoder, predictor and decoder, and the losses between them."""

    def __init__(self, encoder: EncoderConfig, config: NextVidConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(encoder)
        self.reference = copy.deepcopy(self.encoder).requires_grad_(False)
        self.predictor = Predictor(config.predictor, encoder.width)
        self.target = build_space(config.target, encoder.patch, encoder.tubelet)
        self.decoder = Decoder(config.decoder, self.target.channels, encoder.width)
        self.settings = Settings([MaskConfig(8, 0.15), MaskConfig(2, 0.7)], 1, 0.99925)

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Encoder, predictor and decoder."""
        return parts_of(self, ("encoder", "predictor", "decoder"))

    def exports(self) -> dict[str, Encoder]:
        """The online encoder and its moving average."""
        return {"online": self.encoder, "ema": self.reference}

    def before_training(self, batch: Batch) -> None:
        """Measure the target space's statistics, where it has any."""
        self.target.fit(normalise(batch.frames))

    def relies_on(self) -> dict[str, str]:
        """The target space's weights, which no checkpoint holds."""
        return {"objective.target": self.target.checksum}

    def draws_in(self) -> tuple[SpaceConfig, Space]:
        """The target space."""
        return self.config.target, self.target

    def begin_stage(self, stage: StageConfig) -> None:
        """Take over the stage's masks, draws of tau and EMA momentum."""
        assert stage.masks
        assert stage.draws
        assert stage.ema is not None
        self.settings = Settings(list(stage.masks), stage.draws, stage.ema)

    def forward(self, batch: Batch, weights: dict[str, float]) -> Losses:
        """``0.5 L_flow + 1.0 L_align`` (under the step's ``weights``; a loss of weight 0 is not computed).

        Both losses are averaged over the mask generators.
        """
        frames = normalise(batch.frames)
        reference = self.reference_tokens(frames)
        grid = self.encoder.grid(frames)[1:]
        zero = frames.new_zeros(())
        terms = {name: zero for name in TERMS if weights.get(name)}
        predicted = [
            self.predict(frames, self.draw_visible(frames, mask, batch.keys, index))
            for index, mask in enumerate(self.settings.masks)
        ]
        if "alignment" in terms:
            terms["alignment"] = torch.stack([self.alignment_loss(z, reference) for z in predicted]).mean()
        if "flow" in terms:
            terms["flow"] = self.generation_loss(predicted, self.next_latents(frames, batch), grid, batch.keys)
        total = sum((weights[name] * term for name, term in terms.items()), start=zero)
        return Losses(total, terms, lambda: self._health(predicted[0].detach(), reference))

    def next_latents(self, frames: FrameTensor, batch: Batch) -> Latents:
        """The latents of latent frames 1 … T-1 of a clip: of those that the batch brings along, or else encoded."""
        if batch.latents is None:
            return self.target.encode_next(frames)
        assert isinstance(self.target, MapSpace)
        return self.target.tokens_of(batch.latents)[:, 1:]

    @torch.no_grad()
    def _health(self, z: PredictedTokens, reference: PredictedTokens) -> Health:
        further = {"ema_distance": distance(self.encoder.parameters(), self.reference.parameters())}
        if z.shape[1] > 1:
            further["copying"] = copying(z, reference)
        return Health(reference, {"alignment": positions_only_loss(reference)}, further)

    def draw_visible(self, frames: FrameTensor, mask: Mask, keys: list[int], index: int) -> Visible:
        """The places of each sample that the encoder may see under mask generator ``index``."""
        _, height, width = self.encoder.grid(frames)
        return draw_batch(mask, keys, f"mask {index}", height, width).to(frames.device)

    @torch.no_grad()
    def reference_tokens(self, frames: FrameTensor) -> PredictedTokens:
        """``c'_t`` of frames 1 … T-1 from the whole clip, without gradient, normalised as ``reference_norm`` says.

        ``layer``: a parameter-free LayerNorm (V-JEPA). ``batch``: on top of it every channel at every place is taken to
        mean 0 and deviation 1 over the batch, which leaves nothing that position alone could predict.
        """
        teacher = self.encoder if self.config.reference == "online" else self.reference
        tokens = tokens_of(teacher(frames))[:, 1:].float()
        if self.config.reference_norm != "none":
            tokens = functional.layer_norm(tokens, tokens.shape[-1:])
        if self.config.reference_norm == "batch":
            tokens = (tokens - tokens.mean(dim=0)) / (tokens.std(dim=0) + 1e-3)
        return tokens

    def predict(self, frames: FrameTensor, visible: Visible) -> PredictedTokens:
        """``z_t`` of frames 1 … T-1 from the visible patches of the frames before.

        The last frame is not encoded: nothing reads it. Where attention is full, the frames before do.
        """
        _, height, width = self.encoder.grid(frames)
        if self.encoder.config.attention == "full":
            context = tokens_of(self.encoder(frames, visible))[:, :-1]
        else:
            context = tokens_of(self.encoder(frames[:, : -self.encoder.config.tubelet], visible))
        return self.predictor(context, visible, height, width)

    def alignment_loss(self, z: PredictedTokens, reference: PredictedTokens) -> Float[Tensor, ""]:
        """``MSE(z_t, c'_t)``, a mean over all elements."""
        return functional.mse_loss(z.float(), reference)

    def generation_loss(
        self, predicted: list[PredictedTokens], h1: Latents, grid: Grid, keys: list[int]
    ) -> Float[Tensor, ""]:
        """``L_flow`` of the predictions under each mask, or direct regression of ``h1``; the decoder reads them all at once.

        The stage's draws of (tau, h0) under a mask read the same ``z``.
        """
        if self.config.generation == "regression":
            h1, z = h1.repeat(len(predicted), 1, 1, 1), torch.cat(predicted)
            tau = h1.new_zeros(h1.shape[:2])
            return functional.mse_loss(self.decoder(torch.zeros_like(h1), z, tau, *grid).float(), h1)
        draws = self.settings.draws
        drawn = [self._draw_flow(h1, keys, index) for index in range(len(predicted))]
        tau, h0 = torch.cat([tau for tau, _ in drawn]), torch.cat([h0 for _, h0 in drawn])
        h1 = h1.repeat(len(predicted) * draws, 1, 1, 1)
        z = torch.cat([z for z in predicted for _ in range(draws)])
        output = self.decoder(noisy_latents(h1, h0, tau), z, tau, *grid)
        return flow_loss(output, h1, h0, tau, self.config.prediction)

    def sample(self, z: PredictedTokens, grid: Grid, keys: list[int], sampling: Sampling = DEFAULT_SAMPLING) -> Latents:
        """Latents drawn from the flow given ``z``; the noise depends on each sample's key.

        A decoder that regresses has one answer and no noise: ``keys`` and ``sampling`` change nothing.
        """
        if self.config.generation == "regression":
            return self.decoder(z.new_zeros(*z.shape[:3], self.target.channels), z, z.new_zeros(z.shape[:2]), *grid)
        h0 = normal(keys, "sample", (*z.shape[1:3], self.target.channels), z.device)
        return integrate(lambda h, tau: self.decoder(h, z, tau, *grid), h0, sampling, self.config.prediction)

    def _draw_flow(
        self, h1: Latents, keys: list[int], index: int
    ) -> tuple[Float[Tensor, "drawn predicted_frames"], Float[Tensor, "drawn predicted_frames places channels"]]:
        draws = self.settings.draws
        tau = self._draw_tau(keys, f"tau {index}", (draws, h1.shape[1]), h1.device).transpose(0, 1).flatten(0, 1)
        h0 = normal(keys, f"h0 {index}", (draws, *h1.shape[1:]), h1.device).transpose(0, 1).flatten(0, 1)
        return tau, h0

    def _draw_tau(
        self, keys: list[int], purpose: str, shape: tuple[int, ...], device: torch.device
    ) -> Float[Tensor, "batch draws predicted_frames"]:
        if self.config.tau_logit is None:
            return uniform(keys, purpose, shape, device)
        mean, deviation = self.config.tau_logit
        return torch.sigmoid(mean + deviation * normal(keys, purpose, shape, device))

    def flops(self, stage: StageConfig) -> Flops:
        """The reference over the whole clip once; encoder, predictor and decoder once a mask, the decoder once a draw of tau."""
        config = self.encoder.config
        frames, side = stage.frames // config.tubelet, stage.size // config.patch
        encoded = frames if config.attention == "full" else frames - 1
        kept = [visible_count(mask, side, side) for mask in stage.masks or self.settings.masks]
        draws = (stage.draws or 1) if self.config.generation == "flow" else 1
        generates = max((stage.weights or {}).get("flow", (1.0,))) > 0
        target = self.target.flops(stage.frames, stage.size) * generates
        return Flops(
            {
                "encoder": sum(self.encoder.flops(encoded, count) for count in kept),
                "predictor": sum(self.predictor.flops(frames - 1, count, side * side) for count in kept),
                "decoder": len(kept) * draws * self.decoder.flops(frames - 1, side * side) * generates,
            },
            frozen={
                "encoder" if self.config.reference == "online" else "reference": self.encoder.flops(
                    frames, side * side
                ),
                **({"target": target} if target else {}),
            },
        )

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """``E_ref <- m E_ref + (1 - m) E``."""
        reference: list[Tensor] = list(self.reference.parameters())
        online: list[Tensor] = list(self.encoder.parameters())
        torch._foreach_lerp_(reference, online, 1.0 - self.settings.ema)


def positions_only_loss(features: PredictedTokens) -> float:
    """The alignment loss of a predictor that knows the position of a token and nothing of its clip.

    It would give the mean over clips at each place and frame, so its loss is the (unbiased) variance over clips there.
    """
    return features.var(dim=0).mean().item()


def copying(z: PredictedTokens, reference: PredictedTokens) -> float:
    """How much farther the predictions are from the frames that they predict than from the frames before those.

    Near 1 where not all change can be foreseen; a copy of the frame before, but for an error e, of frames d apart has
    1 + d²/e². For frames from the third on.
    """
    ahead = functional.mse_loss(z[:, 1:].float(), reference[:, 1:])
    return (ahead / functional.mse_loss(z[:, 1:].float(), reference[:, :-1])).item()
