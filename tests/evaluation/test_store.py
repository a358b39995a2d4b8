"""Tokens on disk: what comes back is what was encoded, also after an interruption, and what is wrong has a name."""

from pathlib import Path

import pytest
import torch
from frozen_clips import AUGMENTED, ManyViews, Patches, TintedClips, all_rows, fresh
from hypothesis import given
from hypothesis import strategies as st

from nextvid.data.views import ViewAugmentation, Views
from nextvid.errors import Stopped, UserError
from nextvid.evaluation import store
from nextvid.evaluation.features import Supply
from nextvid.evaluation.fresh import FreshTokens, in_memory
from nextvid.evaluation.store import StoredTokens, broken_in, check_room, write_store


def tokens_of(supply: Supply, epoch: int = 0) -> torch.Tensor:
    """All rows that there are, in one batch."""
    (found,) = supply.batches([(epoch, torch.arange(len(supply) * supply.views))])
    return found[1]


def stored(supply: FreshTokens, folder: Path, copies: int = 1, kind: str = "float32", **settings) -> StoredTokens:
    return write_store(supply, folder, "storing", copies, kind, progress=False, **settings)  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three samples a shard: of one layer 8 tokens of 16 channels each."""
    monkeypatch.setattr(store, "SHARD_BYTES", 3 * 8 * 16 * 4)


def test_float32_comes_back_exactly(tmp_path: Path, small_shards: None):
    for number, (layers, views) in enumerate([((1,), Views()), ((0, 1), Views(segments=2, views=3))]):
        supply = fresh(Patches(shift=1000.0), ManyViews(10), layers, views)
        found = stored(supply, tmp_path / str(number))
        assert isinstance(found, Supply)
        assert (len(found), found.views, found.groups, found.width) == (10, views.rows, len(layers), 16)
        assert found.tasks == supply.tasks
        assert torch.equal(tokens_of(found), tokens_of(supply))


@pytest.mark.parametrize(("shift", "gain"), [(0.0, 1.0), (1000.0, 1.0), (-3e5, 100.0), (2.0, 1e-4), (0.0, 1e6)])
def test_float16_keeps_what_differs_whatever_the_mean_and_deviation(tmp_path: Path, shift: float, gain: float):
    """11 bits of the distance from a channel's centre, whatever is added to it."""
    supply = fresh(Patches(shift=shift, gain=gain), TintedClips(20))
    truth, found = tokens_of(supply).double(), tokens_of(stored(supply, tmp_path, kind="float16")).double()
    centre, deviation = truth.mean((0, 1)), truth.std((0, 1))
    bound = 2**-11 * ((truth - centre).abs() + deviation) + 2**-23 * abs(shift)
    assert ((found - truth).abs() <= 1.5 * bound).all()
    if shift == 1000.0:
        assert deviation.max() < 30
        assert ((truth.half().double() - truth).abs().amax((0, 1)) > 10 * (found - truth).abs().amax((0, 1))).all()
    size = sum(file.stat().st_size for file in tmp_path.glob("*.arrow"))
    assert size < 0.5 * truth.numel() * 4 + 6000


def test_a_channel_that_never_changes_comes_back(tmp_path: Path):
    supply = fresh(Patches(shift=7.3, gain=0.0), TintedClips(5))
    assert torch.equal(tokens_of(stored(supply, tmp_path, kind="float16")), tokens_of(supply))


@given(rows=st.lists(st.integers(0, 29), max_size=20), batch=st.integers(1, 7))
def test_any_rows_in_any_order(tmp_path_factory: pytest.TempPathFactory, rows: list[int], batch: int):
    supply = fresh(Patches(), ManyViews(10), views=Views(views=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "SHARD_BYTES", 4 * 3 * 8 * 16 * 4)
        found = stored(supply, tmp_path_factory.mktemp("store"))
    whole = tokens_of(supply)
    plan = [(3, part) for part in torch.tensor(rows, dtype=torch.int64).split(batch)]
    for (_, asked), (given_rows, tokens) in zip(plan, found.batches(plan), strict=True):
        assert torch.equal(given_rows, asked)
        assert torch.equal(tokens, whole[asked])


def test_an_interrupted_extraction_goes_on(tmp_path: Path, small_shards: None):
    stored(fresh(Patches(), TintedClips(10)), tmp_path / "whole")
    encoder = Patches()
    answers = iter([False, True, True])
    with pytest.raises(Stopped):
        stored(fresh(encoder, TintedClips(10)), tmp_path / "other", stop=lambda: next(answers))
    assert sorted(files(tmp_path / "other")) == ["000000.arrow"]
    assert encoder.encoded == 1 + 3
    found = stored(fresh(encoder, TintedClips(10)), tmp_path / "other")
    assert encoder.encoded == 4 + 1 + 7
    assert files(tmp_path / "other") == files(tmp_path / "whole")
    assert sorted(files(tmp_path / "whole")) == [*(f"00000{n}.arrow" for n in range(4)), "store.json"]
    assert torch.equal(tokens_of(found), tokens_of(fresh(Patches(), TintedClips(10))))


def test_an_encoder_that_fails_in_the_middle_leaves_whole_shards_alone(tmp_path: Path, small_shards: None):
    class Failing(Patches):
        def encode(self, frames, layers):
            if self.encoded > 5:
                raise UserError("the encoder fails")
            return super().encode(frames, layers)

    with pytest.raises(UserError, match="the encoder fails"):
        stored(fresh(Failing(), TintedClips(10)), tmp_path / "other")
    assert sorted(files(tmp_path / "other")) == ["000000.arrow", "000001.arrow"]
    stored(fresh(Patches(), TintedClips(10)), tmp_path / "other")
    stored(fresh(Patches(), TintedClips(10)), tmp_path / "whole")
    assert files(tmp_path / "other") == files(tmp_path / "whole")


def test_epochs_take_turns_with_the_copies(tmp_path: Path, small_shards: None):
    supply = fresh(Patches(), ManyViews(7), views=Views(segments=2, augmentation=ViewAugmentation()))
    found = stored(supply, tmp_path, copies=3)
    drawn = [tokens_of(supply, epoch) for epoch in range(3)]
    assert not torch.equal(drawn[0], drawn[1])
    for epoch in range(7):
        assert torch.equal(tokens_of(found, epoch), drawn[epoch % 3])


def test_files_that_are_broken_have_no_rows(tmp_path: Path, small_shards: None):
    broken = [0, 4, 6, 7, 8]
    supply = fresh(Patches(), ManyViews(11, broken=broken), views=Views(views=2))
    found = stored(supply, tmp_path)
    plan = [(0, torch.arange(22)), (0, torch.tensor([0, 1])), (0, torch.tensor([9, 8, 3]))]
    (rows, tokens), (none, empty), (some, _) = found.batches(plan)
    whole = [2 * sample + view for sample in range(11) if sample not in broken for view in range(2)]
    assert rows.tolist() == whole
    assert torch.equal(tokens, tokens_of(fresh(Patches(), ManyViews(11), views=Views(views=2)))[whole])
    assert (none.tolist(), empty.shape) == ([], (0, 8, 16))
    assert some.tolist() == [3]
    assert len(found) == 11
    assert supply.reader.broken.keys() == {f"/tinted/{sample}.mp4" for sample in broken}


def test_what_could_not_be_read_is_still_known_after_an_interruption(tmp_path: Path, small_shards: None):
    answers = iter([False, True, True])
    with pytest.raises(Stopped):
        stored(fresh(Patches(), TintedClips(10, broken=[1, 8])), tmp_path, stop=lambda: next(answers))
    assert broken_in(tmp_path) == {"/tinted/1.mp4": "truncated"}
    later = fresh(Patches(), TintedClips(10, broken=[1, 8]))
    stored(later, tmp_path)
    assert "/tinted/1.mp4" not in later.reader.broken
    assert broken_in(tmp_path) == {"/tinted/1.mp4": "truncated", "/tinted/8.mp4": "truncated"}


def test_a_broken_first_file_does_not_make_one_shard_of_all(tmp_path: Path, small_shards: None):
    stored(fresh(Patches(), TintedClips(10, broken=[0, 1])), tmp_path)
    assert len(list(tmp_path.glob("*.arrow"))) == 4


def test_nothing_but_broken_files_is_said(tmp_path: Path):
    with pytest.raises(UserError, match=r"holds no tokens: not one clip could be read; see which files are broken"):
        tokens_of(stored(fresh(Patches(), TintedClips(3, broken=[0, 1, 2])), tmp_path))
    with pytest.raises(UserError, match="not one clip could be read"):
        in_memory(fresh(Patches(), TintedClips(3, broken=[0, 1, 2])), "reading", progress=False)


@pytest.mark.parametrize("harm", ["cut", "empty", "other", "gone"])
def test_a_damaged_file_is_named(tmp_path: Path, small_shards: None, harm: str):
    supply = fresh(Patches(), TintedClips(10))
    stored(supply, tmp_path)
    file = tmp_path / "000001.arrow"
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes({"cut": file.read_bytes()[:700], "empty": b"", "other": b"nothing of the kind" * 50}[harm])
    with pytest.raises(UserError, match=r"000001\.arrow is damaged .*remove it, and the same command makes it anew"):
        tokens_of(StoredTokens(tmp_path, supply.tasks, supply.labels, 1, 1))
    file.unlink(missing_ok=True)
    assert torch.equal(tokens_of(stored(supply, tmp_path)), tokens_of(supply))


def test_values_that_are_no_numbers_are_refused(tmp_path: Path):
    for gain, kind in ((float("inf"), "float16"), (float("nan"), "float32")):
        with pytest.raises(UserError, match="gives features that are no numbers"):
            stored(fresh(Patches(gain=gain), TintedClips(5)), tmp_path, kind=kind)
        assert not list(tmp_path.glob("*.arrow"))


def test_a_value_that_float16_cannot_hold_is_refused_and_float32_takes_it(tmp_path: Path):
    class Outlier(Patches):
        def encode(self, frames, layers):
            found = super().encode(frames, layers)
            if self.encoded > 64 + 5:
                found[0][0, 0, 0, 0, ...] = 1e9
            return found

    with pytest.raises(UserError, match="cached_as=float32"):
        stored(fresh(Outlier(), TintedClips(100)), tmp_path / "half", kind="float16")
    found = tokens_of(stored(fresh(Outlier(), TintedClips(100)), tmp_path / "full"))
    assert found.max() == 1e9


def test_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10_000_000_000}))
    said = check_room(tmp_path / "new", 2_500_000_000, 0.5, "features of x, train")
    assert said == f"features of x, train: 2.5 GB in {tmp_path / 'new'}, 25% of the 10.0 GB that are free"
    check_room(tmp_path, 5_000_000_000, 0.5, "features")
    with pytest.raises(UserError, match=r"features: 5\.0 GB in .*more than disk_share=0\.5 of it: make room, .*fresh"):
        check_room(tmp_path, 5_000_000_001, 0.5, "features")
    assert "999 bytes" in check_room(tmp_path, 999, 0.5, "features")


def test_memory_holds_what_is_encoded_without_what_is_broken():
    supply = fresh(Patches(), ManyViews(9, broken=[2, 5]), (0, 1), Views(segments=2, views=3))
    found = in_memory(supply, "reading", progress=False)
    kept = [0, 1, 3, 4, 6, 7, 8]
    assert found.samples is not None
    assert found.samples.tolist() == kept
    assert (len(found), found.views, found.groups) == (7, 3, 2)
    assert torch.equal(found.labels["tint"], supply.labels["tint"][kept])
    assert torch.equal(found.tokens, tokens_of(supply))


def test_tokens_are_those_of_all_segments_layer_by_layer():
    """By one call of the encoder for each view, segment and layer."""
    clips, views = ManyViews(3), Views(segments=2, views=2)
    supply = fresh(Patches(), clips, (0, 1), views)
    found = tokens_of(supply)
    assert found.shape == (6, 2 * 2 * 8, 16)
    for sample in range(3):
        window = torch.from_numpy(clips.windows(sample, supply.reader.spec, views, None)).permute(0, 1, 2, 5, 3, 4)  # type: ignore[attr-defined]
        for view in range(2):
            parts = [
                Patches().encode(window[view, segment][None], [layer])[0].flatten(1, 2)[0]
                for layer in (0, 1)
                for segment in (0, 1)
            ]
            torch.testing.assert_close(found[2 * sample + view], torch.cat(parts))


def test_several_encoders_read_the_same_clips_once(tmp_path: Path):
    clips, read = TintedClips(6, broken=[3]), []
    clip = clips.clip
    clips.clip = lambda index, spec: read.append(index) or clip(index, spec)  # type: ignore[method-assign]
    first = fresh(Patches(), clips, views=AUGMENTED)
    second = FreshTokens(
        Patches(12, seed=1), [0, 1], first.reader, first.tasks, first.labels, first.views, first.segments
    )
    plan = [(0, torch.arange(4)), (1, torch.tensor([5, 3, 2])), (1, torch.tensor([3]))]
    found = list(FreshTokens.side_by_side([first, second], plan))
    assert read == [0, 1, 2, 3, 5, 2]
    for supply, tokens in zip((first, second), zip(*found, strict=True), strict=True):
        for (rows, ours), (wanted, theirs) in zip(tokens, supply.batches(plan), strict=True):
            assert rows.tolist() == wanted.tolist()
            assert torch.equal(ours, theirs)
    assert [rows.tolist() for (rows, _), _ in found] == [[0, 1, 2], [5, 2], []]


def test_half_a_sample_cannot_be_read_anew():
    supply = fresh(Patches(), ManyViews(3), views=Views(views=2))
    with pytest.raises(ValueError, match="all views of each sample"):
        list(supply.batches([(0, torch.tensor([0, 1, 2]))]))
    assert torch.equal(tokens_of(supply), next(supply.batches([(0, all_rows(supply))]))[1])
