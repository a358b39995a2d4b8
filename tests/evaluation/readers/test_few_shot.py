import pytest
import torch

from nextvid.errors import UserError
from nextvid.evaluation.readers.few_shot import few_shot
from nextvid.evaluation.readers.pooled import Pooled, pool


def pooled(vectors, labels, names):
    return Pooled(vectors, labels, names, torch.arange(len(labels)), labels)


def test_more_shots_read_more_and_the_interval_is_over_draws(make_problem):
    train, test = (pool(make_problem(count, seed, 0.7), "kind", progress=False) for count, seed in ((240, 1), (200, 2)))
    one, five, ten = few_shot(train, test, progress=False)
    assert (one.shots, five.shots, ten.shots) == (1, 5, 10)
    assert 0.25 < one.top1 < five.top1 < ten.top1
    assert len(one.each) == 20
    assert len(set(one.each)) > 5
    mean = sum(one.each) / 20
    spread = 2.0930 * (sum((each - mean) ** 2 for each in one.each) / 19 / 20) ** 0.5
    assert one.top1 == pytest.approx(mean)
    assert one.ci95 == pytest.approx((mean - spread, mean + spread), abs=1e-4)
    assert few_shot(train, test, progress=False) == [one, five, ten]
    assert few_shot(train, test, seed=1, progress=False) != [one, five, ten]


def test_the_nearest_mean_by_hand():
    """All of a class is drawn, so that every draw is the same: means of unit vectors, and the cosine to them."""
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [-9.0, 0.0]])
    train = pooled(vectors, torch.tensor([0, 0, 2, 2]), ("a", "nobody", "c"))
    asked = torch.tensor([[1.0, 1.0], [-1.0, 0.9], [-1.0, 0.3], [0.0, -1.0]])  # cosines to a: 1, -0.05, -0.47, -0.71
    test = pooled(asked, torch.tensor([0, 0, 2, 0]), ("a", "nobody", "c"))
    (found,) = few_shot(train, test, shots=(2,), trials=2, standardise=False, progress=False)
    assert found.each == [0.5, 0.5]
    assert found.ci95 == (0.5, 0.5)
    assert found.classes == 2


def test_a_class_of_too_few_clips_is_named(make_problem):
    train = pool(make_problem(240, 1, 0.7), "kind", progress=False)
    rows = torch.cat([(train.labels != 2).nonzero().flatten(), (train.labels == 2).nonzero().flatten()[:7]])
    few = pooled(train.vectors[rows], train.labels[rows], train.names)
    with pytest.raises(UserError, match=r"'c' has 7 train clips, and 10 shots need 10"):
        few_shot(few, train, progress=False)
    assert len(few_shot(few, train, shots=(1, 5), trials=2, progress=False)) == 2
