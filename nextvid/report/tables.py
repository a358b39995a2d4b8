"""The page's tables: figures in, words out."""

from dataclasses import dataclass
from typing import Any

ENCODERS = {
    "this": "this run",
    "continued": "continued from the reference",
    "reference": "reference (nextvid-tiny)",
    "random_init": "untrained encoder",
    "pixels": "raw pixels with places",
    "optical_flow": "histograms of optical flow",
    "middle_frame": "the middle frame alone",
    "chance": "always the most common class",
    "supervised": "trained with labels (ceiling)",
}


@dataclass(frozen=True)
class Cell:
    """A score and its 95% interval, in percent."""

    top1: float
    low: float
    high: float

    @property
    def words(self) -> str:
        """As in a paper's table."""
        return f"{self.top1:.1f} ({self.low:.1f}–{self.high:.1f})"


@dataclass(frozen=True)
class ProbeTable:
    """A column a task, a row an encoder."""

    tasks: list[dict[str, Any]]
    rows: list[tuple[str, list[Cell | None]]]


def probe_rows(probe: dict[str, Any]) -> ProbeTable | None:
    """The probe's figures by encoder, or None where nothing was probed."""
    if not probe:
        return None
    tasks = [
        {
            "name": name,
            "where": f"{found['benchmark']}, {found['level']}",
            "chance": 100 / found["classes"],
            "classes": found["classes"],
            "clips": f"{found['train_clips']} / {found['test_clips']}",
        }
        for name, found in probe.items()
    ]
    scores = [{"this": found, **found, **found["baselines"]} for found in probe.values()]
    rows = [(title, [cell(column.get(key)) for column in scores]) for key, title in ENCODERS.items()]
    return ProbeTable(tasks, [row for row in rows if any(row[1])])


def cell(score: dict[str, Any] | None) -> Cell | None:
    """A probe's figures as a cell; None stays None."""
    if score is None:
        return None
    low, high = score["ci95"]
    return Cell(100 * score["top1"], 100 * low, 100 * high)


def score_words(score: dict[str, Any] | None) -> str:
    """A probe's score as in a paper's table, or a dash where there is none."""
    found = cell(score)
    return found.words if found else "–"


def generation_rows(generation: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured of the drawings: name, figures, meaning."""
    rows = []
    for key, title, meaning in (
        ("next_frame", "mean of {samples} samples", "the best guess: averages away what cannot be known"),
        ("copy_last", "copying the last frame", "what needs no model; motion is all that it gets wrong"),
        ("single_sample", "a single sample", "one of the possible next frames, so it may be wrong where it is sharp"),
    ):
        if key in generation:
            found = generation[key]
            rows.append((title.format(samples=generation.get("samples", "several")), _likeness(found), meaning))
    for name, found in generation.get("others", {}).items():
        title = f"mean of samples: {ENCODERS.get(name, name)}"
        rows.append((title, _likeness(found), "the same clips, another model"))
    if "sharpness" in generation:
        found = generation["sharpness"]
        figures = f"{found['generated']:.4f} of {found['truth']:.4f}"
        rows.append(
            (
                "sharpness (gradient energy)",
                figures,
                "of a single sample and of the truth: lower is blurred, higher noisy",
            )
        )
    if "diversity" in generation:
        rows.append(
            ("diversity", f"{100 * generation['diversity']:.2f}%", "deviation between samples, of the full range")
        )
    if "rollout" in generation:
        rolled = generation["rollout"]
        pairs = zip(rolled["psnr"], rolled["copy_psnr"], strict=True)
        figures = "; ".join(f"{_number(drawn, 1)} ({_number(copied, 1)})" for drawn, copied in pairs)
        meaning = f"{rolled['clips']} clips, one sample each; in brackets: standing still on the last real frame"
        rows.append(("roll-out, PSNR by latent frame", figures, meaning))
    return rows


def _likeness(found: dict[str, float | None]) -> str:
    return f"PSNR {_number(found['psnr'], 2, ' dB')}, SSIM {_number(found['ssim'], 3)}"


def _number(value: float | None, digits: int, unit: str = "") -> str:
    """A PSNR is None where nothing differs, an SSIM where pictures are too small for one."""
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def setting_rows(recipe: dict[str, Any], metrics: dict[str, Any], environment: dict[str, Any]) -> list[tuple[str, str]]:
    """What was trained on what."""
    encoder, target = recipe["encoder"], recipe["objective"].get("target", {})
    done = metrics.get("pretrain", {})
    packages = environment.get("packages", {})
    rows = [
        ("encoder", f"width {encoder['width']}, {encoder['depth']} layers, {encoder['heads']} heads, patches of "
         f"{encoder['patch']} pixels × {encoder['tubelet']} frames, reads {encoder.get('input', 'pixels')}"),
        ("objective", "; ".join([recipe["objective"]["name"], *_parts(recipe["objective"]), *_target(target)])),
        ("footage", "; ".join(_footage(recipe))),
        ("seed", str(recipe["seed"])),
    ]  # fmt: skip
    if done:
        rows.append(("trained", f"{done['steps']:,} steps, {done['clips']:,} clips, {_duration(done['seconds'])}"))
    if environment:
        where = environment.get("accelerator") or f"{environment['processor']}, {environment['threads']} CPU threads"
        versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "nextvid") if name in packages)
        rows.append(("machine", f"{where}; Python {environment['python']}, {versions}"))
    return rows


def stage_rows(recipe: dict[str, Any]) -> list[dict[str, str]]:
    """The schedule, a row a stage."""
    return [
        {
            "stage": stage["name"],
            "steps": f"{stage['steps']:,}",
            "batch": str(stage["batch"]),
            "clip": f"{stage['frames']} frames of {stage['size']} px, {stage['fps']:g} fps",
            "hidden": " and ".join(_mask(mask) for mask in stage["masks"] or []) or "–",
            "losses": ", ".join(f"{name} {_line(ends)}" for name, ends in (stage["weights"] or {}).items()) or "–",
            **({"draws": str(stage["draws"])} if stage["draws"] is not None else {}),
            **({"EMA": f"{stage['ema']:g}"} if stage["ema"] is not None else {}),
            "learning rate": _line(stage["lr"]["encoder"]),
        }
        for stage in recipe["stages"]
    ]


def _line(ends: list[float]) -> str:
    """A quantity that goes in a straight line over a stage."""
    return f"{ends[0]:g}" if ends[0] == ends[1] else f"{ends[0]:g} → {ends[1]:g}"


def _mask(mask: dict[str, Any]) -> str:
    if "ratio" in mask:
        return f"{mask['ratio']:.0%} in tubes"
    return f"{mask['blocks']} × {mask['scale']:.0%}" if mask["blocks"] else "nothing"


def _parts(objective: dict[str, Any]) -> list[str]:
    return [
        f"{name} of {part['depth']} × {part['width']}"
        for name, part in objective.items()
        if isinstance(part, dict) and "depth" in part
    ]


def _target(target: dict[str, Any]) -> list[str]:
    return [f"target: {target['name']}"] if target else []


def _footage(recipe: dict[str, Any]) -> list[str]:
    own = [stage for stage in recipe["stages"] if stage.get("sources")]
    return [
        ", ".join(_sources(recipe["data"]["sources"])),
        *(f"in {stage['name']}: " + ", ".join(_sources(stage["sources"])) for stage in own),
    ]


def _sources(sources: list[dict[str, Any]]) -> list[str]:
    total = sum(source["weight"] for source in sources)
    return [
        f"{source.get('path') or source['builtin']}{' (' + source['level'] + ')' if source.get('level') else ''} "
        f"{source['weight'] / total:.0%}"
        for source in sources
    ]


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
