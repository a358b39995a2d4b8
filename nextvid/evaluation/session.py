"""One benchmark and one protocol, by which any number of encoders are read: clips, tokens, fits and test scores."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from rich.console import Console
from torch import Tensor

from nextvid.data import benchmarks
from nextvid.data.clip import ClipSpec, LabelledClips
from nextvid.data.view_reader import Reader, RenderedReader, ViewReader, name_of
from nextvid.data.views import Videos, Views, check_views
from nextvid.errors import UserError, nearest
from nextvid.evaluation.encoders import FrozenEncoder
from nextvid.evaluation.features import Features, Supply, render
from nextvid.evaluation.fitting import check_splits, fit_probes, result_of
from nextvid.evaluation.fitting import split as hold_out
from nextvid.evaluation.fresh import FreshTokens, in_memory, labels_of
from nextvid.evaluation.kept import KeptFit
from nextvid.evaluation.probe import FittedProbe, ProbeResult
from nextvid.evaluation.protocol import EvalRecipe
from nextvid.evaluation.store import StoredTokens, broken_in, check_room, room_in, write_store
from nextvid.files import read_json, replace_json
from nextvid.limits import memory_limit, memory_of_machine
from nextvid.training.device import device_of
from nextvid.training.distributed import World

MEMORY_SHARE = 0.25
"""Clips, and the tokens of an encoder, may each take so much of the free memory."""

HELD_OUT = "held out"
KINDS = "features.json"

Stop = Callable[[], bool]


@dataclass(frozen=True)
class Where:
    """A benchmark (``NAME``, or ``NAME:ROOT`` of an official one), a level of it, and a task; None: the first there is."""

    benchmark: str
    level: str | None = None
    task: str | None = None

    @property
    def name(self) -> str:
        """The benchmark without its folder."""
        return self.benchmark.partition(":")[0]

    @property
    def chosen_level(self) -> str:
        """The level, or the benchmark's first. Raises ``UserError`` for an unknown benchmark."""
        return self.level or benchmarks.levels(self.benchmark)[0]


@dataclass(frozen=True)
class Reading:
    """What a probe made of one encoder, with the tokens it read.

    ``samples`` are the test clips that could be read, by their numbers in the split, and ``places`` the same in ``test``.
    """

    encoder: FrozenEncoder
    layers: list[int]
    fitted: FittedProbe
    result: ProbeResult
    samples: Int64[Tensor, " samples"]
    places: Int64[Tensor, " samples"]
    truth: Int64[Tensor, " samples"]
    probabilities: Float[Tensor, "samples classes"]
    train: Supply
    test: Supply


@dataclass
class Session:
    """Clips of one form from both splits of a benchmark. What is kept while it works goes to ``folder``."""

    where: Where
    recipe: EvalRecipe
    spec: ClipSpec
    folder: Path
    console: Console
    world: World = World()
    stop: Stop = lambda: False
    progress: bool = True
    _readers: dict[str, Reader] = field(default_factory=dict)
    _kinds: dict[str, str] = field(default_factory=dict)
    _claimed: dict[str, int] = field(default_factory=dict)
    _kept: set[Path] = field(default_factory=set)

    @cached_property
    def clips(self) -> dict[str, LabelledClips]:
        """Both splits. Raises ``UserError`` where there is no such benchmark or level, or it is not as it should be."""
        lengths = {"train": self.recipe.train_clips, "test": self.recipe.test_clips}
        level = self.where.chosen_level
        found = {split: benchmarks.load(self.where.benchmark, level, split, lengths[split]) for split in lengths}
        check_views(found["train"], self.recipe.views_of_train())
        check_views(found["test"], self.recipe.views_of_test())
        return found

    @cached_property
    def labels(self) -> dict[str, dict[str, Int64[Tensor, " samples"]]]:
        """The class of every clip of both splits, under every task."""
        return {split: labels_of(clips) for split, clips in self.clips.items()}

    @property
    def task(self) -> str:
        """The task that is asked for. Raises ``UserError`` where the benchmark has no such task."""
        known = list(self.clips["train"].tasks)
        if self.where.task is not None and self.where.task not in known:
            raise UserError(
                f"{self.where.name} has no task '{self.where.task}'{nearest(self.where.task, known)}; it has {', '.join(known)}"
            )
        return self.where.task or known[0]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the task's classes."""
        return self.clips["train"].tasks[self.task]

    @cached_property
    def device(self) -> torch.device:
        """Where encoders and probes compute."""
        return device_of(self.recipe.device, self.world.local_rank)

    def broken(self) -> dict[str, dict[str, str]]:
        """Files of each split that no process could read, and why."""
        parts = self.world.gather({split: reader.broken for split, reader in self._readers.items()})
        found: dict[str, dict[str, str]] = {"train": {}, "test": {}}
        for split, files in (item for part in parts for item in part.items()):
            found[_split_of(split)] |= files
        return found

    def check(self) -> None:
        """Raise ``UserError`` where no probe can be trained, before anything is read."""
        check_splits(self._without_tokens("train"), self._without_tokens("test"), self.task)
        hold_out(self.labels["train"][self.task], self.recipe)

    def _without_tokens(self, name: str) -> Features:
        clips = self.clips[name]
        return Features(torch.empty(len(clips), 0, 1), self.labels[name], dict(clips.tasks))

    def read(self, encoders: Sequence[FrozenEncoder], then: Callable[[Reading], None]) -> None:
        """Train and test the probe of each encoder, and give each result to ``then``; its tokens are gone afterwards.

        Fresh clips are read once for all encoders. Raises ``UserError``, and ``Stopped`` where a signal came: all is kept.
        """
        fresh = [encoder for encoder in encoders if self.kind_of_features(encoder) == "fresh"]
        if self.world.first and self._kinds:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_json(self.folder / KINDS, {**read_json(self.folder / KINDS), **self._kinds})
        self._check_room([encoder for encoder in encoders if self.kind_of_features(encoder) == "cached"])
        if fresh:
            trains: list[Supply] = [self.fresh(encoder, "train") for encoder in fresh]
            for encoder, train, fitted in zip(fresh, trains, self._fit(fresh, trains), strict=True):
                then(self._test(encoder, train, self.fresh(encoder, "test"), fitted))
        for encoder in encoders:
            if encoder not in fresh:
                then(self._read_one(encoder))

    def _read_one(self, encoder: FrozenEncoder) -> Reading:
        train = self.supply(encoder, "train")
        (fitted,) = self._fit([encoder], [train])
        return self._test(encoder, train, self.supply(encoder, "test"), fitted)

    def _check_room(self, encoders: Sequence[FrozenEncoder]) -> None:
        """Say how much the features of ``encoders`` take on disk. Raises ``UserError`` where it is too much."""
        if encoders:
            wanted = sum(self._bytes(encoder, split) for encoder in encoders for split in self.clips)
            names = ", ".join(encoder.name for encoder in encoders)
            with self.world.together():
                said = check_room(self._features, wanted, self.recipe.disk_share, f"features of {names}")
            self.say(said)

    @property
    def _features(self) -> Path:
        return self.folder / "features"

    def _fit(self, encoders: Sequence[FrozenEncoder], trains: Sequence[Supply]) -> list[FittedProbe]:
        """Held-out clips are read as test clips are, without augmentation, from one view."""
        file = self.folder / f"fit-{self._fingerprint('fit', *encoders)}.safetensors"
        self._kept.add(file)
        plain = [self.fresh(encoder, HELD_OUT) for encoder in encoders] if self.recipe.augmentation else None
        return fit_probes(
            trains,
            self.task,
            self.recipe,
            held=plain,
            progress=self.progress,
            device=self.device,
            world=self.world,
            keeper=KeptFit(file, self.world),
            stop=self.stop,
        )

    def _test(self, encoder: FrozenEncoder, train: Supply, test: Supply, fitted: FittedProbe) -> Reading:
        title = f"testing {self.task}"
        places, probabilities = fitted.probabilities(test, title, progress=self.progress, world=self.world)
        truth = test.labels[self.task][places]
        result = result_of(fitted, train, truth, self.task, probabilities)
        layers, samples = self.layers(encoder), numbers_of(test, places)
        return Reading(encoder, layers, fitted, result, samples, places, truth, probabilities, train, test)

    def layers(self, encoder: FrozenEncoder) -> list[int]:
        """The layers that are read; a baseline has but one."""
        return [0] if encoder.kind == "baseline" and encoder.layers == 1 else self.recipe.layers_of(encoder)

    def views(self, split: str) -> Views:
        """What a video of a split gives; of ``HELD_OUT``, which is train without augmentation, one view."""
        if split == HELD_OUT:
            return Views(self.recipe.segments, 1, self.recipe.crop_share)
        return self.recipe.views_of_train() if split == "train" else self.recipe.views_of_test()

    def reader(self, split: str) -> Reader:
        """Who reads the clips of a split: those that are made up and fit are made once, and stay in memory."""
        if split not in self._readers:
            clips, views, recipe = self.clips[_split_of(split)], self.views(split), self.recipe
            size = len(clips) * self.spec.frames * 3 * self.spec.size**2
            made_up = not isinstance(clips, Videos)
            keep = made_up and views.augmentation is None and self.world.ranks == 1
            if keep and size <= MEMORY_SHARE * free_memory():
                self._readers[split] = RenderedReader(render(clips, self.spec, progress=self.progress).frames)
            else:
                workers = recipe.workers_for(made_up)
                self._readers[split] = ViewReader(clips, self.spec, views, workers, recipe.timeout, recipe.seed)
        return self._readers[split]

    def fresh(self, encoder: FrozenEncoder, split: str) -> FreshTokens:
        """An encoder's tokens of a split, encoded whenever they are asked for."""
        views, name = self.views(split), _split_of(split)
        return FreshTokens(
            encoder.to(self.device).eval(),
            self.layers(encoder),
            self.reader(split),
            dict(self.clips[name].tasks),
            self.labels[name],
            views.rows,
            views.segments,
            self.recipe.encode_batch,
            self.device,
            self.recipe.precision,
        )

    def supply(self, encoder: FrozenEncoder, split: str) -> Supply:
        """An encoder's tokens of a split, in memory or on disk, as :meth:`kind_of_features` has it."""
        fresh = self.fresh(encoder, split)
        title = f"encoding {split} ({encoder.name})"
        if self.kind_of_features(encoder) == "memory":
            return in_memory(fresh, title, self.progress)
        recipe = self.recipe
        copies = recipe.copies if split == "train" else 1
        folder = self._features / self._fingerprint(split, encoder)
        self._kept.add(folder)
        store = write_store(
            fresh, folder, title, copies, recipe.cached_as, world=self.world, progress=self.progress, stop=self.stop
        )
        fresh.reader.broken.update(broken_in(folder))
        return store

    def kind_of_features(self, encoder: FrozenEncoder) -> str:
        """``memory``, ``cached`` or ``fresh``: as the recipe says, or as there is room; the same for all processes.

        What was chosen is kept in the folder, so that the same command goes on with the same.
        """
        if self.recipe.features != "auto":
            return self.recipe.features
        key = self._fingerprint("kind", encoder)
        if key not in self._kinds:
            told = read_json(self.folder / KINDS) if self.world.first else {}
            self._kinds[key] = self.world.gather(told.get(key) or self._choose(encoder))[0]
        if self._kinds[key] == "cached":
            self._claimed[key] = sum(self._bytes(encoder, split) for split in self.clips)
        return self._kinds[key]

    def _choose(self, encoder: FrozenEncoder) -> str:
        size = sum(4 * self._values(encoder, split) for split in self.clips)
        alone = self.world.ranks == 1 and self.recipe.copies == 1 and self.recipe.augmentation is None
        if alone and size <= MEMORY_SHARE * free_memory():
            return "memory"
        wanted = sum(self._bytes(encoder, split) for split in self.clips) + sum(self._claimed.values())
        return "cached" if wanted <= self.recipe.disk_share * room_in(self._features) else "fresh"

    def _bytes(self, encoder: FrozenEncoder, split: str) -> int:
        """What an encoder's features of a split take on disk."""
        copies = self.recipe.copies if split == "train" else 1
        return self._values(encoder, split) * copies * (2 if self.recipe.cached_as == "float16" else 4)

    def _values(self, encoder: FrozenEncoder, split: str) -> int:
        """Numbers in an encoder's features of a split, of one copy."""
        return len(self.clips[split]) * self.views(split).rows * self.tokens_a_row(encoder) * encoder.width

    def tokens_a_row(self, encoder: FrozenEncoder) -> int:
        """Tokens of a view, of all segments and layers, as a clip of nothing shows."""
        frames = torch.zeros(1, self.spec.frames, 3, self.spec.size, self.spec.size, dtype=torch.uint8)
        with torch.inference_mode():
            found = encoder.to(self.device).eval().encode(frames.to(self.device), self.layers(encoder))
        return self.recipe.segments * sum(layer.shape[1] * layer.shape[2] for layer in found)

    def clear(self) -> None:
        """All is measured: remove what the fits were kept in, and stored features unless the recipe would keep them."""
        for path in self._kept if self.world.first else ():
            if path.is_dir() and not self.recipe.keep_features:
                shutil.rmtree(path, ignore_errors=True)
            elif path.is_file():
                path.unlink()
        if self.world.first:
            (self.folder / KINDS).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self._features.rmdir()
        self._readers = {}
        self.world.gather(None)

    def say(self, sentence: str) -> None:
        """Print a line, once for all processes."""
        if self.world.first:
            self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def _fingerprint(self, what: str, *encoders: FrozenEncoder) -> str:
        """Tells what is kept from whatever other encoders, clips or settings would give."""
        kept = {
            "what": what,
            "benchmark": self.where.benchmark,
            "level": self.where.chosen_level,
            "encoders": [[encoder.digest, *self.layers(encoder)] for encoder in encoders],
            "spec": [self.spec.frames, self.spec.fps, self.spec.size],
            "clips": self._digest("test" if what == "test" else "train"),
            **(self.recipe.model_dump(mode="json", exclude=_OF_THE_FIT) if what != "fit" else {}),
            **({"recipe": self.recipe.model_dump(mode="json"), "task": self.task} if what == "fit" else {}),
        }
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]

    def _digest(self, split: str) -> str:
        """Tells the clips and labels of a split from any others."""
        clips, labels = self.clips[split], sorted(self.labels[split].items())
        names = "".join(name_of(clips, index) for index in range(len(clips)))
        content = b"".join(name.encode() + column.numpy().tobytes() for name, column in labels)
        return hashlib.sha256(content + names.encode()).hexdigest()


def _split_of(name: str) -> str:
    return "train" if name == HELD_OUT else name


_OF_THE_FIT = set(EvalRecipe.model_fields) - {
    "segments",
    "views",
    "crop_share",
    "augmentation",
    "copies",
    "cached_as",
    "precision",
    "seed",
}
"""Settings that stored features do not depend on."""


def numbers_of(supply: Supply, places: Int64[Tensor, " samples"]) -> Int64[Tensor, " samples"]:
    """The numbers in the split of the samples at ``places`` of a supply, which may lack those that could not be read."""
    return supply.samples[places] if isinstance(supply, Features) and supply.samples is not None else places


def free_memory() -> int:
    """Bytes that this process may still take."""
    _, available = memory_of_machine()
    return min(available, memory_limit() or available)


def summary(reading: Reading) -> dict[str, Any]:
    """A reading's accuracies, as the figures that a machine reads."""
    scores = reading.result.scores
    return {
        "top1": scores.top1,
        "ci95": list(scores.ci95),
        "top5": scores.top5,
        "top5_ci95": list(scores.top5_ci95) if scores.top5_ci95 else None,
        "mean_class": scores.mean_class,
        "mean_class_ci95": list(scores.mean_class_ci95),
    }


def kind_of(supply: Supply) -> str:
    """Where a supply's tokens come from, in a word."""
    return "memory" if isinstance(supply, Features) else "cached" if isinstance(supply, StoredTokens) else "fresh"
