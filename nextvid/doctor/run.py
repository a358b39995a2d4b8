"""``nextvid doctor RUN``: is the run sound?"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import yaml

from nextvid.config import differences
from nextvid.doctor import curves, gradients, likeness, material, rows, saved, stability
from nextvid.doctor.check import Check, Finding, combine, guarded, some
from nextvid.doctor.healthy import healthy_of
from nextvid.doctor.history import change_findings
from nextvid.doctor.subject import Subject, open_subject


def examine_run(run: Path, against: Sequence[Path] = ()) -> list[Check]:
    """What stands in a run's folder and how it stands; nothing is written.

    Every checkpoint is read whole. Curves are compared with those of the runs ``against``, or, without any, with the healthy
    ones that nextvid has of the recipe. Raises ``UserError`` where there is no such folder.
    """
    subject = open_subject(run)
    other = healthy_of(against) if against else None
    log = rows.read_log(run)
    examined: list[tuple[str, Callable[[], Check]]] = [
        ("recipe", partial(check_recipe, subject)),
        ("in use", partial(check_use, subject)),
        ("checkpoints", partial(saved.check_checkpoints, subject)),
        ("progress", partial(check_progress, subject)),
        ("encoder", partial(saved.check_encoder, subject)),
        ("rows", partial(rows.check_rows, subject, log)),
        ("numbers", partial(rows.check_numbers, subject, log)),
        ("learning rates", partial(rows.check_rates, subject, log)),
        ("stability", partial(stability.check_stability, subject, log)),
        ("losses", partial(curves.check_losses, log.rows)),
        ("features", partial(curves.check_features, log.rows)),
        ("skill", partial(curves.check_skill, log.rows)),
        ("copying", partial(curves.check_copying, log.rows)),
        ("reference", partial(curves.check_reference, log.rows)),
        ("gradients", partial(gradients.check_gradients, log.rows)),
        ("speed", partial(curves.check_speed, log.rows)),
        ("healthy curves", partial(likeness.check_healthy, subject, log.rows, other)),
        ("footage", partial(material.check_footage, run)),
        ("disk", partial(saved.check_space, subject)),
    ]
    return [guarded(name, examine) for name, examine in examined]


def check_recipe(subject: Subject) -> Check:
    """Is the recipe there, can it be read, and is it the one that the run began with?"""
    if subject.recipe is None:
        mend = "put recipe.yaml back as the run wrote it; without it the folder is no run, and nothing can go on"
        return Check("recipe", "wrong", subject.recipe_problem or "", mend)
    stages = len(subject.recipe.stages)
    found = f"{subject.recipe.name}: {subject.recipe.steps} steps in {stages} stage{'s' * (stages != 1)}"
    stored = yaml.safe_load((subject.path / "recipe.yaml").read_text())
    unsaid = differences(stored, subject.recipe.model_dump(mode="json"))
    findings = [Finding("ok", found), *change_findings(subject.history)]
    if unsaid:
        text = f"an earlier nextvid wrote it, or a hand: what it does not say has its default: {some(unsaid)}"
        mend = "see that these are what the run began with; it goes on with them"
        findings.append(Finding("note", text, mend))
    return combine("recipe", findings, "")


def check_use(subject: Subject) -> Check:
    """Does another process use the run?"""
    if subject.running:
        return Check("in use", "note", "running now: another process holds the folder, and files may change")
    return Check("in use", "ok", "no process uses the run")


def check_progress(subject: Subject) -> Check:
    """How far is the run, and how does it go on?"""
    if subject.recipe is None:
        return Check("progress", "note", f"step {subject.step} of an unknown number, for there is no readable recipe")
    found = f"step {subject.step} of {subject.recipe.steps} is saved"
    if subject.finished:
        return Check("progress", "ok", f"{found}: finished")
    if subject.running:
        return Check("progress", "ok", f"{found}, and the run goes on now")
    return Check("progress", "note", f"{found}: not finished", f"it goes on with {subject.command}")
