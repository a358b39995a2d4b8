import pytest
import torch

from nextvid.errors import UserError
from nextvid.evaluation.readers import retrieval
from nextvid.evaluation.readers.retrieval import ranks_of, retrieve
from nextvid.evaluation.readers.shares import clustered, share_of
from nextvid.evaluation.scores import wilson


def random(videos, seed, width=16):
    return torch.randn(videos, width, generator=torch.Generator().manual_seed(seed))


def test_two_clips_that_are_alike_are_found():
    content = random(50, 0)
    found = retrieve(content, content + 0.01 * random(50, 1))
    assert (found.top1, found.top5, found.mean_reciprocal_rank) == (1.0, 1.0, 1.0)
    assert found.ci95 == wilson(50, 50)
    assert (found.chance, found.chance_top5, found.videos) == (1 / 50, 5 / 50, 50)


def test_clips_that_have_nothing_in_common_are_found_by_chance():
    found = retrieve(random(400, 0), random(400, 1))
    assert found.top1 < 0.02
    assert 0.002 < found.top5 < 0.03
    assert found.mean_reciprocal_rank == pytest.approx(sum(1 / r for r in range(1, 401)) / 400, abs=0.008)


@pytest.mark.parametrize("standardise", [True, False])
def test_vectors_that_are_all_alike_score_chance_exactly(standardise):
    same = torch.full((20, 4), 3.0)
    found = retrieve(same, same, standardise=standardise)
    assert found.top1 == pytest.approx(found.chance)
    assert found.top5 == pytest.approx(found.chance_top5)
    assert found.mean_reciprocal_rank == pytest.approx(sum(1 / r for r in range(1, 21)) / 20)


def test_ranks_by_hand(monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK_VALUES", 3)  # a query a block
    queries = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    gallery = torch.tensor([[2.0, 0.0], [3.0, 0.0], [1.0, 1.0]])
    above, tied = ranks_of(queries, gallery)
    assert above.tolist() == [0, 0, 0]
    assert tied.tolist() == [1, 1, 0]
    assert ranks_of(queries.flip(0), gallery)[0].tolist() == [1, 0, 2]
    found = retrieve(queries, gallery, standardise=False)
    assert found.top1 == pytest.approx(2 / 3)
    assert found.mean_reciprocal_rank == pytest.approx((0.75 + 0.75 + 1) / 3)


def test_one_video_is_too_few():
    with pytest.raises(UserError, match="2 videos at least"):
        retrieve(random(1, 0), random(1, 1))


def test_part_of_a_video_widens_the_interval_to_whole_videos():
    share, (low, high) = share_of(2.5, 10)
    assert share == 0.25
    assert low == wilson(2, 10)[0]
    assert high == wilson(3, 10)[1]
    assert share_of(3.0, 10) == (0.3, wilson(3, 10))


def test_asking_a_video_more_often_does_not_narrow_the_interval():
    """Six sequences of each of 20 videos that are all right or all wrong are worth 20 answers, not 120."""
    means = torch.tensor([1.0] * 10 + [0.0] * 10)
    mean, (low, high) = clustered(means)
    assert mean == 0.5
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 20**0.5, rel=0.05)
    sure, (low, high) = clustered(torch.ones(10))
    assert (sure, high) == (1.0, 1.0)
    assert low < 0.9
