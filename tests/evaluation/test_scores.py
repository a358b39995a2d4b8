"""Accuracies and their intervals, worked by hand, and against a slow reading of what they promise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, top_k_accuracy_score

from nextvid.evaluation.scores import Scores, mean_class_accuracy, score, wilson


def names(classes: int) -> list[str]:
    return [f"class {number}" for number in range(classes)]


def answered(answers: list[int], classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(answers), classes).double()


def drawn(clips: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    truth = torch.randint(classes, (clips,), generator=draw)
    logits = torch.randn(clips, classes, generator=draw)
    logits[torch.arange(clips), truth] += 1
    return logits.softmax(-1), truth


def test_a_case_worked_by_hand():
    """Class a: 3 of 4 right; b: 1 of 2; c never occurs; d: 0 of 1. Of 7 clips 4 are right."""
    truth = torch.tensor([0, 0, 0, 0, 1, 1, 3])
    found = score(answered([0, 0, 0, 1, 1, 2, 0], 4), truth, tuple("abcd"))
    assert found.top1 == 4 / 7
    assert found.ci95 == wilson(4, 7)
    assert found.top5 is None
    assert found.top5_ci95 is None
    assert found.clips == 7
    assert found.mean_class == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    assert found.confusion == [[3, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert [(one.name, one.clips, one.top1) for one in found.per_class] == [
        ("a", 4, 0.75),
        ("b", 2, 0.5),
        ("d", 1, 0.0),
    ]
    assert found.per_class[0].ci95 == wilson(3, 4)
    likely = [(4 / 6, 4), (2 / 4, 2), (1 / 3, 1)]
    spread = 1.959964 * math.sqrt(sum(p * (1 - p) / n for p, n in likely)) / 3
    assert found.mean_class_ci95 == pytest.approx((max(0, 5 / 12 - spread), min(1, 5 / 12 + spread)), rel=1e-5)


def test_the_five_best_answers_by_hand():
    """Six classes in the order of their probabilities 5 to 0: only the last is not among the five."""
    probabilities = torch.tensor([0.0, 0.1, 0.15, 0.2, 0.25, 0.3]).expand(3, -1)
    found = score(probabilities, torch.tensor([5, 1, 0]), names(6))
    assert (found.top1, found.top5) == (1 / 3, 2 / 3)
    assert found.top5_ci95 == wilson(2, 3)
    five = score(probabilities[:, 1:], torch.tensor([4, 0, 0]), names(5))
    assert (five.top1, five.top5) == (1 / 3, None)


def test_all_right_and_all_wrong_are_not_certain():
    truth = torch.arange(10) % 5
    right, wrong = (score(answered(((truth + shift) % 5).tolist(), 5), truth, names(5)) for shift in (0, 1))
    assert (right.top1, right.mean_class, wrong.top1, wrong.mean_class) == (1.0, 1.0, 0.0, 0.0)
    assert right.ci95[1] == right.mean_class_ci95[1] == 1.0
    assert wrong.ci95[0] == wrong.mean_class_ci95[0] == 0.0
    assert right.mean_class_ci95[0] < 0.95
    assert wrong.mean_class_ci95[1] > 0.05


def test_a_rare_class_weighs_as_much_as_a_common_one():
    truth = torch.tensor([0] * 99 + [1])
    found = score(answered([0] * 100, 2), truth, names(2))
    assert (found.top1, found.mean_class) == (0.99, 0.5)


@given(clips=st.integers(1, 200), classes=st.integers(2, 12), seed=st.integers(0, 10_000))
@pytest.mark.filterwarnings("ignore:y_pred contains classes", "ignore:y_score represents", "ignore:A single label")
def test_scores_are_those_of_scikit_learn(clips, classes, seed):
    probabilities, truth = drawn(clips, classes, seed)
    found = score(probabilities, truth, names(classes))
    labels, answers = truth.numpy(), probabilities.argmax(-1).numpy()
    assert found.top1 == np.mean(labels == answers)
    assert found.confusion == confusion_matrix(labels, answers, labels=range(classes)).tolist()
    assert found.mean_class == pytest.approx(balanced_accuracy_score(labels, answers))
    if classes > 5:
        wanted = top_k_accuracy_score(labels, probabilities.numpy(), k=5, labels=range(classes))
        assert found.top5 == pytest.approx(wanted)
    else:
        assert found.top5 is None


@given(clips=st.integers(1, 200), classes=st.integers(2, 12), seed=st.integers(0, 10_000))
def test_intervals_hold_their_shares_and_lie_between_0_and_1(clips, classes, seed):
    found = score(*drawn(clips, classes, seed), names(classes))
    pairs = [(found.top1, found.ci95), (found.mean_class, found.mean_class_ci95)]
    pairs += [(one.top1, one.ci95) for one in found.per_class]
    if found.top5 is not None and found.top5_ci95 is not None:
        assert found.top5 >= found.top1
        pairs.append((found.top5, found.top5_ci95))
    assert all(0 <= low <= share <= high <= 1 for share, (low, high) in pairs)
    assert sum(one.clips for one in found.per_class) == clips
    assert Scores.model_validate_json(found.model_dump_json()) == found


@given(clips=st.integers(2, 100), seed=st.integers(0, 1000))
def test_scores_do_not_depend_on_the_order_of_clips_or_the_scale_of_answers(clips, seed):
    probabilities, truth = drawn(clips, 7, seed)
    order = torch.randperm(clips, generator=torch.Generator().manual_seed(seed))
    whole = score(probabilities, truth, names(7))
    assert score(probabilities[order], truth[order], names(7)) == whole
    assert score(probabilities.log() * 3, truth, names(7)) == whole


def test_the_interval_of_the_mean_over_classes_covers_the_truth():
    """Of 1000 test splits of classes that are right with known odds, about 95% have the true mean in their interval."""
    odds, clips = torch.tensor([0.9, 0.6, 0.3, 0.75]), torch.tensor([40, 15, 60, 25])
    draw = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(1000):
        right = torch.binomial(clips.double(), odds.double(), generator=draw).long()
        confusion = torch.zeros(4, 4, dtype=torch.int64)
        confusion[torch.arange(4), torch.arange(4)] = right
        confusion[torch.arange(4), (torch.arange(4) + 1) % 4] = clips - right
        _, (low, high) = mean_class_accuracy(confusion)
        covered += low <= odds.mean() <= high
    assert 930 <= covered <= 985
