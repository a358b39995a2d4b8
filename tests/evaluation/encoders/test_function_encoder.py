"""Anyone's function as an encoder: what keeps to the contract is read, what does not is told where it does not."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from nextvid.data.clip import ClipSpec
from nextvid.errors import UserError
from nextvid.evaluation.encoders import FunctionEncoder, open_encoder

NETWORK = """
    import torch
    from torch import nn

    class Network(nn.Module):
        size = 8
        clip = (4, 8.0, 8)
        layers = 2
        preprocessing = {"mean": 0.5, "words": ["as", "it", "likes"]}

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed = nn.Linear(3 * 16, 6)
            self.drop = nn.Dropout(0.5)

        def forward(self, frames, layers):
            assert frames.dtype == torch.uint8
            patches = frames.float().unfold(3, 4, 4).unfold(4, 4, 4).permute(0, 1, 3, 4, 2, 5, 6).flatten(4).flatten(2, 3)
            tokens = self.drop(self.embed(patches / 255))
            return [tokens * (layer + 1) for layer in layers]

    class house:
        open = Network
"""

Write = Callable[[str], str]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Write]:
    """Writes a module into the current folder, and forgets it afterwards; gives its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    name = "their_encoder"

    def write(text: str) -> str:
        (tmp_path / f"{name}.py").write_text(dedent(text))
        sys.modules.pop(name, None)
        return name

    yield write
    sys.modules.pop(name, None)


def clip(frames: int = 4, size: int = 8, batch: int = 2) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(256, (batch, frames, 3, size, size), dtype=torch.uint8, generator=draw)


def returning(expression: str, says: str = "size = 8") -> str:
    """A module whose ``make`` returns an object that gives ``expression`` of its ``frames``."""
    return f"import torch\nclass Made:\n    {says}\n    def __call__(self, frames):\n        return {expression}\nmake = Made\n"


def test_a_network_is_read_layer_by_layer(written: Write) -> None:
    encoder = open_encoder(f"{written(NETWORK)}:house.open")
    assert isinstance(encoder, FunctionEncoder)
    assert (encoder.kind, encoder.name) == ("function", "their_encoder:house.open")
    assert (encoder.width, encoder.layers, encoder.size, encoder.clip) == (6, 2, 8, ClipSpec(4, 8.0, 8))
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    second, first = encoder.encode(clip(), [1, 0])
    assert second.shape == (2, 4, 4, 6)
    assert torch.equal(second, 2 * first)
    torch.testing.assert_close(first, encoder.made(clip(), [0])[0])
    assert torch.equal(encoder(clip()), second)
    record = encoder.preprocessing
    assert json.loads(json.dumps(record)) == record
    assert record["pixels"] == {"mean": 0.5, "words": ["as", "it", "likes"]}
    with pytest.raises(UserError, match="has layers 0 to 1, and no layer 2: mend layers"):
        encoder(clip(), [2])


def test_a_network_moves_between_devices_with_its_encoder(written: Write) -> None:
    encoder = open_encoder(f"{written(NETWORK)}:Network").to(torch.float64)
    assert encoder.made.embed.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("expression", "shape"),
    [
        ("torch.ones(len(frames), 3, 5, 7)", (2, 3, 5, 7)),
        ("torch.ones(len(frames), 5, 7)", (2, 1, 5, 7)),
        ("torch.ones(len(frames), 7).half()", (2, 1, 1, 7)),
        ("frames.float().mean((3, 4))", (2, 1, 4, 3)),
    ],
)
def test_tokens_of_any_number_of_axes(written: Write, expression: str, shape: tuple[int, ...]) -> None:
    encoder = open_encoder(f"{written(returning(expression))}:make")
    found = encoder(clip())
    assert (found.shape, found.dtype) == (shape, torch.float32)
    assert (encoder.layers, encoder.width, encoder.clip) == (1, shape[-1], None)
    assert encoder.preprocessing["pixels"] == "its own"


def test_frames_of_another_size_are_resized_to_its_own(written: Write) -> None:
    encoder = open_encoder(f"{written(returning('frames.float().flatten(3)[:, :, 0]'))}:make")
    assert encoder.width == 64
    flat = torch.full((1, 2, 3, 20, 20), 77, dtype=torch.uint8)
    assert torch.equal(encoder(flat), torch.full((1, 1, 2, 64), 77.0))


def test_the_digest_is_of_source_and_weights(written: Write) -> None:
    first = open_encoder(f"{written(NETWORK)}:Network").digest
    assert open_encoder(f"{written(NETWORK)}:Network").digest == first
    assert open_encoder(f"{written(NETWORK + '    # other')}:Network").digest != first
    body = "import nets\ndef make():\n    return nets.Network()\n"
    Path("nets.py").write_text(dedent(NETWORK))
    by_weights = open_encoder(f"{written(body)}:make").digest
    sys.modules.pop("nets")
    Path("nets.py").write_text(dedent(NETWORK).replace("manual_seed(0)", "manual_seed(1)"))
    assert open_encoder(f"{written(body)}:make").digest != by_weights
    sys.modules.pop("nets")


def test_the_object_may_say_which_weights_it_has(written: Write) -> None:
    says = "size = 8; digest = open('weights').read()"
    digests = []
    for weights in "aab":
        Path("weights").write_text(weights)
        digests.append(open_encoder(f"{written(returning('torch.ones(len(frames), 4)', says))}:make").digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_clip_of_a_length_that_it_cannot_encode(written: Write) -> None:
    module = written(
        returning("frames.float().reshape(-1, 4, 3 * 64)", "size = 8; clip = {'frames': 4, 'fps': 8, 'size': 8}")
    )
    encoder = open_encoder(f"{module}:make")
    assert encoder.clip == ClipSpec(4, 8.0, 8)
    encoder.check(ClipSpec(4, 2.0, 16))
    with pytest.raises(
        UserError, match="tried with a blank clip of 6 frames; an encoder that takes one number of frames"
    ):
        encoder.check(ClipSpec(6, 2.0, 16))


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("'tokens'", "returns str, and not tokens as a tensor of floats"),
        ("frames", r"returns torch.uint8 of \(1, 8, 3, 8, 8\), and not tokens as a tensor of floats"),
        (
            "frames.float()",
            r"returns torch.float32 of \(1, 8, 3, 8, 8\) for a batch of 1 clips: the function takes no argument",
        ),
        ("torch.ones(9, 4)", r"returns torch.float32 of \(9, 4\) for a batch of 1 clips"),
        ("torch.ones(1, 0, 4)", r"returns torch.float32 of \(1, 0, 4\) for a batch of 1 clips"),
        ("torch.full((len(frames), 4), float('nan'))", "returns tokens that are not finite"),
        ("frames @ 3", r"could not encode frames \(1, 8, 3, 8, 8\): TypeError: .*their_encoder.py, line 5\); mend it"),
    ],
)
def test_tokens_that_are_none(written: Write, expression: str, sentence: str) -> None:
    with pytest.raises(UserError, match=rf"their_encoder:make {sentence}"):
        open_encoder(f"{written(returning(expression))}:make")


def test_tokens_that_turn_bad_later(written: Write) -> None:
    encoder = open_encoder(f"{written(returning('torch.ones(len(frames), 4 + int(frames.max() > 0))'))}:make")
    with pytest.raises(UserError, match="returns tokens of 5 channels, and returned 4: keep to one width"):
        encoder(clip())


@pytest.mark.parametrize(
    ("says", "sentence"),
    [
        ("pass", "has no attribute size: give it a whole number above 0; the function takes no argument and returns"),
        ("size = '8'", "has '8' as size: give it a whole number above 0"),
        ("size = 8; layers = 0", "has 0 as layers: give it a whole number above 0"),
        ("size = 8; clip = 16", r"has 16 as clip: give \(frames, fps, size\)"),
        ("size = 8; preprocessing = 'ImageNet'", "has 'ImageNet' as preprocessing: give a dictionary"),
        ("size = 8; preprocessing = {'mean': torch.ones(3)}", "as preprocessing: give a dictionary"),
    ],
)
def test_what_an_object_must_say_of_itself(written: Write, says: str, sentence: str) -> None:
    with pytest.raises(UserError, match=rf"what their_encoder:make returns .*{sentence}"):
        open_encoder(f"{written(returning('torch.ones(len(frames), 4)', says))}:make")


def test_layers_are_returned_as_a_list(written: Write) -> None:
    text = returning("torch.ones(3, 4)", "size = 8; layers = 3").replace("self, frames", "self, frames, layers")
    with pytest.raises(
        UserError, match=r"says that it has layers, and returns torch.float32 of \(3, 4\) for a list of 3"
    ):
        open_encoder(f"{written(text)}:make")


@pytest.mark.parametrize(
    ("text", "where", "sentence"),
    [
        (
            "",
            "no_such_module:make",
            "there is no module no_such_module, which no_such_module:make names: modules are looked",
        ),
        ("", "their_encoder.sub:make", "there is no module their_encoder.sub"),
        (
            "import no_such_part",
            "their_encoder:make",
            r"cannot be imported: ModuleNotFoundError: .*no_such_part.*line 1\)",
        ),
        (
            "def make(:",
            "their_encoder:make",
            "the module their_encoder of their_encoder:make cannot be imported: SyntaxError",
        ),
        (
            "def makes(): pass",
            "their_encoder:make",
            r"their_encoder has no make \(did you mean 'makes'\?\): name a function in",
        ),
        (
            "make = 3",
            "their_encoder:make",
            "their_encoder:make is int, and no function: the function takes no argument",
        ),
        (
            "def make(size): pass",
            "their_encoder:make",
            "could not be called without arguments: TypeError: .*'size'; mend it",
        ),
        (
            "def make():\n    1 / 0",
            "their_encoder:make",
            r"ZeroDivisionError: division by zero \(.*their_encoder.py, line 2\)",
        ),
        (
            "def make(): pass",
            "their_encoder:make",
            "returns NoneType, which cannot be called: the function takes no argument",
        ),
    ],
)
def test_functions_that_are_none(written: Write, text: str, where: str, sentence: str) -> None:
    written(text)
    with pytest.raises(UserError, match=sentence):
        open_encoder(where)


def test_a_choice_of_weights_is_for_our_own_files(written: Write) -> None:
    with pytest.raises(UserError, match="has one set of weights, and no 'online' beside it"):
        open_encoder(f"{written(NETWORK)}:Network", "online")
