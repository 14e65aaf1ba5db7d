"""Numbers as a person reads them."""

from __future__ import annotations

import math
from typing import Any

_UNITS = (("s", 60), ("min", 60), ("h", 24))  # and how many make the next one


def count(value: float, digits: int = 3) -> str:
    """ "0.0123", "12.3", "1,500": so many digits, and all of those before the point; no power of ten above 1."""
    return f"{value:,.0f}" if abs(value) >= 10**digits - 0.5 else f"{value:,.{digits}g}"


def is_finite(value: Any) -> bool:
    """Whether a value of a file is a number that a float can hold; a bool is none."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer of 400 digits
        return False


def millions(number: int) -> str:
    """Of a model: "12.3 M" parameters, and all digits below a million."""
    return f"{number / 1e6:,.1f} M" if number >= 1e6 else f"{number:,}"


def duration(seconds: float, digits: int = 3) -> str:
    """ "0.31 s", "13.7 min", "5.2 h", "3 days"."""
    value = seconds
    for unit, next_one in _UNITS:
        if float(f"{value:.{digits}g}") < next_one:
            return f"{count(value, digits)} {unit}"
        value = max(1.0, value / next_one)  # 59.96 s are a minute
    text = count(value, digits)
    return f"{text} day{'s' * (text != '1')}"
