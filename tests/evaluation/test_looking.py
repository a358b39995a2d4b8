"""What a probe's page shows: mistakes that are mistakes, near clips that are near, attention that lies where it is put."""

import numpy as np
import pytest
import torch

from nextvid.evaluation.attentive import AttentiveProbe
from nextvid.evaluation.features import Features, Standardise
from nextvid.evaluation.looking import (
    KEPT_SIDE,
    MOST_POINTS,
    Amount,
    Material,
    TokenGrid,
    attention_maps,
    first_views,
    look,
    most_confident_mistakes,
    nearest_clips,
    one_of_each,
    points_of,
    small,
)
from nextvid.evaluation.probe import FittedProbe, GridMember

GRID = TokenGrid(groups=2, segments=2, time=3, rows=2, columns=4)
NAMES = ("walk", "run", "jump")


def fitted_probe(width: int = 4) -> FittedProbe:
    """A probe of one head whose query looks for the first channel, whatever else there is."""
    probe = AttentiveProbe(width, len(NAMES), heads=1)
    with torch.no_grad():
        probe.to_query.weight.zero_()
        probe.to_query.bias.copy_(torch.eye(width)[0] * 20)
        probe.to_key.weight.copy_(torch.eye(width))
    member = GridMember(lr=0.1, weight_decay=0.1, held_out_top1=0.5, held_out_loss=1.0)
    return FittedProbe(probe=probe, standardise=None, best=member, grid=[member], held_out_clips=4)


def marked_tokens(clip: int) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Tokens whose first channel is high at one place of the first segment, in both layers, and lower at one of the second."""
    place = (clip % GRID.time, clip % GRID.rows, (clip * 3) % GRID.columns)
    tokens = torch.zeros(*GRID, 4)
    tokens[..., 1] = 1
    tokens[(slice(None), 0, *place)] = torch.tensor([1.0, 0, 0, 0])
    tokens[(slice(None), 1, 0, 0, 0)] = torch.tensor([1.0, 0, 0, 0])
    return tokens.flatten(0, 4), place


def frames_of(clip: int) -> np.ndarray:
    return np.full((6, 8, 8, 3), clip, np.uint8)


def test_mistakes_are_mistakes_the_surest_of_each_class_first():
    truth = torch.tensor([0, 0, 0, 1, 1, 2])
    answers = torch.tensor([1, 1, 0, 0, 2, 2])
    sure = torch.tensor([0.9, 0.95, 0.99, 0.6, 0.5, 0.9])
    probabilities = torch.full((6, 3), 0.0)
    probabilities[torch.arange(6), answers] = sure
    found = most_confident_mistakes(probabilities, truth, 10).tolist()
    assert found == [1, 3, 0, 4]
    assert most_confident_mistakes(probabilities, truth, 2).tolist() == [1, 3]


def test_no_mistakes_are_none():
    assert len(most_confident_mistakes(torch.eye(3), torch.arange(3), 5)) == 0


def test_near_clips_are_those_of_the_same_direction(monkeypatch):
    monkeypatch.setattr("nextvid.evaluation.looking.TRAIN_ROWS", 2)
    train = torch.tensor([[1.0, 0], [0, 2], [-1, 0], [5, 5], [0.1, 0.09]])
    test = torch.tensor([[0.0, 9], [3, 3]])
    nearest, similar = nearest_clips(test, train, torch.tensor([1, 0]), 2)
    assert nearest[0].sort().values.tolist() == [3, 4]
    assert nearest[0, 0] == 3
    assert nearest[1, 0] == 1
    assert similar[0, 0] == pytest.approx(1)
    assert (similar.diff(dim=1) <= 0).all()
    assert nearest_clips(test, train, torch.tensor([0]), 99)[0].shape == (1, 5)


def test_queries_are_of_as_many_classes_as_there_are():
    truth = torch.tensor([0] * 50 + [1] * 2 + [2])
    chosen = one_of_each(truth, 4)
    assert sorted(truth[chosen][:3].tolist()) == [0, 1, 2]
    assert len(set(chosen.tolist())) == 4
    assert torch.equal(chosen, one_of_each(truth, 4))


def test_attention_lies_where_the_probe_looks():
    clips = [marked_tokens(clip) for clip in range(5)]
    maps = attention_maps(fitted_probe().attention(torch.stack([tokens for tokens, _ in clips])), GRID)
    assert torch.allclose(maps.sum((1, 2, 3)), torch.ones(5))
    for found, (_, place) in zip(maps, clips, strict=True):
        assert np.unravel_index(int(found.argmax()), found.shape) == place
        assert found[place] > 0.9


def test_attention_of_another_grid_is_refused():
    with pytest.raises(ValueError, match="do not lie in"):
        attention_maps(torch.ones(2, 7), GRID)


@pytest.mark.parametrize("clips", [1, 2, 3, 4, 5, 40])
def test_a_map_has_a_point_a_clip_and_is_repeatable(clips):
    pooled = torch.randn(clips, 6, generator=torch.Generator().manual_seed(0))
    points = points_of(pooled, seed=1)
    assert points.shape == (clips, 2)
    assert np.isfinite(points).all()
    assert np.array_equal(points, points_of(pooled, seed=1))


def test_a_map_keeps_groups_apart():
    centres = 20 * torch.eye(3, 8)
    labels = torch.arange(60) % 3
    points = points_of(centres[labels] + torch.randn(60, 8, generator=torch.Generator().manual_seed(0)))
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(60)
    assert (labels[apart.argmin(1)] == labels).all()


@pytest.mark.parametrize("width", [1, 2, 70])
def test_a_map_of_any_width_and_of_equal_clips(width):
    assert np.isfinite(points_of(torch.ones(12, width))).all()
    assert points_of(torch.arange(12.0)[:, None].expand(12, width).contiguous()).shape == (12, 2)


def test_a_map_of_too_many_clips_is_refused():
    with pytest.raises(ValueError, match=f"at most {MOST_POINTS}"):
        points_of(torch.zeros(MOST_POINTS + 1, 2))


def test_a_look_fetches_what_it_shows_and_nothing_else():
    clips = 30
    tokens = torch.stack([marked_tokens(clip)[0] for clip in range(clips)])
    truth = torch.arange(clips) % 3
    probabilities = torch.eye(3)[truth] * 0.6 + 0.1
    probabilities[:6] = torch.eye(3)[(truth[:6] + 1) % 3] * 0.8
    fetched: list[int] = []
    pooled = torch.randn(clips, 5, generator=torch.Generator().manual_seed(0))

    def frames(clip: int) -> np.ndarray:
        fetched.append(clip)
        return frames_of(clip)

    shown = look(
        fitted_probe(),
        tokens,
        tuple(GRID),
        frames,
        truth,
        probabilities,
        NAMES,
        train=Material(frames_of, truth, pooled),
        test_pooled=pooled,
        amount=Amount(misread=4, queries=3, nearest=2, attended=3),
    )
    assert len(fetched) == 4 + 3 + 3
    assert len(shown.misread) == 4
    for row in shown.misread:
        clip = int(row.frames[0, 0, 0, 0])
        assert clip < 6
        assert row.truth == NAMES[clip % 3]
        assert row.answer == NAMES[(clip + 1) % 3]
        assert (row.probability, row.truth_probability) == (pytest.approx(0.8), 0)
    for row in shown.neighbours:
        assert row.label == row.nearest[0].label
        assert np.array_equal(row.frames, row.nearest[0].frames)
        assert row.nearest[0].similarity == pytest.approx(1, abs=1e-5)
        assert len(row.nearest) == 2
    assert [row.truth == row.answer for row in shown.attended] == [True, True, False]
    for row in shown.attended:
        place = marked_tokens(int(row.frames[0, 0, 0, 0]))[1]
        assert row.weights.sum() == pytest.approx(1, abs=1e-5)
        assert np.unravel_index(row.weights.argmax(), row.weights.shape) == place
    assert shown.points is not None
    assert shown.points.points.shape == (clips, 2)
    assert shown.points.labels.tolist() == truth.tolist()


def test_a_look_without_grid_or_train_leaves_them_out():
    tokens = torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(0))
    truth = torch.arange(8) % 3
    shown = look(fitted_probe(), tokens, None, frames_of, truth, torch.eye(3)[truth], NAMES)
    assert (shown.misread, shown.neighbours, shown.attended) == ([], [], [])
    assert shown.points is not None


def test_a_map_of_many_clips_is_one_of_some(monkeypatch):
    monkeypatch.setattr("nextvid.evaluation.looking.MOST_POINTS", 20)
    tokens = torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(0))
    truth = torch.arange(50) % 3
    shown = look(fitted_probe(), tokens, None, frames_of, truth, torch.eye(3)[truth], NAMES)
    assert shown.points is not None
    assert len(shown.points.points) == len(shown.points.labels) == 20


def test_tokens_can_come_from_a_supply_of_several_views():
    tokens = torch.arange(12.0).view(12, 1, 1).expand(12, 3, 2).contiguous()
    supply = Features(tokens, {"kind": torch.zeros(4, dtype=torch.int64)}, {"kind": ("a",)}, views=3)
    found = first_views(supply, torch.tensor([0, 1, 3]))(torch.tensor([2, 1]))
    assert found[:, 0, 0].tolist() == [9, 3]


def test_attention_is_of_standardised_tokens():
    fitted = fitted_probe().model_copy(
        update={"standardise": Standardise(torch.tensor([[0.0, 0, 0, 0]] * 2), torch.full((2, 4), 2.0))}
    )
    tokens, place = marked_tokens(1)
    assert attention_maps(fitted.attention(tokens[None]), GRID)[0][place] > 0.9


def test_large_clips_are_kept_small():
    kept = small(np.random.default_rng(0).integers(0, 256, (200, 240, 320, 3), dtype=np.uint8))
    assert kept.shape == (64, 120, KEPT_SIDE, 3)
    assert len(small(np.zeros((200, 8, 8, 3), np.uint8), time=100)) == 100
    assert small(np.zeros((3, 8, 8, 3), np.uint8)).shape == (3, 8, 8, 3)
