"""What an autoencoder learns from: reconstruction, what a vision network sees, an adversary, and aligned latents.

The losses are those of latent diffusion (arXiv 2112.10752) and VA-VAE (arXiv 2501.01423), each a mean per pixel value or token.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from nextvid.targets.vision import VisionNetwork, load_vision
from nextvid.vae.config import AlignmentConfig

Images = Float[Tensor, "images 3 rows columns"]
Maps = Float[Tensor, "images channels map_rows map_columns"]
Moments = Float[Tensor, "images moment_channels map_rows map_columns"]
Features = Float[Tensor, "images feature_channels map_rows map_columns"]
Scalar = Float[Tensor, ""]
SMALLEST, LARGEST_WEIGHT = 1e-4, 1e4


class Perceptual(nn.Module):
    """How differently two pictures look to a frozen network: LPIPS (arXiv 1801.03924) without learned weights.

    The squared difference of maps whose channels are scaled to length 1 at every place, a mean over places and layers.
    """

    def __init__(self, network: VisionNetwork, layers: Sequence[int]) -> None:
        super().__init__()
        self.network, self.layers = network, layers

    def forward(self, drawn: Images, truth: Images) -> Scalar:
        """0 for equal pictures, 2 at most where all features are 0 or more."""
        with torch.no_grad():
            wanted = [functional.normalize(maps, dim=1) for maps in self.network.maps(truth, self.layers)]
        found = [functional.normalize(maps, dim=1) for maps in self.network.maps(drawn, self.layers)]
        apart = [(a - b).square().sum(dim=1).mean() for a, b in zip(found, wanted, strict=True)]
        return torch.stack(apart).mean()


class Alignment(nn.Module):
    """Draws latents towards the maps of a vision network (VA-VAE, equations 2 to 4).

    ``cosine``: each latent, through a learned linear map, points where the network's feature at its place does, to within
    ``cosine_margin``. ``distance``: two latents of a picture are as alike as the features at their places, to within
    ``distance_margin``.
    """

    def __init__(self, config: AlignmentConfig, channels: int) -> None:
        """Raises ``UserError`` where there is no such network."""
        super().__init__()
        self.config = config
        self.network = load_vision(config.network)
        self.projection = nn.Conv2d(channels, self.network.widths[config.layer], 1, bias=False)

    @torch.no_grad()
    def features(self, images: Images, rows: int, columns: int) -> Features:
        """The network's maps of ``images`` at the places of the latents."""
        scale = self.config.scale
        if scale != 1:
            images = functional.interpolate(images, scale_factor=scale, mode="bilinear", antialias=scale < 1)
        (maps,) = self.network.maps(images, [self.config.layer])
        return functional.interpolate(maps.float(), (rows, columns), mode="bilinear")

    def forward(self, latents: Maps, features: Features) -> tuple[Scalar, Scalar]:
        """The margin cosine loss, and the margin distance-matrix loss."""
        pointing = functional.cosine_similarity(self.projection(latents), features, dim=1)
        cosine = functional.relu(1 - self.config.cosine_margin - pointing).mean()
        apart = (alike(latents) - alike(features)).abs()
        return cosine, functional.relu(apart - self.config.distance_margin).mean()


def alike(maps: Maps) -> Float[Tensor, "images places places"]:
    """The cosine between any two places of a picture."""
    unit = functional.normalize(maps.flatten(2), dim=1)
    return unit.transpose(1, 2) @ unit


def hinge(real: Tensor, drawn: Tensor) -> Scalar:
    """The discriminator's loss: real patches above 1, drawn ones below -1."""
    return 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + drawn).mean())


def adaptive_weight(main: Tensor, other: Tensor) -> Scalar:
    """How much larger the gradient ``main`` is than ``other`` at the same weights (VQGAN, arXiv 2012.09841, equation 7)."""
    return (main.norm() / (other.norm() + SMALLEST)).clamp(0.0, LARGEST_WEIGHT).detach()
