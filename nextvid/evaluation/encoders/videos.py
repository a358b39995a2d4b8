"""Video models of transformers: their tokens, laid out in time and place."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nextvid.data.clip import ClipSpec
from nextvid.errors import UserError
from nextvid.evaluation.encoders.counts import frames_said, frames_taken
from nextvid.evaluation.encoders.frozen import Frames, FrozenEncoder, Tokens
from nextvid.evaluation.encoders.preprocessing import Preprocessing
from nextvid.evaluation.encoders.untrained import as_baseline, first_weights
from nextvid.files import checksum
from nextvid.targets.space import digest_of, freeze
from nextvid.targets.vision import UNREAD, complete_model, in_sentences, outline_of, safetensors_in

State = Float[Tensor, "rows tokens width"]


@dataclass(frozen=True)
class Architecture:
    """How one kind of video model is called, and how its tokens lie.

    ``side``: the key of its configuration with the pixels a side, which all of them are tied to by their positions.
    ``fixed_frames``: it takes ``num_frames`` frames and no other number. ``class_token``: one stands before the patches.
    ``places_first``: the tokens go through the frames of one place before they come to the next place.
    """

    side: str
    fixed_frames: bool
    tubelet: Callable[[Any], int]
    argument: str = "pixel_values"
    class_token: bool = False
    places_first: bool = False
    further: tuple[tuple[str, Any], ...] = ()


ARCHITECTURES = {
    "videomae": Architecture("image_size", True, lambda config: config.tubelet_size),
    "vjepa2": Architecture(
        "crop_size",
        False,
        lambda config: config.tubelet_size,
        argument="pixel_values_videos",
        further=(("skip_predictor", True),),
    ),
    "vivit": Architecture("image_size", True, lambda config: config.tubelet_size[0], class_token=True),
    "timesformer": Architecture("image_size", True, lambda config: 1, class_token=True, places_first=True),
}
"""Other sizes are not to be had. VideoMAE refuses them; ViViT's way to interpolate its positions is that of pictures;
TimeSformer's attention counts on ``num_frames`` and ``image_size``; V-JEPA 2 numbers the rows of its RoPE by ``crop_size``
whatever comes, and would give wrong positions in silence."""


class VideoEncoder(FrozenEncoder):
    """A video model with its own pixels. Clips of another size are resized to the one that its positions are made for.

    Layer *i* is what comes out of block *i*; the last layer is the model's own output: after its last normalisation, which
    VideoMAE's fine-tuned models (``use_mean_pooling``) do not have. ``frames``: how many it takes, where that is fixed.
    """

    kind = "transformers"
    clip = None

    def __init__(self, folder: Path, architecture: Architecture, preprocessing: Preprocessing) -> None:
        """Raises ``UserError`` where the model in ``folder`` cannot be read, or its weights are incomplete or a pickle."""
        super().__init__()
        weights = safetensors_in(folder)
        with in_sentences(folder):
            model = complete_model(outline_of(folder), folder, (*UNREAD, "predictor."))
            config: Any = model.config
            self.size = _side(getattr(config, architecture.side), folder)
            self.frames: int | None = config.num_frames if architecture.fixed_frames else None
            self.tubelet = architecture.tubelet(config)
            self.width, self.layers = config.hidden_size, config.num_hidden_layers
        if hasattr(model, "predictor"):
            del model.predictor
        self.network = freeze(model)
        self.architecture, self.pixels = architecture, preprocessing
        self.name = folder.absolute().name
        self.given: int | None = None
        self.digest = digest_of(
            *map(checksum, [folder / "config.json", *weights]), json.dumps(preprocessing.record(self.size))
        )

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Size, scale, mean and deviation as the model's processor says, and what becomes of a clip's frames.

        The latter for the clips that :meth:`check` was last asked about.
        """
        return {**self.pixels.record(self.size), "frames": self._frames_said()}

    def _frames_said(self) -> str:
        wanted = self.frames or (self.tubelet if self.given == 1 else self.given)
        if wanted is None:
            return "as given"
        return frames_said(self.given, wanted) if self.given else f"{wanted}, evenly spaced or held"

    def check(self, spec: ClipSpec) -> None:
        """Raise ``UserError`` where clips of this many frames cannot be encoded; any size can."""
        self._taken(spec.frames)
        self.given = spec.frames

    def _taken(self, given: int) -> list[int]:
        """Which of ``given`` frames the model is given: a fixed number, or all of them; a still is held for a tubelet."""
        if self.frames is None and given > 1 and given % self.tubelet:
            raise UserError(
                f"{self.name} takes {self.tubelet} frames at a time, and clips have {given}: give a multiple of {self.tubelet}"
            )
        return frames_taken(given, self.frames or max(given, self.tubelet), self.name)

    def encode(self, frames: Frames, layers: Sequence[int]) -> list[Tokens]:
        """Tokens ``(B, frames / tubelet, N, D)`` after each of ``layers``, without class tokens.

        Raises ``UserError`` for an unknown layer, and for a number of frames that cannot be encoded.
        """
        self.check_layers(layers)
        pixels = self.pixels(frames[:, self._taken(frames.shape[1])], self.size)
        inner = any(layer != self.layers - 1 for layer in layers)
        given = {self.architecture.argument: pixels, **dict(self.architecture.further)}
        with torch.no_grad():
            found: Any = self.network(**given, output_hidden_states=inner, return_dict=True)
        last = self.layers - 1
        states = [found.last_hidden_state if layer == last else found.hidden_states[layer + 1] for layer in layers]
        return [self._laid_out(state, len(frames), pixels.shape[1]) for state in states]

    def untrained(self) -> "VideoEncoder":
        """See :class:`nextvid.evaluation.encoders.FrozenEncoder`: as transformers draws a model's weights."""
        made = as_baseline(self)
        with first_weights():
            network: Any = type(self.network)(self.network.config)
        if hasattr(network, "predictor"):
            del network.predictor
        made.network = freeze(network.eval())
        return made

    def _laid_out(self, state: State, batch: int, frames: int) -> Tokens:
        """By frame and place. Rows of ``state`` are clips, or frames (a TimeSformer that knows of space only)."""
        patches = state[:, 1:] if self.architecture.class_token else state
        times = frames // self.tubelet
        if len(patches) != batch:
            return patches.unflatten(0, (batch, times))
        if self.architecture.places_first:
            return patches.unflatten(1, (-1, times)).transpose(1, 2)
        return patches.unflatten(1, (times, -1))


def _side(size: Any, folder: Path) -> int:
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1:
        raise UserError(
            f"{folder} holds a model of pictures of {size} pixels, which are not square: it cannot be read here"
        )
    return int(sides.pop())
