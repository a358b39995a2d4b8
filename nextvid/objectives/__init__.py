"""Training methods: one file each, one protocol. Every module of this package is imported, so a new file is found."""

import importlib
import pkgutil

from nextvid.objectives.protocol import Flops, Health, Losses, Objective, ObjectiveConfig

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

from nextvid.objectives.nextvid import NextVid  # noqa: E402 (after its siblings, by name)


def _configs(base: type[ObjectiveConfig]) -> dict[str, type[ObjectiveConfig]]:
    found: dict[str, type[ObjectiveConfig]] = {}
    for config in base.__subclasses__():
        found |= {str(config.model_fields["name"].default): config, **_configs(config)}
    return found


CONFIGS = _configs(ObjectiveConfig)
"""Every method's settings by the name that a recipe gives it."""

__all__ = ["CONFIGS", "Flops", "Health", "Losses", "NextVid", "Objective", "ObjectiveConfig"]
