"""One finding, and findings as JSON and as a table."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.table import Table

State = Literal["ok", "note", "wrong"]
FORMAT_VERSION = 1
NAMED_AT_MOST = 3
_STYLES: dict[State, str] = {"ok": "green", "note": "yellow", "wrong": "bold red"}


@dataclass(frozen=True)
class Check:
    """What was looked at, how it stands, what was found (with figures), and what to do about it (empty: nothing).

    ``figures``: what was found in a form that a machine reads, where there is more of it than a sentence holds.
    """

    name: str
    state: State
    found: str
    mend: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """A part of a check that has several: how it stands, what was found, what to do."""

    state: State
    found: str
    mend: str = ""


def guarded(name: str, examine: Callable[[], Check]) -> Check:
    """What ``examine`` finds; where it fails in a way that it does not foresee, a ``wrong`` check that names the error."""
    try:
        return examine()
    except Exception as error:
        return Check(
            name,
            "wrong",
            f"the check itself failed: {type(error).__name__}: {first_line(error)}",
            "the other checks stand; report this one with what it says",
        )


def combine(name: str, findings: Iterable[Finding], sound: str) -> Check:
    """One check of several findings, as bad as the worst of them, the worst first; ``sound`` is said where there is none."""
    ranks = ["wrong", "note", "ok"]
    ordered = sorted(findings, key=lambda finding: ranks.index(finding.state))
    if not ordered:
        return Check(name, "ok", sound)
    mends = dict.fromkeys(finding.mend for finding in ordered if finding.mend)
    return Check(name, ordered[0].state, "; ".join(f.found for f in ordered), "; ".join(mends))


def first_line(error: BaseException) -> str:
    """The first line of what ``error`` says."""
    return (str(error).strip().splitlines() or ["no message"])[0]


def some(names: Iterable[object]) -> str:
    """The first few names, and how many more there are."""
    listed = [str(name) for name in names]
    more = len(listed) - NAMED_AT_MOST
    return ", ".join(listed[:NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def report(checks: list[Check]) -> dict[str, Any]:
    """The checks as JSON; ``sound`` is whether none is wrong."""
    return {
        "format_version": FORMAT_VERSION,
        "sound": all(check.state != "wrong" for check in checks),
        "checks": [asdict(check) for check in checks],
    }


def table(checks: list[Check]) -> "Table":
    """A row a check: its state, its name, what was found and, on a line of its own, what to do."""
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    rows = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    rows.add_column(no_wrap=True)
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold", ratio=1)
    for check in checks:
        found = Text(check.found)
        if check.mend:
            found.append(f"\n→ {check.mend}", style=_STYLES[check.state])
        rows.add_row(Text(check.state, style=_STYLES[check.state]), Text(check.name), found)
    return rows
