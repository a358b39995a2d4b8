"""Views that are read ahead: in order, the same however many read, and broken files are named and left alone."""

import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from media import numbered, write_picture, write_video

from nextvid.data.benchmarks.official.clips import OfficialClips
from nextvid.data.benchmarks.official.split import Listed, OfficialSplit
from nextvid.data.clip import BrokenFile, ClipSpec
from nextvid.data.view_reader import Reader, RenderedReader, ViewReader, name_of
from nextvid.data.views import ViewAugmentation, Views

SPEC = ClipSpec(frames=2, fps=5.0, size=8)


class Numbered:
    """Clips that are filled with their number; each attempt leaves a line in ``log``."""

    name = "numbered"
    tasks = {"kind": ("a",)}  # noqa: RUF012

    def __init__(self, broken: Sequence[int] = (), log: Path | None = None, slow: bool = False) -> None:
        self.broken, self.log, self.slow = set(broken), log, slow
        self.hangs: set[int] = set()
        self.dies: set[int] = set()

    def __len__(self) -> int:
        return 100

    def labels(self, index: int) -> dict[str, int]:
        return {"kind": 0}

    def path(self, index: int) -> str:
        return f"/clips/{index}.mp4"

    def clip(self, index: int, spec: ClipSpec) -> np.ndarray:
        if self.log:
            with self.log.open("a") as handle:
                handle.write(f"{index}\n")
        if index in self.hangs:
            time.sleep(60)
        if index in self.dies:
            os._exit(1)
        if self.slow:
            time.sleep(0.02 * (index % 4 == 0))
        if index in self.broken:
            raise BrokenFile(self.path(index), "truncated")
        return np.full((spec.frames, spec.size, spec.size, 3), index, np.uint8)

    def tried(self) -> list[int]:
        return [int(line) for line in self.log.read_text().split()] if self.log else []


class Wrong(Numbered):
    def clip(self, index: int, spec: ClipSpec) -> np.ndarray:
        raise ValueError("a fault of the program")


def seen(reader: Reader, batches: Sequence[tuple[int, Sequence[int]]]) -> list[list[int]]:
    """The samples of every batch, each of whose clips was found to be its own."""
    found = []
    for samples, clips in reader.read(batches):
        assert clips.shape[0] == len(samples)
        assert (clips.flatten(1) == torch.tensor(samples, dtype=torch.int64)[:, None]).all()
        found.append(samples)
    return found


@given(batches=st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 99), max_size=5)), max_size=6))
def test_every_batch_holds_the_clips_that_it_was_asked_for(batches):
    assert seen(ViewReader(Numbered(), SPEC), batches) == [samples for _, samples in batches]


def test_order_is_kept_where_workers_race(tmp_path: Path):
    batches = [(0, [8, 1, 2]), (0, [4, 5]), (0, [12]), (1, [3, 0, 7]), (1, [16, 9, 10]), (2, [])]
    clips = Numbered(slow=True, log=tmp_path / "log")
    assert seen(ViewReader(clips, SPEC, workers=2), batches) == [samples for _, samples in batches]
    assert sorted(clips.tried()) == sorted(sample for _, samples in batches for sample in samples)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_files_are_named_and_not_tried_again(tmp_path: Path, workers: int):
    clips = Numbered(broken=[3, 5], log=tmp_path / "log")
    reader = ViewReader(clips, SPEC, workers=workers)
    assert seen(reader, [(0, [1, 3, 4])]) == [[1, 4]]
    assert reader.broken == {"/clips/3.mp4": "truncated"}
    assert seen(reader, [(1, [3, 4]), (1, [5, 6]), (2, [7])]) == [[4], [6], [7]]
    assert seen(reader, [(3, [5, 3, 1])]) == [[1]]
    assert reader.broken == {"/clips/3.mp4": "truncated", "/clips/5.mp4": "truncated"}
    tried = clips.tried()
    assert (tried.count(3), tried.count(5)) == (1, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_of_broken_files_is_empty_and_the_next_one_comes(workers: int):
    reader = ViewReader(Numbered(broken=[0, 1]), SPEC, Views(segments=1), workers=workers)
    (none, empty), (some, clips) = reader.read([(0, [0, 1]), (0, [2])])
    assert (none, some) == ([], [2])
    assert empty.shape == (0, 1, 1, 2, 3, 8, 8)
    assert clips.shape == (1, 1, 1, 2, 3, 8, 8)
    assert len(reader.broken) == 2


def test_a_file_that_hangs_or_kills_its_worker_is_broken(tmp_path: Path):
    clips = Numbered(log=tmp_path / "log")
    clips.hangs, clips.dies = {2}, {5}
    reader = ViewReader(clips, SPEC, workers=2, seconds=1.0)
    assert seen(reader, [(0, [1, 2, 3]), (0, [4, 5]), (0, [7]), (1, [6])]) == [[1, 3], [4], [7], [6]]
    assert reader.broken == {"/clips/2.mp4": "timeout", "/clips/5.mp4": "unreadable"}
    before = len(clips.tried())
    assert seen(reader, [(2, [2, 5, 6])]) == [[6]]
    assert clips.tried()[before:] == [6]


@pytest.mark.parametrize(("workers", "kind"), [(0, ValueError), (2, RuntimeError)])
def test_a_fault_of_the_program_is_no_broken_file(workers: int, kind: type[Exception]):
    with pytest.raises(kind, match="a fault of the program"):
        list(ViewReader(Wrong(), SPEC, workers=workers).read([(0, [1])]))


def test_who_stops_reading_leaves_no_worker_behind():
    before = set(multiprocessing.active_children())
    reading = ViewReader(Numbered(), SPEC, workers=2).read([(0, [n]) for n in range(50)])
    next(reading)
    assert set(multiprocessing.active_children()) > before
    reading.close()  # type: ignore[attr-defined]
    assert set(multiprocessing.active_children()) <= before


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> OfficialClips:
    """Two videos, a picture and a file that is none."""
    folder = tmp_path_factory.mktemp("official")
    files = [write_video(folder / f"{n}.mp4", [numbered(k + 8 * n, 24, 40) for k in range(12)]) for n in range(2)]
    files.append(write_picture(folder / "2.png", np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)))
    (folder / "3.mp4").write_bytes(b"nothing")
    entries = [Listed(str(file), place % 2) for place, file in enumerate([*files, folder / "3.mp4"])]
    return OfficialClips(OfficialSplit("kinetics400", "train", ("a", "b"), entries, 4, 4))


AUGMENTED = Views(segments=2, augmentation=ViewAugmentation(flip=0.5, erase=0.5))


def read(clips: OfficialClips, batches: list[tuple[int, list[int]]], views: Views, **settings) -> dict:
    found = {}
    reader = ViewReader(clips, SPEC, views, **settings)
    for (epoch, _), (samples, frames) in zip(batches, reader.read(batches), strict=True):
        found |= {(epoch, sample): frames[place] for place, sample in enumerate(samples)}
    return found


@pytest.mark.parametrize("views", [Views(segments=2, views=3), AUGMENTED])
def test_what_is_read_does_not_depend_on_who_reads_it(official: OfficialClips, views: Views):
    """Nor on the batch that a sample is in, nor on its place there."""
    here = read(official, [(0, [0, 1, 2, 3]), (1, [2, 1, 0])], views)
    there = read(official, [(1, [1]), (0, [3, 2]), (0, [1, 0]), (1, [0, 2])], views, workers=2)
    assert here.keys() == there.keys() == {(epoch, sample) for epoch in (0, 1) for sample in (0, 1, 2)}
    assert all(torch.equal(here[key], there[key]) for key in here)
    assert here[0, 0].shape == (views.rows, 2, 2, 3, 8, 8)


def test_augmentation_is_a_function_of_seed_epoch_and_sample(official: OfficialClips):
    batches = [(0, [0, 1]), (1, [0, 1])]
    first, again, other = (read(official, batches, AUGMENTED, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert all(not torch.equal(first[key], other[key]) for key in first)
    assert not torch.equal(first[0, 0], first[1, 0])
    still = read(official, batches, Views(segments=2, views=3), seed=1)
    assert torch.equal(still[0, 0], still[1, 0])


def test_files_are_called_by_their_paths_and_made_up_clips_by_number(official: OfficialClips):
    class Unnamed(Numbered):
        path = None  # type: ignore[assignment]

    assert name_of(official, 3).endswith("3.mp4")
    assert name_of(Unnamed(), 3) == "numbered clip 3"


def test_rendered_clips_are_a_reader_too():
    frames = torch.randint(256, (5, 2, 3, 8, 8), dtype=torch.uint8)
    reader = RenderedReader(frames)
    (samples, clips), (none, empty) = reader.read([(7, [4, 1]), (0, [])])
    assert isinstance(reader, Reader)
    assert (samples, none) == ([4, 1], [])
    assert torch.equal(clips[:, 0, 0], frames[[4, 1]])
    assert empty.shape[0] == 0
