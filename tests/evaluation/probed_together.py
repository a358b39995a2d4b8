"""What ``torchrun`` starts in a test: several fits, one after the other, by all processes; the first writes what they came to."""

import sys
from pathlib import Path

import torch
from frozen_clips import AUGMENTED, Patches, TintedClips, fresh

from nextvid.evaluation.features import Supply
from nextvid.evaluation.fitting import fit_probes
from nextvid.evaluation.fresh import FreshTokens
from nextvid.evaluation.probe import ProbeConfig
from nextvid.evaluation.store import write_store
from nextvid.training.distributed import World, world_of

CASES: dict[str, dict] = {
    "fresh": {"augmented": True},
    "stored": {"stored": True, "standardise": "both"},
    "broken": {"broken": (0, 3, 4, 12, 30, 31, 32)},
    "deep": {"depth": 2, "standardise": False},
}
TRAIN, TEST = 41, 23


def supplies(case: str, folder: Path, world: World) -> tuple[list[Supply], list[Supply]]:
    """Two encoders' tokens of both splits."""
    settings = CASES[case]
    broken = settings.get("broken", ())
    views = {"views": AUGMENTED} if settings.get("augmented") else {}
    found = []
    for count, seed in ((TRAIN, 1), (TEST, 2)):
        clips = TintedClips(count, seed, [sample for sample in broken if sample < count], strength=12)
        first = fresh(Patches(), clips, **(views if count == TRAIN else {}))
        second = FreshTokens(Patches(12, seed=5), [0, 1], first.reader, first.tasks, first.labels, 1, 1)
        pair: list[Supply] = [first, second]
        if settings.get("stored"):
            pair = [
                write_store(one, folder / f"{case}-{count}-{place}", "", 1, "float32", world=world, progress=False)
                for place, one in enumerate((first, second))
            ]
        found.append(pair)
    return found[0], found[1]


def config(case: str) -> ProbeConfig:
    """As many steps as show whether gradients are summed rightly, and a held-out part of an odd number."""
    settings = {key: CASES[case][key] for key in ("depth", "standardise") if key in CASES[case]}
    return ProbeConfig(epochs=3, batch=10, lrs=(1e-2, 1e-3, 1e-4), held_out=0.22, heads=4, **settings)


def probe(case: str, folder: Path, world: World) -> list[dict]:
    """What both encoders' probes came to."""
    trains, tests = supplies(case, folder, world)
    found = []
    for fitted, test in zip(fit_probes(trains, "tint", config(case), progress=False, world=world), tests, strict=True):
        samples, probabilities = fitted.probabilities(test, progress=False, world=world)
        mine = torch.arange(len(test))[world.rank :: world.ranks]
        found.append(
            {
                "best": fitted.best.model_dump(),
                "grid": [member.model_dump() for member in fitted.grid],
                "effect": fitted.standardise_effect,
                "samples": samples,
                "probabilities": probabilities,
                "weights": {name: tensor.clone() for name, tensor in fitted.probe.state_dict().items()},
                "shares": world.gather(mine.tolist()),
            }
        )
    return found


def main() -> None:
    """Argument: a folder."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with world_of(60.0, "cpu") as world:
        found = {case: probe(case, folder, world) for case in CASES}
        torch.save(found, folder / f"rank{world.rank}.pt")


if __name__ == "__main__":
    main()
