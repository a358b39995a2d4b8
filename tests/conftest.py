"""Every test runs with the shapes and types in the annotations checked, on one thread, from fixed examples."""

import sys
from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from hypothesis import settings

assert "nextvid" not in sys.modules, "nextvid was imported before its annotations could be checked"
jaxtyping.install_import_hook("nextvid", "beartype.beartype")

torch.set_num_threads(1)

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=10, database=None)
settings.register_profile("explore", deadline=None, max_examples=200)
settings.load_profile("repeatable")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """The annotations are not checked, as in a user's hands: for what the code itself says of wrong input."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
