"""What a fitted probe is: against plain modules, scikit-learn and hand-worked averages; who learns and who chooses."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from frozen_clips import ManyViews, Patches, TintedClips, fresh
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nextvid.data.views import Views
from nextvid.errors import UserError
from nextvid.evaluation.attentive import AttentiveProbe
from nextvid.evaluation.features import Features, Standardise, Supply
from nextvid.evaluation.fit import Fit
from nextvid.evaluation.fitting import check_splits, fit_probe, fit_probes, result_of, split, train_probe
from nextvid.evaluation.fresh import in_memory
from nextvid.evaluation.grid import ProbeGrid
from nextvid.evaluation.probe import FittedProbe, GridMember, ProbeConfig
from nextvid.evaluation.store import write_store
from nextvid.training.distributed import World

QUICK = ProbeConfig(epochs=3, batch=32, lrs=(1e-2, 1e-3))
ONE = GridMember(lr=0.1, weight_decay=0.0, held_out_top1=0.0, held_out_loss=0.0)


def random_probe(width: int, heads: int, depth: int, seed: int) -> AttentiveProbe:
    """Every parameter random, in float64."""
    probe = AttentiveProbe(width, 3, heads, depth=depth).double()
    draw = torch.Generator().manual_seed(seed)
    for parameter in probe.parameters():
        parameter.data.normal_(0, 0.3, generator=draw)
    return probe


def fitted(probe: AttentiveProbe, **settings) -> FittedProbe:
    return FittedProbe(probe=probe, standardise=None, best=ONE, grid=[ONE], held_out_clips=1, **settings)


class NotInMemory:
    """A supply that is no ``Features``, so that nothing is kept in float16; clips of ``broken`` have no rows."""

    def __init__(self, features: Features, broken: tuple[int, ...] = ()) -> None:
        self.features, self.broken = features, set(broken)
        self.tasks, self.labels = features.tasks, features.labels
        self.views, self.groups, self.width = features.views, features.groups, features.width

    def __len__(self) -> int:
        return len(self.features)

    def batches(self, plan) -> Iterator[tuple[Tensor, Tensor]]:
        for _, rows in plan:
            kept = torch.tensor(
                [row for row in rows.tolist() if row // self.views not in self.broken], dtype=torch.int64
            )
            tokens = self.features.tokens[kept]
            yield kept, tokens if len(kept) else torch.empty(0, 0, self.width)


# Against plain modules


def test_v_jepa_2s_probe_has_49_7_million_parameters():
    """Its paper's figure for a probe of depth 4 on ViT-L's 1024 channels with Kinetics' 400 classes."""
    with torch.device("meta"):
        probe = AttentiveProbe(1024, classes=400, depth=4)
    assert round(sum(parameter.numel() for parameter in probe.parameters()) / 1e6, 1) == 49.7


@settings(max_examples=5, deadline=None)
@given(
    heads=st.integers(1, 3),
    members=st.integers(1, 3),
    depth=st.sampled_from([2, 4]),
    tokens=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_a_member_of_a_deep_grid_is_the_plain_probe(heads, members, depth, tokens, seed):
    probes = [random_probe(4 * heads, heads, depth, seed + index) for index in range(members)]
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(3, tokens, 4 * heads, generator=draw, dtype=torch.float64)
    labels = torch.randint(3, (3,), generator=draw)
    grid = ProbeGrid(probes)
    together = grid(grid.prepare(inputs))
    F.cross_entropy(together.flatten(0, 1), labels.repeat(members), reduction="sum").backward()
    for index, probe in enumerate(probes):
        alone = probe(inputs)
        torch.testing.assert_close(together[index], alone, atol=1e-10, rtol=1e-10)
        F.cross_entropy(alone, labels, reduction="sum").backward()
        for name, parameter in probe.named_parameters():
            gradient = grid.weights[name].grad
            assert gradient is not None
            torch.testing.assert_close(gradient[index], parameter.grad, atol=1e-10, rtol=1e-10, msg=name)
    assert torch.equal(grid.member(members - 1)(inputs), probes[-1](inputs))


def test_a_deep_probe_is_pytorchs_transformer_before_the_query():
    """``nn.TransformerEncoderLayer`` with normalisation first and GELU, given the same weights."""
    probe = random_probe(12, 3, 2, 0)
    (layer,) = probe.layers
    theirs = torch.nn.TransformerEncoderLayer(12, 3, 48, 0.0, "gelu", batch_first=True, norm_first=True).double()
    names = {
        "norm1": "norm",
        "norm2": "mlp_norm",
        "linear1": "mlp_in",
        "linear2": "mlp_out",
        "self_attn.out_proj": "out",
    }
    state = {
        f"{theirs_}.{part}": layer.get_parameter(f"{ours}.{part}")
        for theirs_, ours in names.items()
        for part in ("weight", "bias")
    }
    state |= {"self_attn.in_proj_weight": layer.qkv.weight, "self_attn.in_proj_bias": layer.qkv.bias}
    theirs.load_state_dict(state)
    inputs = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(layer(inputs), theirs.train()(inputs), atol=1e-10, rtol=1e-10)


def test_a_deep_probe_learns(make_problem):
    config = QUICK.model_copy(update={"depth": 3, "epochs": 10, "lrs": (3e-3,)})
    result = train_probe(make_problem(400, 1), make_problem(200, 2), "kind", config, progress=False)
    assert result.depth == 3
    assert result.top1 > 0.8


# Against scikit-learn


def logistic(width: int = 6) -> AttentiveProbe:
    """A probe that is logistic regression of the one token of a clip: it attends to it, and hands it on as it is."""
    probe = AttentiveProbe(width, 3, heads=1)
    with torch.no_grad():
        for name, parameter in probe.named_parameters():
            if name not in ("norm.weight", "mlp_norm.weight"):
                parameter.zero_()
        probe.to_value.weight.copy_(torch.eye(width))
    return probe


def overlapping(clips: int, seed: int, width: int = 6) -> Features:
    """Three classes that overlap. Channels of a clip have mean 0 and variance 1, as LayerNorm leaves them."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (clips,), generator=draw)
    values = torch.randn(clips, width, generator=draw)
    values[torch.arange(clips), labels] += 1.0
    values = F.layer_norm(values, (width,), eps=0.0)
    return Features(values[:, None], {"kind": labels}, {"kind": tuple("abc")})


def sklearns(train: Features, test: Features, strength: float) -> Tensor:
    theirs = LogisticRegression(C=strength, tol=1e-12, max_iter=10_000)
    theirs.fit(train.tokens[:, 0].double().numpy(), train.labels["kind"].numpy())
    return torch.from_numpy(theirs.predict_proba(test.tokens[:, 0].double().numpy())).float()


def test_with_the_same_penalty_the_probe_is_scikit_learns_logistic_regression():
    """The loss of a fit, its classifier brought to the minimum by L-BFGS, against another's solver of the same problem."""
    train, test, strength = overlapping(300, 1), overlapping(100, 2), 0.5
    grid = ProbeGrid([logistic().double()])
    weight, bias = grid.weights["classifier.weight"], grid.weights["classifier.bias"]
    prepared = grid.prepare(train.tokens.double())

    def loss() -> Tensor:
        fit = F.cross_entropy(grid(prepared)[0], train.labels["kind"], reduction="sum")
        return strength * fit + weight.square().sum() / 2

    solver = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> float:
        solver.zero_grad()
        found = loss()
        found.backward()
        return found.item()

    solver.step(closure)
    samples, ours = fitted(grid.member(0).float()).probabilities(test, progress=False)
    assert samples.tolist() == list(range(100))
    torch.testing.assert_close(ours, sklearns(train, test, strength), atol=1e-4, rtol=0)


def test_steps_of_a_fit_come_to_scikit_learns_minimum():
    """Without a penalty, by the steps that every fit takes, with all weights held but the classifier's."""
    train, test = overlapping(300, 1), overlapping(100, 2)
    config = ProbeConfig(lrs=(0.1,), weight_decays=(0.0,), heads=1, standardise=False)
    fit = Fit(NotInMemory(train), "kind", 3, config, False, torch.device("cpu"), World())
    for name, stacked in fit.grid.weights.items():
        stacked.data.copy_(logistic().get_parameter(name))
        stacked.requires_grad_(name.startswith("classifier"))
    rows = torch.arange(300)
    for step in range(400):
        fit.step(rows, train.tokens, 300, 0.5 + 0.5 * np.cos(np.pi * step / 400))
    _, ours = fitted(fit.grid.member(0)).probabilities(test, progress=False)
    theirs = sklearns(train, test, np.inf)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)
    assert theirs.amax(-1).min() < 0.6


# Views


class Told(AttentiveProbe):
    """The logits of a clip are its one token."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


def test_probabilities_of_views_are_averaged_as_worked_by_hand():
    """Of the first clip the logits' mean, (5/3, 4/3), would name class 0; the mean probability names class 1.

    softmax(5, 0) = (.99331, .00669) and softmax(0, 2) = (.11920, .88080), so the mean of one and two is (.41057, .58943).
    softmax(1, 0) = (.73106, .26894), softmax(0, 0) = (.5, .5), softmax(3, 0) = (.95257, .04743): (.72788, .27212).
    """
    logits = torch.tensor([[5.0, 0], [0, 2], [0, 2], [1, 0], [0, 0], [3, 0]])
    test = Features(logits[:, None], {"kind": torch.tensor([1, 1])}, {"kind": ("a", "b")}, views=3)
    samples, found = fitted(Told(2, 2)).probabilities(test, progress=False)
    assert samples.tolist() == [0, 1]
    wanted = torch.tensor([[0.41057, 0.58943], [0.72788, 0.27212]])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert logits[:3].mean(0).argmax() != found[0].argmax()
    result = result_of(fitted(Told(2, 2)), test, test.labels["kind"], "kind", found)
    assert (result.test_clips, result.top1, result.confusion) == (2, 0.5, [[0, 0], [1, 1]])


@given(clips=st.integers(1, 150), views=st.integers(1, 3), seed=st.integers(0, 100))
def test_every_clip_has_one_answer_whatever_the_number_of_views(clips, views, seed):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(clips * views, 1, 4, generator=draw)
    test = Features(logits, {"kind": torch.zeros(clips, dtype=torch.int64)}, {"kind": tuple("abcd")}, views=views)
    samples, found = fitted(Told(4, 4)).probabilities(test, progress=False)
    assert samples.tolist() == list(range(clips))
    torch.testing.assert_close(found, logits[:, 0].softmax(-1).unflatten(0, (clips, views)).mean(1))


@pytest.mark.parametrize("standardised", [False, True])
def test_broken_clips_have_no_answer(make_problem, standardised):
    problem = make_problem(150, 1)
    whole = fit_probe(problem, "kind", QUICK.model_copy(update={"standardise": standardised}), progress=False)
    broken = (*range(64), 70, 149)
    test = NotInMemory(make_problem(150, 2), broken)
    samples, found = whole.probabilities(test, progress=False)
    assert samples.tolist() == [sample for sample in range(150) if sample not in broken]
    torch.testing.assert_close(found, whole.probabilities(make_problem(150, 2), progress=False)[1][samples])
    none, _ = whole.probabilities(NotInMemory(make_problem(5, 2), tuple(range(5))), progress=False)
    assert none.tolist() == []
    with pytest.raises(UserError, match="not one clip of the test split could be read"):
        result_of(whole, test, none, "kind", torch.empty(0, 4))


def test_more_processes_than_test_clips(make_problem, monkeypatch):
    """Every clip is scored by one process; the others have none, and all know all answers."""
    whole = fit_probe(make_problem(150, 1), "kind", QUICK, progress=False)
    test = make_problem(2, 2)
    parts = []
    monkeypatch.setattr(World, "gather", lambda world, value: parts.append(value) or parts)
    for rank in range(4):
        samples, found = whole.probabilities(test, progress=False, world=World(rank, 4))
    assert samples.tolist() == [0, 1]
    monkeypatch.undo()
    torch.testing.assert_close(found, whole.probabilities(test, progress=False)[1])


def test_broken_train_clips_are_not_learnt_from(make_problem):
    """A whole batch of them, and single ones; the share that chooses is of what could be read."""
    problem = make_problem(200, 1)
    learn, held_out = split(problem.labels["kind"], QUICK)
    broken = (*held_out[:10].tolist(), *learn[:50].tolist())
    loud = problem.tokens.clone()
    loud[list(broken)] = torch.nan
    config = QUICK.model_copy(update={"epochs": 10})
    found = fit_probe(NotInMemory(replace(problem, tokens=loud), broken), "kind", config, progress=False)
    assert found.best.held_out_top1 * 30 == pytest.approx(round(found.best.held_out_top1 * 30))
    assert found.best.held_out_top1 > 0.5
    everything = NotInMemory(problem, tuple(range(200)))
    with pytest.raises(UserError, match="not one clip of the train split could be read"):
        fit_probe(everything, "kind", QUICK, progress=False)


# Standardising


@pytest.mark.parametrize("chosen", [True, False])
def test_both_are_tried_and_the_held_out_part_chooses(make_problem, chosen):
    """Channels that drown the others unless they are standardised; and ones of noise, that are blown up where they are."""
    problem = make_problem(300, 1, 0.3)
    if chosen:
        tokens = problem.tokens * torch.tensor([1000.0] * 2 + [1.0] * 30)
    else:
        noise = torch.randn(300, 12, 96, generator=torch.Generator().manual_seed(1))
        tokens = torch.cat([problem.tokens, 1e-3 * noise], -1)
    config = QUICK.model_copy(update={"standardise": "both", "epochs": 4, "lrs": (3e-3,)})
    both, with_it, without = (
        fit_probe(
            replace(problem, tokens=tokens), "kind", config.model_copy(update={"standardise": kind}), progress=False
        )
        for kind in ("both", True, False)
    )
    found = {"with": with_it.best.held_out_top1, "without": without.best.held_out_top1}
    assert both.standardise_effect == found
    assert (found["with"] > found["without"]) is chosen
    assert (both.standardise is not None) is chosen
    assert both.best == (with_it if chosen else without).best
    assert torch.equal(both.probe.query, (with_it if chosen else without).probe.query)
    assert with_it.standardise_effect is None


def test_statistics_of_clips_that_are_read_anew_are_those_of_memory():
    """With three layers' worth of large means: sums in float64 lose nothing."""
    supply = fresh(Patches(shift=1000.0), TintedClips(40), (0, 1))
    memory = in_memory(supply, "reading", progress=False)
    config = ProbeConfig(epochs=1, lrs=(1e-3,), held_out=0.25)
    found = fit_probe(supply, "tint", config, progress=False).standardise
    learn, _ = split(supply.labels["tint"], config)
    wanted = Standardise.fit(memory.tokens[learn], 2)
    assert found is not None
    torch.testing.assert_close(found.mean, wanted.mean)
    torch.testing.assert_close(found.deviation, wanted.deviation, rtol=1e-4, atol=0)


# Who learns and who chooses


@given(
    clips=st.integers(12, 120),
    size=st.integers(1, 5),
    share=st.floats(0.05, 0.5),
    seed=st.integers(0, 1000),
    classes=st.integers(1, 4),
)
def test_groups_never_straddle_and_no_class_is_wholly_held_out(clips, size, share, seed, classes):
    draw = torch.Generator().manual_seed(seed)
    groups = torch.randint(clips // size + 1, (clips,), generator=draw) * 3 - 7
    labels = torch.randint(classes, (clips,), generator=draw)
    labels[0] = classes  # a class of one clip
    config = ProbeConfig(held_out=share, seed=seed)
    for by_group in (None, groups):
        try:
            learn, held_out = split(labels, config, by_group)
        except UserError:
            assert by_group is not None or clips < 30  # the largest of few groups may hold a class alone
            continue
        assert sorted([*learn.tolist(), *held_out.tolist()]) == list(range(clips))
        assert set(labels.tolist()) == set(labels[learn].tolist())
        if by_group is not None:
            assert not set(groups[learn].tolist()) & set(groups[held_out].tolist())
        again = split(labels, config, by_group)
        assert all(torch.equal(a, b) for a, b in zip(again, (learn, held_out), strict=True))


def test_the_held_out_share_is_what_was_asked_for():
    labels = torch.arange(200) % 4
    for share in (0.05, 0.2, 0.5):
        learn, held_out = split(labels, ProbeConfig(held_out=share))
        assert len(held_out) == 200 * share
        assert len(learn) == 200 - len(held_out)
    assert not torch.equal(split(labels, ProbeConfig(seed=1))[1], split(labels, ProbeConfig(seed=2))[1])


def test_classes_that_have_one_clip_each_leave_nothing_to_choose_by():
    with pytest.raises(UserError, match="still learn every class from the rest: give more clips of each class"):
        split(torch.arange(20), ProbeConfig())
    with pytest.raises(UserError, match=r"too few to hold 20% of them out"):
        split(torch.zeros(20, dtype=torch.int64), ProbeConfig(), torch.zeros(20, dtype=torch.int64))


def test_labels_that_are_none_are_said(make_problem):
    train, test = make_problem(50, 1), make_problem(20, 2)
    for name, wrong in (("train", 4), ("test", -1)):
        labels = make_problem(20, 3).labels["kind"].clone()
        labels[7] = wrong
        harmed = replace(make_problem(20, 3), labels={"kind": labels})
        pair = (harmed, test) if name == "train" else (train, harmed)
        with pytest.raises(UserError, match=f"{name} clip 7 has label {wrong} for kind, which is none of 0 to 3"):
            check_splits(*pair, "kind")


def test_a_class_that_is_tested_and_never_shown_is_said(make_problem):
    train, test = make_problem(50, 1), make_problem(20, 2)
    some = train.labels["kind"] != 2
    labels = {"kind": train.labels["kind"][some]}
    with pytest.raises(UserError, match=r"has clips of 'c' \(1 of its classes\), and the train split has none"):
        check_splits(Features(train.tokens[some], labels, train.tasks), test, "kind")
    check_splits(train, Features(test.tokens[:1], {"kind": test.labels["kind"][:1]}, test.tasks), "kind")


def test_train_has_one_view(make_problem):
    problem = make_problem(40, 1)
    two = Features(problem.tokens, {"kind": problem.labels["kind"][:20]}, problem.tasks, views=2)
    with pytest.raises(UserError, match="learns from one view a sample, and the train split has 2"):
        fit_probe(two, "kind", QUICK, progress=False)


# Precision


class Products(TorchDispatchMode):
    """The types in which matrices were multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket._qualified_op_name.split("::")[1] in ("mm", "bmm", "addmm", "baddbmm"):
            self.types.add(found.dtype)
        return found


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_products_are_in_the_precision_that_is_asked_for_and_weights_in_float32(make_problem, depth, precision):
    config = QUICK.model_copy(update={"precision": precision, "depth": depth, "epochs": 1})
    train = make_problem(60, 1)
    fit = Fit(train, "kind", 4, config, False, torch.device("cpu"), World())
    with Products() as learning:
        fit.step(torch.arange(30), train.tokens[:30], 30, 1.0)
    assert learning.types == {getattr(torch, precision)}
    assert {tensor.dtype for name, tensor in fit.state().items() if name != "steps"} == {torch.float32}


@pytest.mark.parametrize("depth", [1, 2])
def test_test_clips_are_read_in_the_precision_that_was_learnt_in(make_problem, depth):
    config = QUICK.model_copy(update={"precision": "bfloat16", "depth": depth, "epochs": 2})
    train = make_problem(60, 1)
    half = fit_probe(train, "kind", config, progress=False)
    assert {parameter.dtype for parameter in half.probe.parameters()} == {torch.float32}
    exact = half.model_copy(update={"precision": "float32"})
    assert half.precision == "bfloat16"
    logits, truth = half.logits(train.tokens), exact.logits(train.tokens)
    assert logits.dtype == torch.float32
    assert torch.equal(logits.bfloat16().float(), logits)
    assert not torch.equal(truth.bfloat16().float(), truth)
    torch.testing.assert_close(logits, truth, atol=0.05, rtol=0.05)


def test_bfloat16_learns_about_the_same(make_problem):
    train, test = make_problem(400, 1), make_problem(300, 2)
    config = QUICK.model_copy(update={"epochs": 8, "lrs": (3e-3,)})
    exact, half = (
        train_probe(train, test, "kind", config.model_copy(update={"precision": kind}), progress=False)
        for kind in ("float32", "bfloat16")
    )
    assert exact.grid != half.grid
    assert abs(exact.top1 - half.top1) < 0.05


# Where tokens come from


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("shift", [0.0, 1000.0, 1e5])
def test_a_fit_does_not_depend_on_where_tokens_lie(tmp_path: Path, depth: int, shift: float):
    """Memory keeps what is of about unit variance in float16; stored and fresh tokens are float32."""
    train, test = TintedClips(60, 1), TintedClips(30, 2)
    config = ProbeConfig(epochs=4, batch=16, lrs=(1e-2, 1e-3), held_out=0.25, depth=depth, standardise=False)
    encoder = Patches(shift=shift)
    found = {}
    for kind in ("memory", "stored", "fresh"):
        supplies: list[Supply] = [fresh(encoder, train, (0, 1)), fresh(encoder, test, (0, 1))]
        if kind == "memory":
            supplies = [in_memory(supply, "reading", progress=False) for supply in supplies]  # type: ignore[arg-type]
        elif kind == "stored":
            supplies = [
                write_store(supply, tmp_path / str(place), "storing", 1, "float32", progress=False)  # type: ignore[arg-type]
                for place, supply in enumerate(supplies)
            ]
        probe = fit_probe(supplies[0], "tint", config, progress=False)
        found[kind] = (probe, probe.probabilities(supplies[1], progress=False)[1])
    (memory, by_memory), (stored, by_stored), (anew, by_fresh) = found.values()
    assert stored.grid == anew.grid
    assert torch.equal(by_stored, by_fresh)
    assert [member.held_out_top1 for member in memory.grid] == [member.held_out_top1 for member in stored.grid]
    torch.testing.assert_close(by_memory, by_stored, atol=0.01, rtol=0)


def test_standardised_tokens_lose_nothing_in_memory():
    """Depth 1, a mean of 1000 and a deviation of a few: read in float32 from memory and anew."""
    train = TintedClips(60, 1)
    supply = fresh(Patches(shift=1000.0), train, (0, 1))
    memory = in_memory(supply, "reading", progress=False)
    learn, _ = split(memory.labels["tint"], QUICK)
    config = QUICK.model_copy(update={"epochs": 6})
    kept, anew = (fit_probe(s, "tint", config, progress=False) for s in (memory, supply))
    assert kept.best.held_out_top1 == pytest.approx(anew.best.held_out_top1, abs=0.1)
    assert len(learn) == 48


def test_fits_side_by_side_are_the_fits_one_by_one():
    clips = ManyViews(40, 1)
    first = fresh(Patches(), clips, views=Views(segments=2))
    second = replace(first, encoder=Patches(12, seed=5), layers=(0, 1))
    together = fit_probes([first, second], "tint", QUICK, progress=False)
    for supply, one in zip((first, second), together, strict=True):
        alone = fit_probe(supply, "tint", QUICK, progress=False)
        assert one.grid == alone.grid
        assert all(torch.equal(a, b) for a, b in zip(one.probe.parameters(), alone.probe.parameters(), strict=True))
