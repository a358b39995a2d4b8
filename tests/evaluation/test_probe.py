import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from nextvid.errors import UserError
from nextvid.evaluation.attentive import AttentiveProbe, heads_for
from nextvid.evaluation.features import Features, Standardise
from nextvid.evaluation.fitting import fit_probe, train_probe
from nextvid.evaluation.grid import GridAdamW, ProbeGrid
from nextvid.evaluation.probe import ProbeConfig
from nextvid.evaluation.scores import wilson

QUICK = ProbeConfig(epochs=8, batch=32, lrs=(1e-2, 1e-3))


def random_probe(width: int, classes: int, heads: int, seed: int) -> AttentiveProbe:
    """A probe whose every parameter, gains and biases included, is random and in float64."""
    probe = AttentiveProbe(width, classes, heads).double()
    draw = torch.Generator().manual_seed(seed)
    for parameter in probe.parameters():
        parameter.data.normal_(0, 0.5, generator=draw)
    return probe


@settings(max_examples=15, deadline=None)
@given(
    head_width=st.integers(1, 5),
    heads=st.integers(1, 4),
    members=st.integers(1, 4),
    tokens=st.integers(1, 9),
    batch=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_a_member_of_the_grid_is_the_plain_probe(head_width, heads, members, tokens, batch, seed):
    width, classes = max(2, head_width * heads), 3
    probes = [random_probe(width, classes, heads, seed + index) for index in range(members)]
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(batch, tokens, width, generator=draw, dtype=torch.float64)
    labels = torch.randint(classes, (batch,), generator=draw)
    grid = ProbeGrid(probes)
    together = grid(F.layer_norm(inputs, (width,)))
    F.cross_entropy(together.flatten(0, 1), labels.repeat(members), reduction="sum").backward()
    for index, probe in enumerate(probes):
        alone = probe(inputs)
        torch.testing.assert_close(together[index], alone, atol=1e-9, rtol=1e-9)
        F.cross_entropy(alone, labels, reduction="sum").backward()
        for name, parameter in probe.named_parameters():
            stacked = grid.weights[name].grad
            expected = torch.zeros_like(parameter) if stacked is None else stacked[index]
            torch.testing.assert_close(parameter.grad, expected, atol=1e-9, rtol=1e-9, msg=name)
    assert grid.weights["to_key.bias"].grad is None
    copy = grid.member(members - 1)
    assert torch.equal(copy(inputs), probes[-1](inputs))


def test_the_grids_optimiser_is_adamw_with_a_rate_and_decay_a_member():
    rates, decays = [1e-2, 3e-3], [0.1, 0.8]
    probes = [random_probe(8, 3, 2, seed) for seed in range(2)]
    grid = ProbeGrid(probes)
    ours = GridAdamW(grid, torch.tensor(rates, dtype=torch.float64), torch.tensor(decays, dtype=torch.float64))
    theirs = []
    for probe, rate, decay in zip(probes, rates, decays, strict=True):
        groups = [
            {"params": [p for p in probe.parameters() if p.ndim > 1], "weight_decay": decay},
            {"params": [p for n, p in probe.named_parameters() if p.ndim == 1 and n != "to_key.bias"]},
        ]
        theirs.append(torch.optim.AdamW(groups, lr=rate, weight_decay=0.0))
    for step in range(5):
        draw = torch.Generator().manual_seed(step)
        inputs = torch.randn(4, 6, 8, generator=draw, dtype=torch.float64)
        grid(F.layer_norm(inputs, (8,))).square().sum().backward()
        ours.step(1.0)
        for probe, optimiser in zip(probes, theirs, strict=True):
            optimiser.zero_grad()
            probe(inputs).square().sum().backward()
            optimiser.step()
    for index, probe in enumerate(probes):
        for name, parameter in probe.named_parameters():
            torch.testing.assert_close(grid.weights[name][index].detach(), parameter.detach(), atol=1e-7, rtol=1e-7)


def test_the_papers_probe_has_12_million_parameters():
    with torch.device("meta"):
        probe = AttentiveProbe(1024, classes=400)
    count = sum(parameter.numel() for parameter in probe.parameters())
    assert round(count / 1e6, 1) == 12.0
    assert count - sum(p.numel() for p in probe.classifier.parameters()) == 11_547_648
    assert probe.heads == 16


@given(width=st.integers(1, 600), wanted=st.integers(1, 32))
def test_heads_are_the_nearest_divisor(width, wanted):
    heads = heads_for(width, wanted)
    assert width % heads == 0
    assert all(abs(heads - wanted) <= abs(other - wanted) for other in range(1, width + 1) if width % other == 0)
    if width % wanted == 0:
        assert heads == wanted


@given(total=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_interval_holds_the_share_and_mirrors(total, share):
    correct = round(share * total)
    low, high = wilson(correct, total)
    assert 0 <= low <= correct / total <= high <= 1
    assert low < high
    mirrored = wilson(total - correct, total)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)
    wider = wilson(correct * 4, total * 4)
    assert wider[1] - wider[0] < high - low


@given(total=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_bounds_solve_the_score_equation(total, share):
    correct = round(share * total)
    for bound in wilson(correct, total):
        if 0 < bound < 1:
            error = abs(correct / total - bound)
            assert error == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / total), rel=1e-4, abs=1e-9)


def test_wilson_of_a_known_case_and_of_nonsense():
    assert wilson(15, 20) == pytest.approx((0.5313, 0.8881), abs=1e-4)
    for correct, total in [(0, 0), (3, 2), (-1, 2)]:
        with pytest.raises(ValueError, match="no proportion"):
            wilson(correct, total)


def test_a_learnable_problem_is_learned_and_counted(make_problem):
    result = train_probe(make_problem(500, 1), make_problem(300, 2), "kind", QUICK, progress=False)
    assert result.top1 > 0.9
    assert result.ci95[0] < result.top1 <= result.ci95[1]
    assert (result.classes, result.train_clips, result.held_out_clips, result.test_clips) == (4, 500, 100, 300)
    assert (result.heads, result.standardised, result.best_weight_decay) == (16, True, 0.1)
    assert result.held_out_top1 == max(member.held_out_top1 for member in result.grid)
    assert result.best_lr in QUICK.lrs
    confusion = torch.tensor(result.confusion)
    assert confusion.trace() / confusion.sum() == pytest.approx(result.top1)
    assert torch.equal(confusion.sum(1), make_problem(300, 2).labels["kind"].bincount())


def test_random_labels_are_read_at_chance(make_problem):
    result = train_probe(make_problem(300, 1, 0.0), make_problem(1500, 2, 0.0), "kind", QUICK, progress=False)
    assert abs(result.top1 - 0.25) < 0.05


def test_the_choice_never_reads_the_test_split(make_problem):
    train, test = make_problem(300, 1, 0.7), make_problem(200, 2, 0.7)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(3))
    shuffled = replace(test, labels={"kind": test.labels["kind"][order]})
    honest, fooled = (train_probe(train, split, "kind", QUICK, progress=False) for split in (test, shuffled))
    assert (honest.grid, honest.best_lr, honest.held_out_top1) == (fooled.grid, fooled.best_lr, fooled.held_out_top1)
    assert honest.top1 > fooled.top1


def test_the_choice_rests_on_clips_that_were_not_learned_from(make_problem):
    """Labels that can only be learned by heart: what was learned from reads far above chance, the held-out part not."""
    train = make_problem(120, 1, 0.0)
    config = ProbeConfig(epochs=60, batch=32, lrs=(3e-3,))
    fitted = fit_probe(train, "kind", config, progress=False)
    right = fitted.answers(train.tokens) == train.labels["kind"]
    assert fitted.held_out_clips == 24
    assert right.sum() > 96
    assert fitted.best.held_out_top1 < 0.6
    assert right.float().mean() == pytest.approx((96 + 24 * fitted.best.held_out_top1) / 120, abs=0.05)


def test_statistics_come_from_the_train_split_alone(make_problem, monkeypatch):
    train, test = make_problem(200, 1), make_problem(100, 2)
    seen = []
    fit = Standardise.fit.__func__
    monkeypatch.setattr(
        Standardise, "fit", classmethod(lambda cls, tokens, groups: seen.append(tokens) or fit(cls, tokens, groups))
    )
    train_probe(train, test, "kind", QUICK, progress=False)
    assert len(seen) == 1
    assert seen[0] is train.tokens


def test_standardising_reveals_what_a_loud_channel_hides(make_problem):
    """Young features: a few channels far larger than the rest, which LayerNorm then drowns."""
    loud = torch.ones(32)
    loud[:2] = 1000.0
    train, test = (
        Features(problem.tokens * loud, problem.labels, problem.tasks)
        for problem in (make_problem(500, 1), make_problem(200, 2))
    )
    with_it = train_probe(train, test, "kind", QUICK, progress=False)
    without = train_probe(train, test, "kind", QUICK.model_copy(update={"standardise": False}), progress=False)
    assert (with_it.standardised, without.standardised) == (True, False)
    assert with_it.top1 > without.top1 + 0.2


def test_the_result_is_a_function_of_the_seed(make_problem):
    train, test = make_problem(200, 1, 0.7), make_problem(100, 2, 0.7)
    first, again = (train_probe(train, test, "kind", QUICK, progress=False) for _ in range(2))
    other = train_probe(train, test, "kind", QUICK.model_copy(update={"seed": 1}), progress=False)
    assert first == again
    assert first.confusion != other.confusion


def test_a_diverged_member_is_not_chosen(make_problem):
    config = ProbeConfig(epochs=4, batch=32, lrs=(1e25, 1e-2))
    result = train_probe(make_problem(300, 1), make_problem(100, 2), "kind", config, progress=False)
    assert result.best_lr == 1e-2
    assert result.top1 > 0.5


def test_bad_input_is_said(make_problem):
    train, test = make_problem(20, 1), make_problem(20, 2)
    with pytest.raises(UserError, match=r"no labels for task 'colour'.*kind"):
        fit_probe(train, "colour", QUICK)
    with pytest.raises(UserError, match="too few"):
        fit_probe(make_problem(2, 1), "kind", QUICK)
    with pytest.raises(UserError, match="differ"):
        train_probe(train, replace(test, tasks={"kind": ("a", "b")}), "kind", QUICK)
    with pytest.raises(ValidationError, match="extra"):
        ProbeConfig(learning_rate=1e-3)
