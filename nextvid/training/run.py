"""A run's folder: the files that DESIGN promises, each whole at every moment."""

import fcntl
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from safetensors.torch import save
from torch import Tensor

from nextvid.config import Recipe, differences, parse_settings, save_recipe
from nextvid.errors import UserError
from nextvid.files import read_json, replace_file, replace_json
from nextvid.objectives.protocol import Objective
from nextvid.settings import Strict
from nextvid.training.device import processor_name

FORMAT_VERSION = 1
CHANGES, RELIANCES = "recipe_changes.jsonl", "relies_on.json"
LET_GO = 2.0
"""Seconds within which the loader's workers of a run that was killed have let go of the folder."""
SPEED_ONLY = re.compile(
    r"data\.(workers|timeout)|stages\[\d+\]\.micro_batch|"
    r"training\.(threads|device|parallel|timeout|activation_checkpointing|compile|checkpoint_every|keep_\w+|wandb)"
)
"""Settings that say how a run is computed and kept, and not what it computes: they may change whenever it goes on."""


class Run:
    """The folder of one run; held by one process at a time, the first of those that train."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self._held: IO[str] | None = None

    def check(self, recipe: Strict, allow: bool = False) -> list[str]:
        """See that the folder may be used for ``recipe``; writes nothing. Returns what has changed since the run began.

        Raises ``UserError`` where it holds something else, or another recipe's run and that is not allowed.
        """
        stored = self.path / "recipe.yaml"
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; --out needs a folder")
        if stored.is_file():
            return self._changes(recipe, stored, allow)
        if self.path.is_dir() and any(p.name != ".lock" and not _is_leftover(p) for p in self.path.iterdir()):
            raise UserError(f"{self.path} is not empty and holds no run (no recipe.yaml); choose another --out")
        return []

    def open(self, recipe: Strict) -> None:
        """Create the folder where there is none, and hold it. Raises ``UserError`` where another process does."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock()
        for path in filter(_is_leftover, list(self.path.iterdir())):
            path.unlink()
        if not (self.path / "recipe.yaml").is_file():
            replace_file(self.path / "recipe.yaml", save_recipe(recipe).encode())

    def close(self) -> None:
        """Let go of the folder."""
        if self._held is not None:
            self._held.close()

    def change(self, recipe: Strict, changes: list[str], step: int) -> None:
        """Go on under another recipe from ``step``: what changed is added to ``recipe_changes.jsonl``."""
        with (self.path / CHANGES).open("a") as handle:
            handle.write(json.dumps({"format_version": FORMAT_VERSION, "step": step, "changes": changes}) + "\n")
        replace_file(self.path / "recipe.yaml", save_recipe(recipe).encode())

    def keep_reliances(self, checksums: Mapping[str, str]) -> None:
        """Write down what the run relies on outside its folder: the checksum of each file, by the setting that names it."""
        replace_json(self.path / RELIANCES, {"format_version": FORMAT_VERSION, "checksums": dict(checksums)})

    def check_reliances(self, checksums: Mapping[str, str]) -> None:
        """Raise ``UserError`` where something that the run began with is another file now."""
        known = read_json(self.path / RELIANCES).get("checksums", {})
        for setting, digest in checksums.items():
            if known.get(setting, digest) != digest:
                raise UserError(
                    f"{setting} is not what {self.path} began with: its weights have changed. Put the old file back (SHA-256 "
                    f"{known[setting]}), or start another run"
                )

    def _changes(self, recipe: Strict, stored: Path, allow: bool) -> list[str]:
        """A setting that an earlier nextvid did not know, and so did not write, has its default."""
        begun = parse_settings(type(recipe), yaml.safe_load(stored.read_text()), str(stored))
        found = differences(begun.model_dump(mode="json"), recipe.model_dump(mode="json"))
        other = [text for text in found if not SPEED_ONLY.fullmatch(text.partition(": ")[0])]
        if other and not allow:
            raise UserError(
                f"{self.path} belongs to another recipe ({'; '.join(other[:6])}); go on with that recipe, choose another "
                "--out, or say --allow to go on with this one from here"
            )
        return found

    def _lock(self) -> None:
        self._held = (self.path / ".lock").open("w")
        until = time.monotonic() + LET_GO
        while True:
            try:
                return fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise UserError(
                        f"{self.path} is in use by another process; wait for it or choose another --out"
                    ) from error
                time.sleep(0.1)

    def write_environment(self, device: torch.device, processes: int = 1) -> None:
        """What the run ran on, for whoever repeats it."""
        packages = ("torch", "numpy", "av", "safetensors", "nextvid")
        replace_json(
            self.path / "environment.json",
            {
                "format_version": FORMAT_VERSION,
                "python": platform.python_version(),
                "platform": platform.platform(),
                "processor": processor_name(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "processes": processes,
                "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
                "packages": {name: importlib.metadata.version(name) for name in packages},
                "command": sys.argv,
            },
        )

    def rewind_metrics(self, step: int) -> None:
        """Keep the rows up to ``step``: later ones, and a line that was cut short, will be written again."""
        if self.metrics.is_file():
            rows = self.metrics.read_text().split("\n")[:-1]
            kept = [row for row in rows if json.loads(row)["step"] <= step]
            replace_file(self.metrics, "".join(row + "\n" for row in kept).encode())

    def append_row(self, row: dict[str, Any]) -> None:
        """Add a row to ``metrics.jsonl``."""
        with self.metrics.open("a") as handle:
            handle.write(json.dumps(row) + "\n")

    def export_encoder(
        self, objective: Objective, recipe: Recipe, step: int, state: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write ``encoder.safetensors`` (keys ``ema.*`` and ``online.*``) and ``config.json``.

        ``state``: whole tensors by the objective's own names; by default those that it holds.
        """
        prefixes = export_prefixes(objective)
        found = (objective.state_dict() if state is None else state).items()
        tensors = {
            f"{prefixes[name.partition('.')[0]]}.{name.partition('.')[2]}": value.detach().cpu().contiguous().clone()
            for name, value in found
            if name.partition(".")[0] in prefixes
        }
        config = encoder_config(objective, recipe, step)
        replace_file(self.path / "encoder.safetensors", save(tensors, metadata={"config": json.dumps(config)}))
        replace_json(self.path / "config.json", config)

    def update_metrics(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Merge ``figures`` into ``metrics.json``, one level deep; returns the whole."""
        file = self.path / "metrics.json"
        merged: dict[str, Any] = read_json(file) or {"format_version": FORMAT_VERSION}
        for key, value in figures.items():
            merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
        replace_json(file, merged)
        return merged


def _is_leftover(path: Path) -> bool:
    """What a kill has left of a file that was being written (:mod:`nextvid.files`)."""
    return path.name.startswith(".") and path.name.endswith(".tmp") and path.is_file()


def encoder_config(objective: Objective, recipe: Recipe, step: int) -> dict[str, Any]:
    """What a weights file says of its encoders: their shape, and the clips that they are to be read with."""
    main = recipe.main_stage
    return {
        "format_version": FORMAT_VERSION,
        "encoder": asdict(recipe.encoder),
        "objective": recipe.objective.name,
        "recipe": recipe.name,
        "step": step,
        "clip": {"frames": main.frames, "fps": main.fps, "size": main.size},
        "weights": list(objective.exports()),
        "relies_on": objective.relies_on(),
    }


def export_prefixes(objective: Objective) -> dict[str, str]:
    """The objective's own name of each exported encoder, to the name that it is exported by."""
    own = {id(module): name for name, module in objective.named_modules()}
    return {own[id(encoder)]: exported for exported, encoder in objective.exports().items()}
