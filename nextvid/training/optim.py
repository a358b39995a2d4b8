"""AdamW with a learning rate per part."""

import torch

from nextvid.objectives.protocol import Objective
from nextvid.settings import TrainingConfig


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


def moments(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state by name: ``<parameter>/<moment>``."""
    return {
        f"{name}/{moment}": value
        for group in optimiser.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for moment, value in optimiser.state[parameter].items()
    }


def restore_moments(optimiser: torch.optim.Optimizer, saved: dict[str, torch.Tensor]) -> None:
    """The inverse of :func:`moments`; AdamW keeps its step counts on the CPU unless fused on an accelerator."""
    by_parameter: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in saved.items():
        name, moment = key.rsplit("/", 1)
        by_parameter.setdefault(name, {})[moment] = value
    for group in optimiser.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            state = by_parameter.get(name, {})
            optimiser.state[parameter] = {moment: value.to(parameter.device) for moment, value in state.items()}
