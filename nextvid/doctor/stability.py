"""Does a run compute numbers that are finite, or does it skip steps and go back?"""

from collections.abc import Iterator

from nextvid.doctor.check import Check, Finding, State, combine, some
from nextvid.doctor.history import skipped_at
from nextvid.doctor.rows import Log
from nextvid.doctor.subject import Subject
from nextvid.training.rollback import FILE

SKIPPED_SHARE = 0.01
"""From this share of skipped steps on, a run does not train as its recipe says."""
FEW_SKIPPED = 2
"""So many skipped steps are never too many: of a short run, one is more than ``SKIPPED_SHARE``."""
CALMER = "lower the learning rates, or use training.precision=float32"


def check_stability(subject: Subject, log: Log) -> Check:
    """Steps that were skipped because something was not finite, and times that the run went back for it."""
    if subject.history.rollbacks_problem:
        mend = (
            f"put a copy of {FILE} back: the next start stops at it; without it, rates would be the recipe's own again"
        )
        return Check("stability", "wrong", subject.history.rollbacks_problem, mend)
    last = log.rows[-1]["step"] if log.rows else 0
    sound = f"no step of {last} was skipped, and the run never went back" if last else "no row yet"
    return combine("stability", [*_skipped(log), *_rolled_back(subject)], sound)


def _skipped(log: Log) -> Iterator[Finding]:
    counted = [row for row in log.rows if isinstance(row.get("skipped"), int)]
    if not counted or not counted[-1]["skipped"]:
        return
    count, steps = counted[-1]["skipped"], counted[-1]["step"]
    many = count > FEW_SKIPPED and count > SKIPPED_SHARE * steps
    found = f"{count} of {steps} steps were skipped ({count / steps:.2g}), for something was not finite: "
    found += f"in the rows of steps {some(skipped_at(log.rows))}"
    state: State = "wrong" if many else "note"
    yield Finding(state, found, CALMER if many else "nothing to do: such a step changes nothing")


def _rolled_back(subject: Subject) -> Iterator[Finding]:
    rollbacks = subject.history.rollbacks
    if not rollbacks:
        return
    times = some(f"from step {back.step} to {back.to}" for back in rollbacks)
    found = (
        f"the run went back {len(rollbacks)} times ({times})" if len(rollbacks) > 1 else f"the run went back {times}"
    )
    found += f", and rates are now the recipe's times {subject.history.scale:.3g}"
    if _gave_up(subject):
        found += f"; that is as often as training.rollbacks allows, and it stands at step {subject.step}, not finished"
        mend = f"start anew: {CALMER}; or go on from here with lower rates or more training.rollbacks, and --allow"
        yield Finding("wrong", found, mend)
    else:
        yield Finding("note", found, f"if it goes back again, {CALMER}")


def _gave_up(subject: Subject) -> bool:
    """A run that used up its rollbacks and is not finished, nor under way, has given up, or does at the next bad steps."""
    limit = subject.recipe.training.rollbacks if subject.recipe else None
    idle = not subject.finished and not subject.running
    return limit is not None and idle and len(subject.history.rollbacks) >= limit
