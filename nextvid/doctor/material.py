"""How much of a run's footage is broken?"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nextvid.doctor.check import Check, some
from nextvid.training.footage import BROKEN_FILE, FOOTAGE_FILE

SOME, MOST = 0.1, 0.5


def check_footage(run: Path) -> Check:
    """Files that were left out at the start and that failed later, as a share of all files of the run's folders."""
    stored = _stored(run / FOOTAGE_FILE)
    if isinstance(stored, str):
        return Check("footage", "wrong", stored, f"remove {run / FOOTAGE_FILE}: the next start scans the footage anew")
    later, unreadable = _failed_later(run / BROKEN_FILE)
    if unreadable:
        found = f"{BROKEN_FILE}: line {some(unreadable)} cannot be read"
        return Check("footage", "wrong", found, "remove it from the file, else the next start stops at it")
    reports = [listed["report"] for listed in stored.values()]
    found_files = sum(report["found"] for report in reports)
    first = [path for report in reports for path, _ in report["broken_files"]]
    return judge_footage(found_files, first, later, sum(report["too_short"] for report in reports))


def judge_footage(files: int, first: list[str], later: list[str], too_short: int) -> Check:
    """How ``first`` (broken at the start) and ``later`` (while clips were drawn) stand among so many files."""
    if not files:
        return Check("footage", "ok", "built-in footage only")
    broken = list(dict.fromkeys([*first, *later]))
    share = len(broken) / files
    found = (
        f"{len(broken)} of {files} files broken ({share:.0%}; {len(later)} of them failed later), {too_short} too short"
    )
    if share <= SOME:
        return Check("footage", "ok", found)
    mend = f"copy or convert them anew; {FOOTAGE_FILE} and {BROKEN_FILE} name all with reasons, such as {broken[0]}"
    return Check("footage", "wrong" if share > MOST else "note", found, mend)


def _stored(file: Path) -> dict[str, Any] | str:
    """What ``footage.json`` holds (nothing, where there is none), or a sentence on why it cannot be read."""
    if not file.is_file():
        return {}
    try:
        stored = json.loads(file.read_text())
        for listed in stored.values():
            listed["report"]["found"], listed["report"]["broken_files"], listed["report"]["too_short"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{FOOTAGE_FILE} cannot be read ({error!r})"
    return stored


def _failed_later(file: Path) -> tuple[list[str], list[int]]:
    """The files named in ``broken_files.jsonl``, and the numbers of lines that cannot be read; a cut last line is none."""
    lines = file.read_text(errors="replace").split("\n")[:-1] if file.is_file() else []
    named = list(enumerate(_paths(lines), 1))
    return list(dict.fromkeys(path for _, path in named if path)), [number for number, path in named if path is None]


def _paths(lines: list[str]) -> Iterator[str | None]:
    for line in lines:
        try:
            yield str(json.loads(line)["path"])
        except (ValueError, KeyError, TypeError):
            yield None
