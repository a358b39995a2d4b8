"""The page of a probe: its score beside the baselines, how it was come by, what is taken for what, and clips to look at."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nextvid.evaluation.looking import Look
from nextvid.evaluation.scores import Scores
from nextvid.files import replace_file
from nextvid.report.probe_pictures import (
    confusion_heat,
    films_of,
    grid_heat,
    most_confused,
    short,
)
from nextvid.report.tables import ENCODERS, Cell, cell
from nextvid.report.template import template

FORMAT_VERSION = 1

WHOLE_MATRIX, PART_OF_MATRIX = 48, 30
"""Up to so many classes a confusion matrix is drawn whole; of more, so many are drawn."""
CONFUSIONS_BESIDE_WHOLE, CONFUSIONS_BESIDE_PART = 10, 20
MILLISECONDS = 160.0

TITLES = {
    **ENCODERS,
    "chance": "chance",
    "optical_flow": "optical flow",
    "held_out_top1": "held-out top-1",
    "knn": "nearest neighbours",
}
CEILING = "supervised"


class Row(NamedTuple):
    """A line of a table with a bar."""

    title: str
    cell: Cell | None
    words: str = ""


def write_probe_page(
    path: Path, found: dict[str, Any], scores: Scores | None, names: Sequence[str], look: Look | None = None
) -> Path:
    """Write the page, one file that needs nothing beside it.

    ``found``: what ``nextvid probe --json`` prints. A section that has nothing to show is left out or says what would fill it.
    """
    chance = 100 * chance_of(found)
    score = cell(found)
    grid = found.get("grid") or []
    text = template("probe.html.j2").render(
        format_version=FORMAT_VERSION,
        name=f"{encoder_name(found)} on {found['task']}",
        where=f"{found['benchmark']}, {found['level']}; {found['classes']} classes",
        score=score,
        chance=chance,
        verdict=verdict(found),
        remarks=[str(remark) for remark in found.get("remarks") or [] if str(remark).strip()],
        beside=beside_rows(found),
        compared=bool(found.get("baselines")),
        measures=measure_rows(found),
        setting=setting_rows(found),
        further=further_rows(found.get("protocol") or {}),
        grid=grid_heat(grid, found) if len(grid) > 1 else None,
        diverged=any(member.get("held_out_loss", 0.0) is None for member in grid),
        readers=list(reader_rows(found.get("readers") or {})),
        classes=found["classes"],
        depth=found.get("depth", 1),
        layers=_layers(found.get("protocol") or {}),
        command=shlex.join(["nextvid", *found["command"][1:]]) if found.get("command") else None,
        **_classes_of(scores, names),
        **films_of(look, _milliseconds(found.get("protocol") or {})),
    )
    replace_file(path, text.encode())
    return path


def encoder_name(found: dict[str, Any]) -> str:
    """What the encoder is called; earlier files have no entry for it."""
    encoder = found.get("encoder") or {}
    return str(encoder.get("name", "encoder")) if isinstance(encoder, dict) else str(encoder)


def title_of(key: str) -> str:
    """What a table calls a baseline or a reader."""
    return TITLES.get(key, key.replace("_", " "))


def chance_of(found: dict[str, Any]) -> float:
    """The share that guessing names rightly: as measured, or one of as many classes as there are."""
    measured = (found.get("baselines") or {}).get("chance") or {}
    return float(measured.get("top1") or 1 / found["classes"])


def loose_cell(score: Any) -> Cell | None:
    """A score as a cell; one without an interval is a point."""
    if not isinstance(score, dict) or not isinstance(score.get("top1"), int | float):
        return None
    return cell({"top1": score["top1"], "ci95": score.get("ci95") or [score["top1"]] * 2})


def verdict(found: dict[str, Any]) -> str:
    """What the score beats, what it cannot be told from, and what is better: by whether 95% intervals overlap."""
    own = cell(found)
    assert own is not None
    groups: dict[str, list[str]] = {"beats": [], "same": [], "below": []}
    for key, score in {"chance": {"top1": chance_of(found)}, **(found.get("baselines") or {})}.items():
        other = loose_cell(score)
        if other:
            group = "beats" if own.low > other.high else "below" if own.high < other.low else "same"
            groups[group].append(f"{title_of(key)} ({other.top1:.1f})")
    sentences = [
        f"Of {found['test_clips']:,} test clips.",
        f"It beats {_listed(groups['beats'])}." if groups["beats"] else "",
        f"It cannot be told from {_listed(groups['same'])}: their intervals overlap." if groups["same"] else "",
        f"It stays below {_listed(groups['below'])}." if groups["below"] else "",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _listed(words: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def beside_rows(found: dict[str, Any]) -> list[Row]:
    """The encoder, then what it is compared with, the best first; a ceiling last."""
    others = [(key, loose_cell(score), score) for key, score in (found.get("baselines") or {}).items()]
    known = [(key, bar, score) for key, bar, score in others if bar]
    known.sort(key=lambda row: (row[0] == CEILING, -row[1].top1))
    return [
        Row(encoder_name(found), cell(found)),
        *(Row(title_of(key), bar, notes_of(score)) for key, bar, score in known),
    ]


def measure_rows(found: dict[str, Any]) -> list[tuple[str, Cell]]:
    """Accuracy among the five best answers, and the mean over classes, where they are known."""
    rows = []
    for key, title in (("top5", "among the five most probable"), ("mean_class", "mean over classes")):
        bar = loose_cell({"top1": found.get(key), "ci95": found.get(f"{key}_ci95")})
        if bar:
            rows.append((title, bar))
    return rows


def reader_rows(readers: dict[str, Any], before: str = "") -> Iterator[Row]:
    """A row for every score however deep it lies, named by the keys that lead to it, or by its number of shots."""
    for key, value in readers.items():
        title = f"{before}, {title_of(str(key))}" if before else title_of(str(key))
        if isinstance(value, list):
            yield from reader_rows({_shots(entry, number): entry for number, entry in enumerate(value)}, title)
        elif isinstance(value, dict):
            bar = loose_cell(value) or loose_cell(value.get("scores"))
            if bar:
                yield Row(title, bar, notes_of(value))
            else:
                yield from reader_rows(value, title)


def _shots(entry: Any, number: int) -> str:
    shots = entry.get("shots") if isinstance(entry, dict) else None
    return str(number + 1) if shots is None else f"{shots} clip{'s' if shots != 1 else ''} a class"


NOT_NOTED = (
    "top1",
    "top5",
    "mean_class",
    "shots",
    "setting",
    "chosen",
    "classes",
    "train_clips",
    "test_clips",
    "held_out_clips",
)


def notes_of(score: dict[str, Any]) -> str:
    """What else a score says of itself, in one line."""
    notes = [f"{score['setting']} {word(score['chosen'])}"] if "setting" in score and "chosen" in score else []
    for key, value in score.items():
        if isinstance(value, str | int | float | bool) and key not in NOT_NOTED:
            notes.append(f"{title_of(key)} {f'{100 * value:.1f}' if key.endswith('top1') else word(value)}")
    return "; ".join(notes)


def word(value: Any) -> str:
    """A setting's value in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "; ".join(f"{title_of(str(key))} {word(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(word(part) for part in value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else "–" if value is None else str(value)


def clip_words(clip: dict[str, Any]) -> str:
    """What a clip is: frames, frames a second, pixels, as far as they are known."""
    parts = []
    if clip.get("frames"):
        parts.append(f"{clip['frames']} frames")
    if clip.get("fps"):
        parts.append(f"at {clip['fps']:g} a second")
    if clip.get("size"):
        parts.append(f"of {clip['size']} × {clip['size']} pixels")
    return " ".join(parts)


def setting_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The protocol in words."""
    protocol = dict(found.get("protocol") or {})
    encoder = found.get("encoder") if isinstance(found.get("encoder"), dict) else {}
    rows = [
        (
            "encoder",
            "; ".join(f"{title_of(k)} {word(v)}" for k, v in (encoder or {}).items() if k != "name" and v is not None),
        ),
        ("clips", f"{found['train_clips']:,} to train and choose on, {found['test_clips']:,} to test{_broken(found)}"),
        ("a clip", clip_words(protocol)),
        ("what is read", _read(protocol)),
        ("probe", _probe(found, protocol)),
        ("features", _features(found)),
        ("chosen", _chosen(found)),
    ]
    return [(title, words) for title, words in rows if words]


def further_rows(protocol: dict[str, Any]) -> list[tuple[str, str]]:
    """The settings that :func:`setting_rows` has no words for, as they are."""
    known = ("frames", "fps", "size", "segments", "views", "layers", "batch", "epochs")
    return [(title_of(key), word(value)) for key, value in protocol.items() if key not in known and value is not None]


def _broken(found: dict[str, Any]) -> str:
    broken = found.get("broken") or {}
    lost = [f"{count} {split}" for split, count in broken.items() if count]
    return f"; broken and left out: {', '.join(lost)}" if lost else ""


def _layers(protocol: dict[str, Any]) -> int:
    layers = protocol.get("layers") or 1
    return layers if isinstance(layers, int) else len(layers)


def _read(protocol: dict[str, Any]) -> str:
    """Layers (by number, or how many), segments and views."""
    parts = []
    layers, count = protocol.get("layers"), _layers(protocol)
    if isinstance(layers, int):
        parts.append("the tokens after the last layer" if count == 1 else f"the tokens after {count} layers, together")
    elif layers:
        parts.append(
            f"the tokens after layer{'s' if count > 1 else ''} {word(layers)}{', together' if count > 1 else ''}"
        )
    if (protocol.get("segments") or 1) != 1:
        parts.append(f"{protocol['segments']} segments of a video, together")
    if (protocol.get("views") or 1) != 1:
        parts.append(f"{protocol['views']} views of a test clip, whose probabilities are averaged")
    return "; ".join(parts)


def _probe(found: dict[str, Any], protocol: dict[str, Any]) -> str:
    parts = ["attentive"]
    if "depth" in found:
        parts.append(f"{found['depth']} layer{'s' if found['depth'] != 1 else ''}")
    if "heads" in found:
        parts.append(f"{found['heads']} heads")
    if "epochs" in protocol:
        parts.append(f"{protocol['epochs']} epochs")
    if "batch" in protocol:
        parts.append(f"batches of {protocol['batch']}")
    return ", ".join(parts)


def _features(found: dict[str, Any]) -> str:
    if "standardised" not in found:
        return ""
    words = "frozen; " + ("every channel standardised by the train clips" if found["standardised"] else "as they are")
    effect = found.get("standardise_effect")
    if effect:
        words += f" (held-out top-1 with {100 * effect['with']:.1f}, without {100 * effect['without']:.1f})"
    return words


def _chosen(found: dict[str, Any]) -> str:
    if "held_out_top1" not in found:
        return ""
    words = f"by the held-out part of the train clips: {100 * found['held_out_top1']:.1f}% there"
    for key, title in (("best_lr", "learning rate"), ("best_weight_decay", "weight decay")):
        if found.get(key) is not None:
            words += f", {title} {found[key]:g}"
    tried = len(found.get("grid") or [])
    return f"{words}; {tried} probes were tried" if tried > 1 else words


def _classes_of(scores: Scores | None, names: Sequence[str]) -> dict[str, Any]:
    """The matrix, the confusions and the classes."""
    if scores is None:
        return {"confusion": None, "confusions": [], "per_class": [], "left_out": False}
    confusion = np.array(scores.confusion)
    left_out = len(names) > WHOLE_MATRIX
    classes = most_confused(confusion, PART_OF_MATRIX) if left_out else list(range(len(names)))
    return {
        "confusion": confusion_heat(confusion, names, classes),
        "confusions": confusion_rows(confusion, names, CONFUSIONS_BESIDE_PART if left_out else CONFUSIONS_BESIDE_WHOLE),
        "per_class": class_rows(scores, confusion, names),
        "left_out": left_out,
    }


def confusion_rows(confusion: np.ndarray, names: Sequence[str], most: int) -> list[dict[str, Any]]:
    """The most frequent wrong answers: true class, answer, clips, and how many clips the class has."""
    wrong = confusion * ~np.eye(len(confusion), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(confusion)) for place in order]
    totals = confusion.sum(1)
    return [
        {"truth": names[truth], "answer": names[answer], "count": int(wrong[truth, answer]), "of": int(totals[truth])}
        for truth, answer in pairs
        if wrong[truth, answer]
    ]


def class_rows(scores: Scores, confusion: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Every class that occurs, the worst first, and what it is most often taken for."""
    occurs = [label for label in range(len(confusion)) if confusion[label].sum()]
    rows = []
    for label, own in zip(occurs, scores.per_class, strict=True):
        wrong = confusion[label].copy()
        wrong[label] = 0
        most = int(wrong.argmax())
        taken = f"{short(names[most], 60)} ({wrong[most]})" if wrong[most] else ""
        bar = Cell(100 * own.top1, 100 * own.ci95[0], 100 * own.ci95[1])
        rows.append({"name": own.name, "cell": bar, "clips": own.clips, "taken": taken})
    return sorted(rows, key=lambda row: (row["cell"].top1, -row["clips"]))


def _milliseconds(protocol: dict[str, Any]) -> float:
    """How long a frame stays: as in life, where that is known."""
    return 1000 / protocol["fps"] if protocol.get("fps") else MILLISECONDS
