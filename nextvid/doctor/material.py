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
    summaries = [source["summary"] for source in stored.values()]
    return judge_footage(
        files=sum(summary["found"] for summary in summaries),
        broken=sum(sum(summary["broken"].values()) for summary in summaries),
        too_short=sum(summary["too_short"] for summary in summaries),
        named=[path for source in stored.values() for path, _ in source["broken_files"]],
        later=later,
    )


def judge_footage(files: int, broken: int, too_short: int, named: list[str], later: list[str]) -> Check:
    """How many were ``broken`` at the start, of which some are ``named``, and ``later``, while clips were drawn."""
    if not files:
        return Check("footage", "ok", "built-in footage only")
    later = [path for path in later if path not in named]
    share = (broken + len(later)) / files
    found = (
        f"{broken + len(later)} of {files} files broken ({share:.0%}; {len(later)} of them failed later), "
        f"{too_short} too short"
    )
    if share <= SOME:
        return Check("footage", "ok", found)
    mend = f"copy or convert them anew; {FOOTAGE_FILE} and {BROKEN_FILE} name all with reasons, such as {[*named, *later][0]}"
    return Check("footage", "wrong" if share > MOST else "note", found, mend)


def _stored(file: Path) -> dict[str, Any] | str:
    """What ``footage.json`` holds (nothing, where there is none), or a sentence on why it cannot be read."""
    if not file.is_file():
        return {}
    try:
        stored = json.loads(file.read_text())["sources"]
        for source in stored.values():
            source["broken_files"], [source["summary"][key] for key in ("found", "broken", "too_short")]
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
