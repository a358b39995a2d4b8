"""Numbers as they are written in tables and pictures."""

COUNTS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
OPERATIONS = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"))


def amount(value: float | int, units: tuple[tuple[float, str], ...] = COUNTS) -> str:
    """Four digits and a unit: 830.5 B."""
    for size, unit in units:
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.4g}"


def lasting(hours: float) -> str:
    """Hours, or minutes or seconds where they are few, or days where they are many."""
    if hours < 1 / 60:
        return f"{3600 * hours:.3g} s"
    if hours < 1:
        return f"{60 * hours:.3g} min"
    return f"{hours:.3g} h" if hours < 1000 else f"{hours / 24:,.0f} days"


def short(value: float) -> str:
    """A number as short as it can be written: 0, 0.5, 16, 8e-4."""
    if value == 0 or value >= 0.01:
        return f"{value:.6g}"
    digits, _, power = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(power)}"
