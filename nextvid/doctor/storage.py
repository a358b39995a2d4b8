"""Memory, shared memory, the disk of the runs, locks on it, and open files."""

import fcntl
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

from nextvid.doctor.check import Check, State, first_line
from nextvid.files import sync
from nextvid.limits import ROOT, memory_limit, memory_of_machine

GIB, MIB = 2**30, 2**20
LITTLE_MEMORY = 2 * GIB
LITTLE_SHARED = MIB
LITTLE_DISK, NO_DISK = 2 * GIB, 256 * MIB
FEW_FILES, TOO_FEW_FILES = 1024, 256
WRITTEN = 16 * MIB
_ELSEWHERE = "choose a folder on a local disk (--out)"


def check_memory(root: Path = ROOT) -> Check:
    """Total and available memory, and the container's limit."""
    return judge_memory(*memory_of_machine(root), memory_limit(root))


def judge_memory(total: int, available: int, limit: int | None) -> Check:
    """How so much memory (bytes) stands; ``limit`` is the container's, or None."""
    found = f"{available / GIB:.1f} of {total / GIB:.1f} GiB available"
    found += f"; this process's group is limited to {limit / GIB:.1f} GiB" if limit is not None else ""
    if min(available, limit if limit is not None else available) < LITTLE_MEMORY:
        mend = "free memory or raise the limit; else use smaller batches (stages.*.batch) and data.workers=0"
        return Check("memory", "note", found, mend)
    return Check("memory", "ok", found)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Where worker processes have their locks; clips are handed over in memory that needs no such place."""
    if not folder.is_dir():
        return Check(
            "shared memory", "wrong", f"there is no {folder}, which worker processes need", "use data.workers=0"
        )
    return judge_shared_memory(shutil.disk_usage(folder).free)


def judge_shared_memory(free: int) -> Check:
    """How so much shared memory (bytes) stands: a lock takes some bytes of it."""
    found = f"{free / MIB:.0f} MiB free"
    if free < LITTLE_SHARED:
        mend = "remove what other programs have left in /dev/shm, or use data.workers=0"
        return Check("shared memory", "wrong", f"{found}; worker processes cannot start without", mend)
    return Check("shared memory", "ok", found)


def check_disk(folder: Path) -> Check:
    """Free space where ``folder`` is or will be."""
    place = existing(folder)
    return judge_disk(place, shutil.disk_usage(place).free)


def judge_disk(place: Path, free: int) -> Check:
    """How so much free space (bytes) at ``place`` stands."""
    found = f"{free / GIB:.1f} GiB free at {place.absolute()}"
    if free < LITTLE_DISK:
        state: State = "wrong" if free < NO_DISK else "note"
        return Check("disk", state, found, "free some space, or choose another --out")
    return Check("disk", "ok", found)


def check_writing(folder: Path) -> Check:
    """A file written, synced and renamed as a run's files are, and its speed; nothing is left behind."""
    place = existing(folder)
    try:
        with tempfile.TemporaryDirectory(prefix=".nextvid-doctor-", dir=place) as trial:
            rate = _write(Path(trial))
    except OSError as error:
        return Check("writing", "wrong", f"{place.absolute()} cannot be written ({first_line(error)})", _ELSEWHERE)
    found = f"a file written, synced and renamed at {place.absolute()}: {rate:.0f} MB/s"
    if rate < 10:
        return Check("writing", "note", found, f"checkpoints will take long: {_ELSEWHERE}")
    return Check("writing", "ok", found)


def _write(folder: Path) -> float:
    """MB/s of a file that is written, synced and renamed."""
    content = os.urandom(WRITTEN)
    started = time.perf_counter()
    (folder / "beside").write_bytes(content)
    sync(folder / "beside")
    os.replace(folder / "beside", folder / "final")
    sync(folder)
    return WRITTEN / (time.perf_counter() - started) / 1e6


def check_locks(folder: Path) -> Check:
    """Whether a lock on a file there is granted, and keeps a second holder out: runs are held by such a lock."""
    place = existing(folder)
    try:
        with tempfile.TemporaryDirectory(prefix=".nextvid-doctor-", dir=place) as trial:
            keeps_out = _lock_twice(Path(trial) / ".lock")
    except OSError as error:
        return Check(
            "file locks", "wrong", f"files cannot be locked at {place.absolute()} ({first_line(error)})", _ELSEWHERE
        )
    if not keeps_out:
        found = f"at {place.absolute()} two holders get the same lock, so two processes could write one run"
        return Check("file locks", "wrong", found, _ELSEWHERE)
    return Check("file locks", "ok", f"files can be locked at {place.absolute()}")


def _lock_twice(file: Path) -> bool:
    """Whether the second of two locks is refused. Raises ``OSError`` where the first one is."""
    with file.open("w") as first, file.open("w") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def check_open_files() -> Check:
    """How many files this process may have open."""
    return judge_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))


def judge_open_files(soft: int, hard: int) -> Check:
    """How a limit of ``soft`` open files, which may be raised to ``hard``, stands; -1 is no limit."""
    found = f"up to {soft} files may be open" if soft != resource.RLIM_INFINITY else "any number of files may be open"
    if soft == resource.RLIM_INFINITY or soft >= FEW_FILES:
        return Check("open files", "ok", found)
    most = FEW_FILES * 4 if hard == resource.RLIM_INFINITY else min(hard, FEW_FILES * 4)
    mend = f"ulimit -n {most}" if most > soft else "ask the administrator for a higher limit, or use data.workers=0"
    return Check("open files", "wrong" if soft < TOO_FEW_FILES else "note", found, mend)


def existing(folder: Path) -> Path:
    """The nearest folder that is there, at or above ``folder``."""
    absolute = folder.absolute()
    return next(place for place in (absolute, *absolute.parents) if place.is_dir())
