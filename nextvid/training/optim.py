"""AdamW with a learning rate per part."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from nextvid.objectives.protocol import Objective
from nextvid.settings import TrainingConfig

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def build_optimiser(objective: Objective, config: TrainingConfig) -> torch.optim.AdamW:
    """Two groups a part: matrices with weight decay, vectors (biases, norms, queries) without. Groups name their part."""
    groups = []
    for part, parameters in objective.parts().items():
        matrices = [(name, p) for name, p in parameters if p.ndim > 1]
        vectors = [(name, p) for name, p in parameters if p.ndim <= 1]
        for members, decay in ((matrices, config.weight_decay), (vectors, 0.0)):
            groups.append(
                {
                    "params": [p for _, p in members],
                    "names": [name for name, _ in members],
                    "part": part,
                    "weight_decay": decay,
                }
            )
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, fused=True)


def set_learning_rates(optimiser: torch.optim.Optimizer, lr: dict[str, float]) -> None:
    """Give every group its part's learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = lr[group["part"]]


def gradient_norms(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The gradient's norm by part, over all shards of it; 0 where a part took no part in the step."""
    gradients: dict[str, list[Tensor]] = {}
    for group in optimiser.param_groups:
        gradients.setdefault(group["part"], []).extend(p.grad for p in group["params"] if p.grad is not None)
    device = optimiser.param_groups[0]["params"][0].device
    return {
        part: _whole(nn.utils.get_total_norm(found)) if found else torch.zeros((), device=device)
        for part, found in gradients.items()
    }


def clip_gradients(optimiser: torch.optim.Optimizer, norms: dict[str, Tensor], at_most: float) -> float:
    """Scale all gradients so that their common norm is ``at_most``, where it is more; returns what it was."""
    total = torch.linalg.vector_norm(torch.stack(list(norms.values())))
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    nn.utils.clip_grads_with_norm_(parameters, at_most, total)
    return total.item()


def _whole(norm: Tensor) -> Tensor:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def moments(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by name: ``<parameter>/<moment>``."""
    return {
        f"{name}/{moment}": value
        for group in optimiser.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for moment, value in optimiser.state[parameter].items()
    }


def moments_to_fill(optimiser: torch.optim.Optimizer, known: set[str]) -> dict[str, Tensor]:
    """The optimiser's state anew, for the ``known`` names (as :func:`moments` gives them), to be overwritten."""
    for group in optimiser.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            fresh = {
                moment: torch.zeros((), device=parameter.device) if moment == "step" else torch.zeros_like(parameter)
                for moment in MOMENTS
                if f"{name}/{moment}" in known
            }
            optimiser.state[parameter] = fresh
    return moments(optimiser)
