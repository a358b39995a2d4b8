"""The table of sizes has the parameters that METHOD names."""

import pytest
import torch
from torch import nn

from nextvid.models.decoder import Decoder, DecoderConfig
from nextvid.models.encoder import Encoder
from nextvid.models.predictor import Predictor, PredictorConfig
from nextvid.models.sizes import ENCODERS


def millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize(("size", "parameters"), [("vit_l", 303.9), ("vit_h", 631.6), ("vit_g", 1012.2)])
def test_encoders(size: str, parameters: float) -> None:
    with torch.device("meta"):
        encoder = Encoder(ENCODERS[size])
    assert millions(encoder) == pytest.approx(parameters, abs=0.05)


def test_predictor() -> None:
    with torch.device("meta"):
        predictor = Predictor(PredictorConfig(), context_width=1024)
    assert millions(predictor) == pytest.approx(22.08, abs=0.005)


def test_decoder() -> None:
    with torch.device("meta"):
        decoder = Decoder(DecoderConfig(), channels=64, condition_width=1024)
    assert millions(decoder) == pytest.approx(32.9, abs=0.05)


def test_every_size_has_even_heads_and_grows() -> None:
    assert list(ENCODERS) == ["tiny", "small", "base", "vit_l", "vit_h", "vit_g"]
    for config in ENCODERS.values():
        assert config.width % config.heads == 0
        assert config.width // config.heads % 2 == 0
    shapes = [(config.width, config.depth) for config in ENCODERS.values()]
    assert shapes == sorted(shapes)
