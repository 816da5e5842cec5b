"""What the checks of options have in common: numbers in a range, and counts.

Each raises ValueError with the option's name, what it must be and what it was. What is no number
at all is in no range, so that a word in a number's place is answered in the same way.
"""

from __future__ import annotations

import math


def number(value: object) -> float:
    """The value as a float; NaN, which no range holds, for what is no number."""
    if isinstance(value, (str, bytes)):
        return math.nan
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:  # an integer beyond every float
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def check_positive(name: str, value: object) -> None:
    """Refuse what isn't in (0, inf)."""
    if not (0.0 < number(value) < math.inf):
        raise ValueError(f"{name} must be positive and finite, got {value!r}")


def check_not_negative(name: str, value: object) -> None:
    """Refuse what isn't in [0, inf)."""
    if not (0.0 <= number(value) < math.inf):
        raise ValueError(f"{name} must be at least 0 and finite, got {value!r}")


def is_count(value: object, least: int) -> bool:
    """Whether it is an integer of at least so much; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_count(name: str, value: object, least: int) -> None:
    """Refuse what isn't an integer of at least so much."""
    if not is_count(value, least):
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
