"""Formats of numbers, shares and times, and the round numbers that an axis shows."""

import math
from collections.abc import Sequence

MINUS = "\N{MINUS SIGN}"
MANTISSAS = ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0), (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0))
"""Round numbers of a logarithmic axis within one power of ten, from few to many."""
MAX_TICKS = 5


def percent(share: float | None, sign: bool = False) -> str:
    """The share in percent, such as 61.4, or +12.3 if `sign` is True; empty for None."""
    if share is None:
        return ""
    shown = f"{abs(100 * share):.1f}"
    if sign:
        return ("+" if share >= 0 else MINUS) + shown
    return (MINUS if share < 0 and float(shown) else "") + shown


def duration(seconds: float) -> str:
    """A time span in its two largest units."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def format_number(value: float, spacing: float | None = None) -> str:
    """`value` with enough digits to tell neighbors at a distance of `spacing` apart; about three significant digits if None."""
    size = abs(value)
    if size < 1e-12:
        return "0"
    for factor, suffix in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if size >= factor:
            unit = 1e3 if suffix == "k" else factor
            return _trim(value / unit, None if spacing is None else spacing / unit) + suffix
    return _scientific(value) if size < 1e-3 else _trim(value, spacing)


def _scientific(value: float) -> str:
    if abs(value) < 1e-12:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def _trim(value: float, spacing: float | None) -> str:
    if spacing is None:
        decimals = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
        text = f"{value:,.{decimals}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    decimals = max(0, -math.floor(math.log10(spacing) + 1e-9))
    return f"{value:,.{decimals}f}"


def power(value: float) -> str:
    """The value in scientific notation, such as 2e14."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def nice_ticks(low: float, high: float, target: int = 4) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten that lie in [low, high], about `target` of them."""
    rough = (high - low) / max(1, target)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = MAX_TICKS) -> list[float]:
    """Round numbers in [low, high] (`low` > 0): powers of ten, and numbers between them if there are fewer than three."""
    for mantissas in MANTISSAS:
        exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        # parsed from text, so that 5e-3 is exactly the number a reader means and not a rounded product
        ticks = [float(f"{factor}e{exponent}") for exponent in exponents for factor in mantissas]
        ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) >= 3:
            return ticks[:: math.ceil(len(ticks) / most)]
    return nice_ticks(low, high, 4)


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Labels of the ticks, with enough digits to tell them apart."""
    spacing = ticks[1] - ticks[0] if len(ticks) > 1 else None
    if 0 < max(abs(tick) for tick in ticks) < 0.01:
        return [_scientific(tick) for tick in ticks]
    return [format_number(tick, spacing) for tick in ticks]
