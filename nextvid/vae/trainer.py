"""One step of an autoencoder's training, and where it stands."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nextvid.data.loader import Batch, BatchPlan
from nextvid.data.transforms import normalise
from nextvid.models.autoencoder import AutoencoderConfig
from nextvid.randomness import key_of, normal
from nextvid.training.checkpoint import Progress
from nextvid.training.device import device_of
from nextvid.vae.config import VaeRecipe
from nextvid.vae.losses import Images
from nextvid.vae.model import VaeModel


@dataclass
class VaeTrainer:
    """Model and optimiser of a recipe, and where they stand."""

    model: VaeModel
    optimiser: torch.optim.AdamW
    recipe: VaeRecipe
    device: torch.device
    progress: Progress = field(default_factory=Progress)


def build_vae_trainer(recipe: VaeRecipe) -> VaeTrainer:
    """A recipe at step 0."""
    if recipe.training.threads:
        torch.set_num_threads(recipe.training.threads)
    torch.manual_seed(key_of("vae", recipe.seed))
    device = device_of(recipe.training.device)
    model = VaeModel(recipe).to(device)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [
        {"params": parameters, "names": [names[id(p)] for p in parameters], "part": part}
        for part, parameters in model.parts().items()
    ]
    training = recipe.training
    optimiser = torch.optim.AdamW(groups, lr=0.0, betas=training.betas, weight_decay=0.0, fused=True)
    return VaeTrainer(model, optimiser, recipe, device)


def train_step(trainer: VaeTrainer, batch: Batch) -> dict[str, float]:
    """Gradients of all losses, clipped part by part, and an update; returns losses and gradient norms by name.

    Where one of them is not finite the step is skipped, and ``bad`` is 1.
    """
    recipe, step, model = trainer.recipe, trainer.progress.step, trainer.model
    trainer.optimiser.zero_grad(set_to_none=True)
    images = pictures_of(batch, trainer.device)
    noise = noise_of(batch, recipe.model, images)
    half = recipe.training.precision == "bfloat16"
    with torch.autocast(trainer.device.type, torch.bfloat16, enabled=half):
        losses = model.backward(images, noise, step >= recipe.losses.adversarial_from)
    figures = {name: loss.item() for name, loss in losses.items()}
    for part, parameters in model.parts().items():
        norm = nn.utils.clip_grad_norm_(parameters, recipe.training.clip_norm)
        figures[f"grad_norm/{part}"] = norm.item()
    if not all(math.isfinite(value) for value in figures.values()):
        return {**figures, "bad": 1.0}
    for group in trainer.optimiser.param_groups:
        group["lr"] = learning_rate(recipe, step)
    trainer.optimiser.step()
    return {**figures, "bad": 0.0}


def pictures_of(batch: Batch, device: torch.device) -> Images:
    """Every frame of a batch in [-1, 1]."""
    return normalise(batch.frames.to(device)).flatten(0, 1)


def noise_of(
    batch: Batch, shape: AutoencoderConfig, images: Images
) -> Float[Tensor, "images channels map_rows map_columns"]:
    """The noise of every picture's latent: a function of its clip's key and its place in it."""
    rows, columns = (size // shape.stride for size in images.shape[-2:])
    frames = batch.frames.shape[1]
    return normal(batch.keys, "latent", (frames, shape.latent_channels, rows, columns), images.device).flatten(0, 1)


def learning_rate(recipe: VaeRecipe, step: int) -> float:
    """From 0 to ``lr``, then by half a cosine to ``final_lr``."""
    training = recipe.training
    if step < training.warmup:
        return training.lr * (step + 1) / training.warmup
    share = (step - training.warmup) / max(1, recipe.steps - training.warmup)
    return training.final_lr + (training.lr - training.final_lr) * 0.5 * (1 + math.cos(math.pi * share))


def plan_of(recipe: VaeRecipe, step: int) -> BatchPlan:
    """The batch of a step."""
    return BatchPlan(step * recipe.batch, recipe.batch, recipe.frames, recipe.fps, recipe.size)
