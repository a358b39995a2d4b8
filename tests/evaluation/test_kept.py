"""A fit that is stopped goes on as if it had not been; a kept probe reads one encoder, and says the same again."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from frozen_clips import AUGMENTED, Patches, TintedClips, fresh
from safetensors.torch import load_file, save_file

import nextvid.evaluation.kept as kept_module
from nextvid.errors import Stopped, UserError
from nextvid.evaluation.features import Features, Supply
from nextvid.evaluation.fitting import fit_probe, fit_probes
from nextvid.evaluation.fresh import in_memory
from nextvid.evaluation.kept import KeptFit, load_probe, save_probe
from nextvid.evaluation.probe import FittedProbe, ProbeConfig
from nextvid.training.distributed import World

QUICK = ProbeConfig(epochs=6, batch=16, lrs=(1e-2, 1e-3))
CLASSES = ("a", "b", "c", "d")
ABOUT = {"task": "kind", "classes": list(CLASSES), "layers": [1]}


def after(calls: int) -> Callable[[], bool]:
    """False so many times, then True."""
    asked = iter([False] * calls)
    return lambda: next(asked, True)


def assert_equal(a: FittedProbe, b: FittedProbe) -> None:
    assert a.model_dump(exclude={"probe", "standardise"}) == b.model_dump(exclude={"probe", "standardise"})
    for ours, theirs in zip(a.probe.parameters(), b.probe.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert (a.standardise is None) == (b.standardise is None)
    if a.standardise and b.standardise:
        assert torch.equal(a.standardise.mean, b.standardise.mean)
        assert torch.equal(a.standardise.deviation, b.standardise.deviation)


@pytest.mark.parametrize("change", [{}, {"standardise": "both"}, {"depth": 2, "epochs": 2}, {"precision": "bfloat16"}])
def test_a_fit_that_is_stopped_goes_on_bit_for_bit(tmp_path: Path, make_problem, change: dict):
    """At the first step, in the middle, and then to the end."""
    problem, config = make_problem(160, 1), QUICK.model_copy(update=change)
    whole = fit_probe(problem, "kind", config, progress=False)
    keeper = KeptFit(tmp_path / "here" / "fit.safetensors", World())
    for step, calls in ((1, 0), (12, 10)):
        with pytest.raises(Stopped, match=rf"stopped at step {step} of {config.epochs * 8} of a probe"):
            fit_probe(problem, "kind", config, progress=False, keeper=keeper, stop=after(calls))
        restored = keeper.restore()
        assert restored is not None
        assert restored[0] == step
    assert_equal(fit_probe(problem, "kind", config, progress=False, keeper=keeper), whole)
    assert_equal(fit_probe(problem, "kind", config, progress=False, keeper=keeper, stop=lambda: True), whole)


def test_a_fit_of_augmented_clips_and_two_encoders_goes_on_bit_for_bit(tmp_path: Path):
    first = fresh(Patches(), TintedClips(40, 1), views=AUGMENTED)
    supplies: list[Supply] = [first, replace(first, encoder=Patches(12, seed=5), layers=(0, 1))]
    config = QUICK.model_copy(update={"epochs": 8})
    whole = fit_probes(supplies, "tint", config, progress=False)
    keeper = KeptFit(tmp_path / "fit.safetensors", World())
    with pytest.raises(Stopped):
        fit_probes(supplies, "tint", config, progress=False, keeper=keeper, stop=after(1))
    gone_on = fit_probes(supplies, "tint", config, progress=False, keeper=keeper)
    for ours, theirs in zip(gone_on, whole, strict=True):
        assert_equal(ours, theirs)


def test_a_fit_is_kept_from_time_to_time_and_at_its_end_by_the_first_process_alone(
    tmp_path: Path, make_problem, monkeypatch: pytest.MonkeyPatch
):
    problem, written = make_problem(160, 1), []
    replace_file = kept_module.replace_file
    monkeypatch.setattr(
        kept_module, "replace_file", lambda file, *rest: written.append(file) or replace_file(file, *rest)
    )
    config = QUICK.model_copy(update={"epochs": 2})
    for every, times in ((0.0, 16 + 1), (1000.0, 1)):
        written.clear()
        keeper = KeptFit(tmp_path / f"{every}", World(), every)
        fit_probe(problem, "kind", config, progress=False, keeper=keeper)
        assert written == [keeper.file] * times
        restored = keeper.restore()
        assert restored is not None
        assert restored[0] == 16
    KeptFit(tmp_path / "second", World(1, 2), 0.0).keep(3, dict, now=True)
    assert not (tmp_path / "second").exists()


def test_a_damaged_fit_is_named(tmp_path: Path):
    file = tmp_path / "fit.safetensors"
    keeper = KeptFit(file, World())
    keeper.keep(3, lambda: {"a": torch.ones(100)}, now=True)
    whole = file.read_bytes()
    for harmed in (whole[:200], b"", b"nothing of the kind" * 10):
        file.write_bytes(harmed)
        with pytest.raises(UserError, match=r"fit\.safetensors"):
            keeper.restore()
    save_file({"a": torch.ones(1)}, file)
    with pytest.raises(UserError, match=r"fit\.safetensors was not written by nextvid probe"):
        keeper.restore()
    save_file({"a": torch.ones(1)}, file, {"fit": json.dumps({"format_version": 99, "step": 1})})
    with pytest.raises(UserError, match="format version 99, and this nextvid reads 1"):
        keeper.restore()


@pytest.mark.parametrize("change", [{}, {"standardise": False, "depth": 2}, {"precision": "bfloat16"}])
def test_a_kept_probe_gives_the_same_probabilities(tmp_path: Path, make_problem, change: dict):
    fitted = fit_probe(make_problem(160, 1), "kind", QUICK.model_copy(update={**change, "epochs": 2}), progress=False)
    save_probe(tmp_path / "new" / "probe.safetensors", fitted, Patches(), ABOUT)
    found, about = load_probe(tmp_path / "new" / "probe.safetensors", Patches(), CLASSES)
    test = make_problem(100, 2)
    assert torch.equal(found.probabilities(test, progress=False)[1], fitted.probabilities(test, progress=False)[1])
    assert torch.equal(found.attention(test.tokens), fitted.attention(test.tokens))
    assert (about["layers"], about["task"], about["encoder"]["name"]) == ([1], "kind", "patches 0")
    assert (found.best, found.held_out_clips, found.precision) == (
        fitted.best,
        fitted.held_out_clips,
        fitted.precision,
    )


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    supply = in_memory(fresh(Patches(), TintedClips(40)), "reading", progress=False)
    assert isinstance(supply, Features)
    fitted = fit_probe(supply, "tint", QUICK.model_copy(update={"epochs": 1}), progress=False)
    save_probe(tmp_path / "probe.safetensors", fitted, Patches(), {**ABOUT, "classes": ["red", "green", "blue"]})
    return tmp_path / "probe.safetensors"


def test_a_probe_reads_one_encoder_alone(kept: Path):
    for other in (Patches(seed=1), Patches(shift=1.0), Patches(12)):
        with pytest.raises(
            UserError, match=r"was trained on the features of patches 0 .*not of patches \d: .*probe patches \d anew"
        ):
            load_probe(kept, other, ("red", "green", "blue"))


def test_a_probe_of_other_classes(kept: Path):
    with pytest.raises(UserError, match=r"class 1 is 'green' there and 'blue' here\): use it on the benchmark"):
        load_probe(kept, Patches(), ("red", "blue", "green"))
    with pytest.raises(UserError, match="3 classes, and here there are 2"):
        load_probe(kept, Patches(), ("red", "green"))


def test_a_probe_that_there_is_not_or_is_none(kept: Path, tmp_path: Path):
    classes = ("red", "green", "blue")
    with pytest.raises(UserError, match=r"there is no probe at .*other: give the probe\.safetensors"):
        load_probe(tmp_path / "other", Patches(), classes)
    tensors = load_file(kept)
    save_file(tensors, tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match=r"bare\.safetensors was not written by nextvid probe"):
        load_probe(tmp_path / "bare.safetensors", Patches(), classes)
    kept.write_bytes(kept.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"probe\.safetensors"):
        load_probe(kept, Patches(), classes)
