"""Anyone's encoder, from a function of theirs."""

import importlib
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nextvid.data.clip import ClipSpec
from nextvid.errors import UserError, nearest
from nextvid.evaluation.encoders.digest import digest_of_module
from nextvid.evaluation.encoders.frozen import Frames, FrozenEncoder, Tokens
from nextvid.evaluation.encoders.preprocessing import described, resized
from nextvid.files import checksum
from nextvid.targets.space import digest_of

HERE = Path(__file__).parents[2]
PROBE_FRAMES = 8
CONTRACT = (
    "the function takes no argument and returns what is called with uint8 frames (B, F, 3, size, size), has an attribute "
    "size (pixels a side), and returns tokens (B, T, N, D), (B, L, D) or (B, D)"
)


class FunctionEncoder(FrozenEncoder):
    """What ``module:function`` returns. The module is found as ``python -m`` would, from the current folder too.

    The function takes no argument. What it returns, an ``nn.Module`` or any other object,

    - is called with uint8 frames ``(B, F, 3, size, size)`` and prepares their pixels itself;
    - returns tokens ``(B, T, N, D)``, ``(B, L, D)``, or one vector a clip ``(B, D)``, in floats that are finite;
    - must have ``size``: pixels a side of the square that it is given (clips of another size are resized to it);
    - may have ``clip``: the clips that it was trained on, ``(frames, fps, size)``. An encoder that takes one number of frames
      only must say so here;
    - may have ``layers``: how many there are to read. It is then called with a list of layers as well, and returns a list;
    - may have ``preprocessing``: what it does to the bytes, a dictionary for the record;
    - may have ``digest``: a string that tells its weights from others, where it is no ``nn.Module``.

    ``digest`` is of the function's source file, of the parameters and buffers of an ``nn.Module``, and of what the object says.
    The width is that of the tokens of a blank clip.
    """

    kind = "function"

    def __init__(self, where: str) -> None:
        """Raises ``UserError`` where there is no such function, or what it returns does not keep to the above."""
        super().__init__()
        self.name = where
        function = _find(where)
        with _blaming(f"{where} could not be called without arguments"):
            self.made = function()
        if not callable(self.made):
            raise UserError(f"{where} returns {type(self.made).__name__}, which cannot be called: {CONTRACT}")
        if isinstance(self.made, nn.Module):
            self.made.eval().requires_grad_(False)
        self.size = self._count("size", f"; {CONTRACT}")
        self.several = hasattr(self.made, "layers")
        self.layers = self._count("layers") if self.several else 1
        self.clip = self._clip()
        self._said = self._preprocessing()
        self.tried = self.clip.frames if self.clip else PROBE_FRAMES
        self.width = self._try(self.tried)
        self.digest = digest_of(
            _source_of(function),
            digest_of_module(self.made) if isinstance(self.made, nn.Module) else "",
            str(getattr(self.made, "digest", "")),
            json.dumps([self.size, self.layers, self._said]),
        )

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What the object says of it, and that it is given squares of ``size`` pixels."""
        return {
            "size": self.size,
            "resize": described("bilinear"),
            "frames": "as given",
            "pixels": self._said or "its own",
        }

    def check(self, spec: ClipSpec) -> None:
        """Raise ``UserError`` where the object cannot encode a blank clip of this many frames."""
        if spec.frames != self.tried:
            self._try(spec.frames)

    def encode(self, frames: Frames, layers: Sequence[int]) -> list[Tokens]:
        """Tokens ``(B, T, N, D)`` after each of ``layers``: ``(B, L, D)`` has T = 1, ``(B, D)`` N = 1 as well.

        Raises ``UserError`` where the object fails, or returns anything else.
        """
        self.check_layers(layers)
        given = resized(frames, self.size).to(torch.uint8)
        with torch.no_grad(), _blaming(f"{self.name} could not encode frames {tuple(given.shape)}"):
            found = self.made(given, list(layers)) if self.several else [self.made(given)] * len(layers)
        if not isinstance(found, list | tuple) or len(found) != len(layers):
            raise UserError(
                f"{self.name} says that it has layers, and returns {_what(found)} for a list of {len(layers)}: return a list of "
                "tokens, one for each layer that is asked for"
            )
        return [self._tokens(each, len(frames)).to(frames.device) for each in found]

    def _tokens(self, found: Any, batch: int) -> Tensor:
        if not isinstance(found, Tensor) or not found.is_floating_point():
            raise UserError(f"{self.name} returns {_what(found)}, and not tokens as a tensor of floats: {CONTRACT}")
        if found.ndim not in (2, 3, 4) or len(found) != batch or not found.numel():
            raise UserError(f"{self.name} returns {_what(found)} for a batch of {batch} clips: {CONTRACT}")
        width = getattr(self, "width", found.shape[-1])
        if found.shape[-1] != width:
            raise UserError(
                f"{self.name} returns tokens of {found.shape[-1]} channels, and returned {width}: keep to one width"
            )
        if not found.isfinite().all():
            raise UserError(f"{self.name} returns tokens that are not finite (NaN or infinite): mend the encoder")
        return found.float().reshape(batch, *[1] * (4 - found.ndim), *found.shape[1:])

    def _try(self, frames: int) -> int:
        """The width of the tokens of a blank clip."""
        try:
            tensors = [*self.made.parameters(), *self.made.buffers()] if isinstance(self.made, nn.Module) else []
            blank = torch.zeros(1, frames, 3, self.size, self.size, dtype=torch.uint8)
            blank = blank.to(tensors[0].device) if tensors else blank
            return self.encode(blank, list(range(self.layers)))[-1].shape[-1]
        except UserError as error:
            raise UserError(
                f"{error}. It was tried with a blank clip of {frames} frames; an encoder that takes one number of frames only "
                "says so by its attribute clip = (frames, fps, size)"
            ) from error

    def _count(self, key: str, further: str = "") -> int:
        found = getattr(self.made, key, None)
        if isinstance(found, bool) or not isinstance(found, int) or found < 1:
            missing = "has no attribute" if found is None else f"has {found!r} as"
            raise UserError(f"what {self.name} returns {missing} {key}: give it a whole number above 0{further}")
        return found

    def _clip(self) -> ClipSpec | None:
        found = getattr(self.made, "clip", None)
        if found is None or isinstance(found, ClipSpec):
            return found
        try:
            frames, fps, size = (
                (found[key] for key in ("frames", "fps", "size")) if isinstance(found, Mapping) else found
            )
            return ClipSpec(int(frames), float(fps), int(size))
        except (TypeError, ValueError, KeyError) as error:
            raise UserError(f"what {self.name} returns has {found!r} as clip: give (frames, fps, size)") from error

    def _preprocessing(self) -> dict[str, Any]:
        found = getattr(self.made, "preprocessing", {})
        try:
            if isinstance(found, dict):
                return json.loads(json.dumps(found))
        except (TypeError, ValueError):
            pass
        raise UserError(
            f"what {self.name} returns has {found!r} as preprocessing: give a dictionary of numbers, words and lists"
        ) from None


def _find(where: str) -> Callable[[], Any]:
    module_name, _, name = where.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        with _blaming(f"the module {module_name} of {where} cannot be imported"):
            module = importlib.import_module(module_name)
    except UserError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and f"{module_name}.".startswith(f"{cause.name}."):
            raise UserError(
                f"there is no module {module_name}, which {where} names: modules are looked for in the current folder ({here}) "
                "and among what is installed"
            ) from error
        raise
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise UserError(
                f"{module_name} has no {name}{nearest(part, dir(found))}: name a function in {module.__file__}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{where} is {type(found).__name__}, and no function: {CONTRACT}")
    return found


def _source_of(function: Callable[[], Any]) -> str:
    """The checksum of the file that the function is written in, where there is one."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        return ""
    return checksum(Path(file)) if file and Path(file).is_file() else ""


def _what(found: Any) -> str:
    return f"{found.dtype} of {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__


@contextmanager
def _blaming(what: str) -> Iterator[None]:
    """What goes wrong in the user's code is the user's mistake: say what it was, and in which line."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{what}: {type(error).__name__}: {error}{_line_of(error)}; mend it") from error


def _line_of(error: Exception) -> str:
    """The last line of the user's own that led to ``error``, where one did."""
    others = (os.path.dirname(os.__file__), "site-packages", "<frozen", str(HERE))
    theirs = [
        step for step in traceback.extract_tb(error.__traceback__) if not any(part in step.filename for part in others)
    ]
    return f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
