import math
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from nextvid.errors import UserError
from nextvid.evaluation.fitting import split
from nextvid.evaluation.probe import ProbeConfig
from nextvid.evaluation.readers import neighbours
from nextvid.evaluation.readers.neighbours import nearest_neighbours, votes_of
from nextvid.evaluation.readers.pooled import pool

KS = (1, 5, 20)


def test_votes_by_hand():
    """Of four train clips the nearest is of class 0, the next two of class 1, which together weigh more."""
    similar = torch.tensor([[0.90, 0.88, 0.87, -1.0]])
    labels = torch.tensor([0, 1, 1, 0])
    one, two, three = votes_of(similar, labels, 3, (1, 2, 3), temperature=0.1)[:, 0]
    torch.testing.assert_close(one, torch.tensor([math.exp(9.0), 0.0, 0.0]))
    torch.testing.assert_close(two, torch.tensor([math.exp(9.0), math.exp(8.8), 0.0]))
    torch.testing.assert_close(three, torch.tensor([math.exp(9.0), math.exp(8.8) + math.exp(8.7), 0.0]))
    assert [votes.argmax().item() for votes in (one, two, three)] == [0, 0, 1]


def test_a_hot_vote_is_scikit_learns_vote_by_cosine(make_problem, monkeypatch):
    train, test = (pool(make_problem(count, seed, 0.8), "kind", progress=False) for count, seed in ((150, 1), (80, 2)))
    monkeypatch.setattr(neighbours, "BLOCK_VALUES", 1000)  # several blocks, the last one smaller
    found = nearest_neighbours(train, test, ks=(5,), temperature=1e9, standardise=False, progress=False)
    theirs = KNeighborsClassifier(5, metric="cosine").fit(train.vectors.numpy(), train.labels.numpy())
    nearest = theirs.kneighbors(test.vectors.numpy(), return_distance=False)
    counts = [Counter(train.labels[torch.from_numpy(row)].tolist()).most_common() for row in nearest]
    clear = [i for i, best in enumerate(counts) if len(best) == 1 or best[0][1] > best[1][1]]
    assert len(clear) > 50
    right = sum(counts[i][0][0] == int(test.labels[i]) for i in clear)
    assert right <= found.scores.top1 * 80 <= right + 80 - len(clear)


def test_k_is_chosen_on_held_out_clips_and_all_of_train_votes_on_test(make_problem):
    train, test = (pool(make_problem(count, seed, 0.8), "kind", progress=False) for count, seed in ((240, 1), (200, 2)))
    config = ProbeConfig(seed=1)
    found = nearest_neighbours(train, test, config, ks=(*KS, 100_000), standardise=False, progress=False)
    learn, held = split(train.labels, config)

    def accuracy(asked, truth, gallery, labels, k):
        cosine = torch.nn.functional.normalize(asked, dim=1) @ torch.nn.functional.normalize(gallery, dim=1).T
        answers = []
        for row in cosine.numpy():
            best = np.argsort(-row)[:k]
            votes = np.bincount(labels.numpy()[best], np.exp(row[best] / 0.07), minlength=4)
            answers.append(votes.argmax())
        return float(np.mean(np.array(answers) == truth.numpy()))

    expected = {
        str(k): accuracy(train.vectors[held], train.labels[held], train.vectors[learn], train.labels[learn], k)
        for k in KS
    }
    assert found.held_out == pytest.approx(expected)
    assert found.held_out[str(int(found.chosen))] == max(expected.values())
    whole = accuracy(test.vectors, test.labels, train.vectors, train.labels, int(found.chosen))
    assert found.scores.top1 == pytest.approx(whole)
    assert found.scores.top1 > 0.5
    assert found.scores.clips == 200


def test_standardising_recovers_what_loud_channels_drown(make_problem):
    train, test = (pool(make_problem(count, seed, 0.8), "kind", progress=False) for count, seed in ((240, 1), (200, 2)))
    for part in (train, test):
        part.vectors[:, :4] = 100 * torch.randn(len(part), 4, generator=torch.Generator().manual_seed(len(part)))
    found = [
        nearest_neighbours(train, test, standardise=chosen, progress=False).scores.top1 for chosen in (False, True)
    ]
    assert found[0] < 0.45
    assert found[1] > 0.6


def test_no_possible_k_is_said(make_problem):
    small = pool(make_problem(20, 1), "kind", progress=False)
    with pytest.raises(UserError, match="choose smaller ks"):
        nearest_neighbours(small, small, ks=(50,), progress=False)
