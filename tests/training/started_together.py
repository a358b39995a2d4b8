"""What ``torchrun`` starts in a test: a step of a run that takes weights and moments along from another."""

import sys
from pathlib import Path

from rich.console import Console
from together import shared_recipe

from nextvid.settings import InitConfig
from nextvid.training import loop

if __name__ == "__main__":
    origin, out = sys.argv[1:]
    init = InitConfig(origin=origin, optimiser=True)
    recipe = shared_recipe(parallel="fsdp").model_copy(update={"init": init})
    loop.pretrain(recipe, Path(out), 1, Console(stderr=True, width=1000))
