"""Training methods: one file each, one protocol. Every module of this package is imported, so a new file is found."""

import importlib
import pkgutil

from nextvid.objectives.protocol import Flops, Health, Losses, Objective, ObjectiveConfig

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

from nextvid.objectives.nextvid import NextVid  # noqa: E402 (after its siblings, by name)

CONFIGS: dict[str, type[ObjectiveConfig]] = {
    str(config.model_fields["name"].default): config for config in ObjectiveConfig.__subclasses__()
}
"""Every method's settings by the name that a recipe gives it."""

__all__ = ["CONFIGS", "Flops", "Health", "Losses", "NextVid", "Objective", "ObjectiveConfig"]
