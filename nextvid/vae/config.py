"""The typed recipe of an autoencoder."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nextvid.config import PACKAGED_RECIPES, load_settings
from nextvid.models.autoencoder import AutoencoderConfig
from nextvid.models.discriminator import DiscriminatorConfig
from nextvid.settings import DataConfig, Fraction, NonNegative, Positive, SourceConfig, Strict
from nextvid.targets.vision import PACKAGED

VAE_RECIPES = PACKAGED_RECIPES / "vae"


class AlignmentConfig(Strict):
    """What the latents are drawn towards: maps of a frozen vision ``network`` after its ``layer`` (VA-VAE, section 3.2).

    ``weight`` is adaptive: so many times the gradient of reconstruction at the encoder's last layer. ``cosine_margin`` and
    ``distance_margin``: what is closer than this costs nothing. ``scale``: pictures are enlarged so much for the network.
    """

    weight: NonNegative = 0.1
    network: str = PACKAGED
    layer: Annotated[int, Field(ge=0)] = 10
    scale: Annotated[float, Field(gt=0)] = 1.0
    cosine_margin: Fraction = 0.5
    distance_margin: Fraction = 0.25


class LossConfig(Strict):
    """Weights of the losses. All are per pixel value, so that ``kl`` means the same at every size.

    ``perceptual`` compares maps of the packaged EfficientNet-Lite0 after ``perceptual_layers``. ``adversarial`` is adaptive, as
    the alignment's is, and begins after ``adversarial_from`` steps.
    """

    perceptual: NonNegative = 1.0
    perceptual_layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 2, 4)
    kl: NonNegative = 1e-6
    adversarial: NonNegative = 0.5
    adversarial_from: Annotated[int, Field(ge=0)] = 5000
    alignment: AlignmentConfig = AlignmentConfig()


class VaeTrainingConfig(Strict):
    """The optimiser's two rates go from 0 to ``lr`` in ``warmup`` steps and by a cosine to ``final_lr`` at the end."""

    lr: Annotated[float, Field(gt=0)] = 1e-4
    final_lr: NonNegative = 0.0
    warmup: Annotated[int, Field(ge=0)] = 100
    betas: tuple[Fraction, Fraction] = (0.5, 0.9)
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0
    checkpoint_every: Positive = 500
    keep_checkpoints: Positive = 2
    log_every: Positive = 10


class VaeRecipe(Strict):
    """Everything that defines the training of an autoencoder on frames of ``size`` pixels.

    A batch is ``batch`` clips of ``frames`` frames at ``fps``, each frame a picture of its own. ``statistics``: pictures that
    the latents' means and deviations are measured on; ``judged``: those that the figures are of. ``held_out``: footage for the
    figures that is not trained on (the built-in ``film``: its last quarter); without any they are of further clips of
    ``data``, and say so.
    """

    version: Literal[1] = 1
    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    model: AutoencoderConfig = AutoencoderConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    data: DataConfig
    held_out: tuple[SourceConfig, ...] = ()
    size: Positive
    batch: Positive
    frames: Positive = 1
    fps: Annotated[float, Field(gt=0)] = 4.0
    steps: Positive
    statistics: Positive = 512
    judged: Positive = 1024
    losses: LossConfig = LossConfig()
    training: VaeTrainingConfig = VaeTrainingConfig()

    @model_validator(mode="after")
    def _pictures_divide(self) -> "VaeRecipe":
        stride = self.model.stride
        if self.size % stride:
            raise ValueError(
                f"size={self.size} pixels is not a multiple of the {stride} pixels of a latent ({len(self.model.multipliers)} "
                f"levels); try size={max(1, round(self.size / stride)) * stride}"
            )
        return self


def load_vae_recipe(path: str | Path, overrides: list[str] | None = None) -> VaeRecipe:
    """The recipe of a YAML file, or of a packaged name such as ``film``, with ``key.sub=value`` overrides on top."""
    return load_settings(VaeRecipe, path, overrides, VAE_RECIPES)


def shape_of(recipe: VaeRecipe) -> dict[str, Any]:
    """The autoencoder's shape as JSON, as its weights file carries it."""
    return recipe.model_dump(mode="json")["model"]
