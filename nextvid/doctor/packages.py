"""Python and the packages, against what nextvid asks for."""

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Iterable

from nextvid.doctor.check import Check, Finding, combine, some

IMPORT_SECONDS = 120
_SHOWN = ("torch", "numpy", "av")


def check_python() -> Check:
    """Python's version against ``requires-python``. Raises ``PackageNotFoundError`` where nextvid is not installed."""
    wanted = importlib.metadata.metadata("nextvid")["Requires-Python"] or ""
    return judge_python(platform.python_version(), wanted)


def judge_python(version: str, wanted: str) -> Check:
    """Whether Python ``version`` meets the specifier ``wanted``."""
    from packaging.specifiers import SpecifierSet  # noqa: PLC0415

    if SpecifierSet(wanted).contains(version, prereleases=True):
        return Check("Python", "ok", f"Python {version}")
    return Check(
        "Python",
        "wrong",
        f"Python {version}, but nextvid supports {wanted}",
        "make the virtual environment with a Python that it supports: make install PYTHON=python3.13",
    )


def check_packages() -> Check:
    """Every requirement of the installed nextvid against what is installed. Raises ``PackageNotFoundError`` without it."""
    return judge_packages(importlib.metadata.requires("nextvid") or [])


def judge_packages(requirements: Iterable[str]) -> Check:
    """Whether what is installed meets ``requirements``; those of extras count where they are installed."""
    findings, versions = [], {}
    for text in requirements:
        name, version, problem = _compare(text)
        versions[name] = version
        if problem:
            findings.append(Finding("wrong", problem, f'pip install "{text.split(";")[0].strip()}"'))
    shown = ", ".join(f"{name} {versions[name]}" for name in _SHOWN if versions.get(name))
    count = sum(version is not None for version in versions.values())
    return combine("packages", findings, f"{shown}; all {count} packages have versions that nextvid supports")


def _compare(text: str) -> tuple[str, str | None, str | None]:
    """A requirement's name, the version installed, and what is wrong with that."""
    from packaging.requirements import Requirement  # noqa: PLC0415

    wanted = Requirement(text)
    needed = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return wanted.name, None, f"{wanted.name} is not installed" if needed else None
    if wanted.specifier.contains(version, prereleases=True):
        return wanted.name, version, None
    return wanted.name, version, f"{wanted.name} is {version}, but nextvid supports {wanted.specifier}"


def check_torchvision() -> Check:
    """Whether torchvision, where installed, can be imported: nextvid needs it not, but torchmetrics tries to.

    It is imported in a process of its own.
    """
    if importlib.util.find_spec("torchvision") is None:
        return Check("torchvision", "ok", "torchvision is not installed, and nothing needs it")
    path = os.pathsep.join(part for part in sys.path if part)
    tried = subprocess.run(
        [sys.executable, "-c", "import torchvision; print(torchvision.__version__)"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=IMPORT_SECONDS,
        check=False,
    )
    if tried.returncode == 0:
        return Check("torchvision", "ok", f"torchvision {tried.stdout.strip()} can be imported")
    why = some((tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"])[-1:])
    return Check(
        "torchvision",
        "wrong",
        f"torchvision is installed and cannot be imported ({why}), which breaks torchmetrics too; it is mostly one that "
        "was built for another torch",
        "pip uninstall torchvision",
    )
