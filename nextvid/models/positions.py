"""Where a token is: waves added to it once, or a rotation of its queries and keys in every layer."""

from typing import Literal

from jaxtyping import Float, Int, Shaped
from torch import Tensor

from nextvid.models.rope import Rotation, grid_rotations
from nextvid.models.sincos import sincos_positions

Positions = Literal["rope", "sincos"]
Grid = tuple[int, int, int]


def placed(
    x: Float[Tensor, "batch latent_frames kept width"],
    places: Int[Tensor, "batch kept"] | None,
    grid: Grid,
    positions: Positions,
    heads: int,
    first_frame: int = 0,
) -> tuple[Float[Tensor, "batch tokens width"], Rotation | None]:
    """Tokens in one line with their positions added (``sincos``), or beside their rotations (``rope``).

    ``grid``: latent frames, rows and columns. ``places`` names the place of each of a sample's tokens, the same in every
    frame; without it all are there, in order.
    """
    frames, rows, columns = grid
    if positions == "sincos":
        added = sincos_positions(frames, rows * columns, x.shape[-1], x.device, first_frame)
        return (x + _at(added, places)).flatten(1, 2), None
    turns = grid_rotations(frames, rows, columns, x.shape[-1] // heads, x.device, first_frame)
    return x.flatten(1, 2), _at(turns, places).flatten(1, 2)


def _at(
    table: Shaped[Tensor, "frames places values"], places: Int[Tensor, "batch kept"] | None
) -> Shaped[Tensor, "_ frames _ values"]:
    """The table's rows of each sample's ``places``: a batch of tables, or one where all samples have all."""
    return table[None] if places is None else table[:, places].transpose(0, 1)
