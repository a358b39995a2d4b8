"""One batch can be learned by heart: generation then reproduces it, through masks and noise that it was not trained on."""

import pytest
import torch
from builders import WEIGHTS, Case, encoder_config, objective_config
from torch import Tensor

from nextvid.data.loader import Batch
from nextvid.data.transforms import normalise
from nextvid.masking import MaskConfig
from nextvid.objectives import NextVid

CASE = Case(frames=4, height=3, width=3, batch=4, patch=2, model_width=32)
MASK = MaskConfig(1, 0.3)
LR, WARM_UP = 1e-2, 20


def moving_waves() -> Tensor:
    """A wave a clip, each moving its own way."""
    time = torch.arange(CASE.frames * CASE.tubelet)[:, None, None, None]
    colour = torch.arange(3)[:, None, None]
    y, x = torch.arange(CASE.height * CASE.patch)[:, None], torch.arange(CASE.width * CASE.patch)
    directions = [(1, 0), (0, 1), (-1, 1), (1, 1)]
    waves = [(0.9 * (x - 0.7 * dx * time) + 0.5 * (y - 0.7 * dy * time) + colour).sin() for dx, dy in directions]
    return ((torch.stack(waves) + 1) * 127.5).round().to(torch.uint8)


def learn_by_heart(video: Tensor, steps: int) -> tuple[NextVid, list[float]]:
    """Train on one batch, under new masks and noise every step; the flow loss of each step."""
    torch.manual_seed(0)
    model = NextVid(encoder_config(CASE), objective_config(CASE))
    model.settings.masks, model.settings.draws, model.settings.ema = [MASK], 4, 0.99
    parameters = [p for part in model.parts().values() for _, p in part]
    optimiser = torch.optim.AdamW(parameters, lr=LR, betas=(0.9, 0.95), weight_decay=0.0)
    flow = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / WARM_UP) * (1 - step / steps)
        losses = model(Batch(video, [step * CASE.batch + i for i in range(CASE.batch)]), WEIGHTS)
        optimiser.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        model.after_step(step)
        flow.append(losses.terms["flow"].item())
    return model, flow


@torch.no_grad()
def generate(model: NextVid, video: Tensor) -> Tensor:
    """Frames after the first latent frame, each drawn from what is visible of those before it."""
    clip, keys = normalise(video), list(range(10**6, 10**6 + CASE.batch))
    z = model.predict(clip, model.draw_visible(clip, MASK, keys, 0))
    return model.target.decode(model.sample(z, CASE.grid, keys), *CASE.grid)


def psnr(frames: Tensor, truth: Tensor) -> float:
    return 10 * torch.log10(4 / (frames - truth).square().mean()).item()


@pytest.mark.parametrize(
    ("steps", "loss_left", "decibels_gained"),
    [(400, 0.15, 3.0), pytest.param(1200, 0.06, 12.0, marks=pytest.mark.slow)],
)
def test_one_batch_can_be_overfitted(steps: int, loss_left: float, decibels_gained: float, unchecked: None) -> None:
    video = moving_waves()
    model, flow = learn_by_heart(video, steps)
    assert sum(flow[-20:]) / 20 < loss_left * flow[0]

    clip, tubelet = normalise(video), CASE.tubelet
    truth = clip[:, tubelet:]
    copies = {
        "the clip's mean": clip.mean(dim=1, keepdim=True).expand_as(truth),
        "the batch's mean": clip.mean(dim=0, keepdim=True)[:, tubelet:].expand_as(truth),
        "the frames before": clip[:, :-tubelet],
    }
    drawn = psnr(generate(model, video), truth)
    for name, copied in copies.items():
        assert drawn > psnr(copied, truth) + decibels_gained, f"no better than {name}"
