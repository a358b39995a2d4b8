"""An autoencoder in training: everything that its step needs, and the step's backward passes."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from nextvid.models.autoencoder import Autoencoder, Posterior
from nextvid.models.discriminator import Discriminator
from nextvid.targets.vision import PACKAGED, load_vision
from nextvid.vae.config import VaeRecipe
from nextvid.vae.losses import Alignment, Images, Maps, Moments, Perceptual, adaptive_weight, hinge


class VaeModel(nn.Module):
    """The autoencoder, its adversary, and what its latents are aligned with."""

    def __init__(self, recipe: VaeRecipe) -> None:
        """Raises ``UserError`` where a vision network is missing."""
        super().__init__()
        self.losses = recipe.losses
        self.autoencoder = Autoencoder(recipe.model)
        self.discriminator = Discriminator(recipe.discriminator) if self.losses.adversarial else None
        self.perceptual = (
            Perceptual(load_vision(PACKAGED), self.losses.perceptual_layers) if self.losses.perceptual else None
        )
        align = self.losses.alignment
        self.alignment = Alignment(align, recipe.model.latent_channels) if align.weight else None

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters of the autoencoder (with the alignment's projection) and of the discriminator."""
        projection = list(self.alignment.parameters()) if self.alignment else []
        parts = {"autoencoder": [*self.autoencoder.parameters(), *projection]}
        return parts | ({"discriminator": list(self.discriminator.parameters())} if self.discriminator else {})

    def backward(self, images: Images, noise: Maps, adversarial: bool) -> dict[str, Tensor]:
        """Add the gradients of all losses to the parameters, for pictures in [-1, 1] and standard normal ``noise``.

        In three parts, from the picture back, so that each adaptive weight is a ratio of gradients that are there already:
        losses to the drawn picture, the picture to the latent, the latent to the encoder. Returns the losses by name.
        """
        autoencoder = self.autoencoder
        moments = autoencoder.moments(images)
        leaf = moments.detach().float().requires_grad_()
        latents = Posterior.of(leaf).sample(noise)
        drawn = autoencoder.decode(latents)
        found, by_picture = self._picture_losses(images, drawn, adversarial)
        drawn.backward(by_picture, retain_graph=True)
        by_moments, leaf.grad = cast(Tensor, leaf.grad), None
        further = self._latent_losses(images, leaf, latents, moments, by_moments)
        moments.backward((by_moments + cast(Tensor, leaf.grad)).to(moments.dtype))
        if adversarial and self.discriminator is not None:
            found["discriminator"] = hinge(self.discriminator(images), self.discriminator(drawn.detach()))
            found["discriminator"].backward()
        return {name: loss.detach() for name, loss in (found | further).items()}

    def _picture_losses(self, images: Images, drawn: Images, adversarial: bool) -> tuple[dict[str, Tensor], Tensor]:
        """The losses of the drawn picture, and the gradient of their weighted sum with respect to it."""
        leaf = drawn.detach().float().requires_grad_()
        found = {"reconstruction": functional.l1_loss(leaf, images)}
        if self.perceptual is not None:
            found["perceptual"] = self.perceptual(leaf, images)
        total = found["reconstruction"] + self.losses.perceptual * found.get("perceptual", leaf.new_zeros(()))
        (gradient,) = torch.autograd.grad(total, leaf)
        if adversarial and self.discriminator is not None:
            found["adversarial"] = -self.discriminator(leaf).mean()
            (other,) = torch.autograd.grad(found["adversarial"], leaf)
            last = self.autoencoder.decoder.conv_out.weight
            weight = adaptive_weight(_at(drawn, last, gradient), _at(drawn, last, other))
            gradient = gradient + self.losses.adversarial * weight * other
        return found, gradient.to(drawn.dtype)

    def _latent_losses(
        self, images: Images, leaf: Moments, latents: Maps, moments: Moments, by_moments: Moments
    ) -> dict[str, Tensor]:
        """The losses of the latent; ``leaf`` gets the gradient of their weighted sum, parameters of the projection theirs."""
        kl = Posterior.of(leaf).divergence().sum() / images.numel()
        found, total = {"kl": kl}, self.losses.kl * kl
        if self.alignment is None:
            total.backward()
            return found
        features = self.alignment.features(images, *latents.shape[-2:])
        cosine, distance = self.alignment(latents, features)
        aligned = cosine + distance
        last = self.autoencoder.encoder.conv_out.weight
        (other,) = torch.autograd.grad(aligned, leaf, retain_graph=True)
        weight = adaptive_weight(_at(moments, last, by_moments), _at(moments, last, other))
        (total + self.losses.alignment.weight * weight * aligned).backward()
        return found | {"cosine": cosine, "distance": distance, "alignment_weight": weight}


def _at(output: Tensor, weight: Tensor, gradient: Tensor) -> Float[Tensor, "..."]:
    """The gradient at ``weight``, given that at ``output``."""
    (found,) = torch.autograd.grad(output, weight, gradient.to(output.dtype), retain_graph=True)
    return found
