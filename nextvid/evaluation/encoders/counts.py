"""Clips of any length for encoders that take one number of frames and no other."""

from nextvid.errors import UserError


def frames_taken(given: int, wanted: int, name: str) -> list[int]:
    """Which of ``given`` frames make the ``wanted`` ones that the encoder ``name`` takes: all, every *k*-th, or each *k* times.

    Raises ``UserError`` where neither number is a multiple of the other.
    """
    if given % wanted == 0:
        return list(range(0, given, given // wanted))
    if wanted % given == 0:
        return [place * given // wanted for place in range(wanted)]
    raise UserError(
        f"{name} takes {wanted} frames, and a clip of {given} cannot be sampled evenly to that: give clips of a multiple or a "
        f"divisor of {wanted} frames"
    )


def frames_said(given: int, wanted: int) -> str:
    """:func:`frames_taken` in words, for the record."""
    if given == wanted:
        return f"all {given}"
    return (
        f"{wanted} of {given}, evenly spaced"
        if given > wanted
        else f"{wanted} of {given}, each held {wanted // given} times"
    )
