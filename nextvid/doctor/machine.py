"""``nextvid doctor``: this machine, check by check."""

from collections.abc import Callable
from pathlib import Path

from nextvid.doctor import compute, decoders, packages, storage
from nextvid.doctor.check import Check, guarded


def examine_machine(folder: Path = Path()) -> list[Check]:
    """What this machine can do and what is wrong with it; ``folder`` is where runs will be, and need not be there.

    It takes some seconds and leaves nothing behind.
    """
    examined: list[tuple[str, Callable[[], Check]]] = [
        ("Python", packages.check_python),
        ("packages", packages.check_packages),
        ("torchvision", packages.check_torchvision),
        ("devices", compute.check_devices),
        ("cores", compute.check_cores),
        ("arithmetic", compute.check_arithmetic),
        ("memory", storage.check_memory),
        ("shared memory", storage.check_shared_memory),
        ("disk", lambda: storage.check_disk(folder)),
        ("writing", lambda: storage.check_writing(folder)),
        ("file locks", lambda: storage.check_locks(folder)),
        ("open files", storage.check_open_files),
        ("FFmpeg", decoders.check_ffmpeg),
    ]
    return [*(guarded(name, examine) for name, examine in examined), *_decoders()]


def _decoders() -> list[Check]:
    found: list[Check] = []

    def examine() -> Check:
        found.extend(decoders.check_decoders())
        return found.pop()

    last = guarded("decoder", examine)
    return [*found, last]
