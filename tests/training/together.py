"""What ``torchrun`` starts in the tests: several trainings, one after the other, by all processes."""

import json
import os
import sys
from pathlib import Path

from nano import nano_recipe
from rich.console import Console

from nextvid.config import Recipe, parse_recipe
from nextvid.training import loop


def shared_recipe(micro_batch: int | None = None, batch: int = 4, **training: object) -> Recipe:
    """The nano recipe with batches that two processes can share."""
    raw = nano_recipe().model_dump(mode="json")
    stages = [{**stage, "batch": batch, "micro_batch": micro_batch} for stage in raw["stages"]]
    return parse_recipe({**raw, "stages": stages, "training": {**raw["training"], **training}}, "nano")


def main() -> None:
    """Arguments: a JSON list of ``[folder, until, {settings of training}]``."""
    for folder, until, training in json.loads(sys.argv[1]):
        loop.pretrain(shared_recipe(**training), Path(folder), until, Console(stderr=True))
    print(f"rank {os.environ['RANK']} done")


if __name__ == "__main__":
    main()
