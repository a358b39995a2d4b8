from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from nextvid.errors import UserError
from nextvid.evaluation.features import Features
from nextvid.evaluation.fitting import split
from nextvid.evaluation.probe import ProbeConfig
from nextvid.evaluation.readers.linear import linear_probe
from nextvid.evaluation.readers.pooled import Pooled, pool, standardised

STRENGTHS = (1e-6, 1e-2, 1.0)


@pytest.fixture
def problem(make_problem):
    return make_problem(240, 1, 0.7), make_problem(200, 2, 0.7)


def test_pooling_is_the_mean_over_tokens_and_views_layer_by_layer():
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(6, 8, 5, generator=draw)
    labels = torch.tensor([0, 1, 0])
    found = pool(Features(tokens, {"kind": labels}, {"kind": ("a", "b")}, views=2, groups=2), "kind", progress=False)
    first = torch.cat([tokens[:2, :4].mean((0, 1)), tokens[:2, 4:].mean((0, 1))])
    torch.testing.assert_close(found.vectors[0], first)
    assert found.vectors.shape == (3, 10)
    assert found.labels.tolist() == [0, 1, 0]
    assert found.samples.tolist() == [0, 1, 2]


class Leaky(Features):
    """Rows 3 and 10 cannot be read."""

    def batches(self, plan):
        for _, rows in plan:
            read = rows[(rows != 3) & (rows != 10)]
            yield read, self.tokens[read]


def test_clips_that_cannot_be_read_leave_who_is_held_out_as_it_is(problem):
    train, _ = problem
    config = ProbeConfig(seed=3)
    _, held = split(train.labels["kind"], config)
    whole = pool(train, "kind", progress=False)
    assert set(whole.parts(config)[1].tolist()) == set(held.tolist())
    leaky = pool(Leaky(train.tokens, train.labels, train.tasks), "kind", progress=False)
    assert len(leaky) == len(train) - 2
    assert set(leaky.samples[leaky.parts(config)[1]].tolist()) == set(held.tolist()) - {3, 10}


def test_standardised_vectors_have_mean_0_and_deviation_1_by_the_reference():
    draw = torch.Generator().manual_seed(0)
    reference = 5 + 3 * torch.randn(50, 4, generator=draw)
    found = standardised(reference, reference)
    torch.testing.assert_close(found.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(0, correction=0), torch.ones(4))
    torch.testing.assert_close(
        standardised(reference, reference[:1] + 3), found[:1] + 3 / reference.std(0, correction=0)
    )


@pytest.mark.parametrize("standardise", [True, False])
def test_the_linear_probe_is_scikit_learns_chosen_on_the_held_out_part(problem, standardise):
    train, test = (pool(split_, "kind", progress=False) for split_ in problem)
    config = ProbeConfig(seed=5)
    found = linear_probe(train, test, config, strengths=STRENGTHS, standardise=standardise, progress=False)
    learn, held = split(train.labels, config)
    learnt = train.vectors[learn].double()
    mean, deviation = (learnt.mean(0), learnt.std(0, correction=0)) if standardise else (0.0, 1.0)
    ready = [((vectors.double() - mean) / deviation).numpy() for vectors in (learnt, train.vectors[held], test.vectors)]
    models = [
        LogisticRegression(C=strength, max_iter=1000).fit(ready[0], train.labels[learn].numpy())
        for strength in STRENGTHS
    ]
    accuracies = [model.score(ready[1], train.labels[held].numpy()) for model in models]
    best = max(range(3), key=lambda index: accuracies[index])
    assert list(found.held_out.values()) == pytest.approx(accuracies)
    assert found.chosen == STRENGTHS[best]
    assert found.scores.top1 == pytest.approx(models[best].score(ready[2], test.labels.numpy()))
    assert found.scores.top1 > 0.6
    assert found.held_out_clips == len(held)


def test_test_labels_do_not_choose(problem):
    """With every test label turned the same strength is chosen, and the accuracy falls."""
    train, test = (pool(split_, "kind", progress=False) for split_ in problem)
    turned = replace(test, labels=(test.labels + 1) % 4)
    right = linear_probe(train, test, strengths=STRENGTHS, progress=False)
    wrong = linear_probe(train, turned, strengths=STRENGTHS, progress=False)
    assert (wrong.chosen, wrong.held_out) == (right.chosen, right.held_out)
    assert wrong.scores.top1 < 0.25 < right.scores.top1


def test_what_does_not_belong_together_is_said(problem):
    train, test = (pool(split_, "kind", progress=False) for split_ in problem)
    with pytest.raises(UserError, match="channels"):
        linear_probe(train, replace(test, vectors=test.vectors[:, :5]), progress=False)
    known = train.labels != 3
    fewer = Pooled(train.vectors[known], train.labels[known], train.names, train.samples[known], train.all_labels)
    with pytest.raises(UserError, match="'d'"):
        linear_probe(fewer, test, progress=False)
    with pytest.raises(UserError, match="no labels for task 'colour'"):
        pool(problem[0], "colour", progress=False)
