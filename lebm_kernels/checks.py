"""What the checks of options have in common: numbers in a range, and counts.

Each raises ValueError with the option's name, what it must be and what it was. What is no number
at all is in no range, so that a word in a number's place is answered in the same way. NumPy's
numbers are numbers; booleans, Python's or NumPy's, are none.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

from torch import Tensor


def is_real(value: object) -> bool:
    """Whether it is a real number by its type: Python's, NumPy's or another's, and no bool."""
    # The concrete types first: they are common, and the ones that torch.compile knows.
    if isinstance(value, (int, float)):
        return not isinstance(value, bool)
    return isinstance(value, numbers.Real)


def is_integer(value: object) -> bool:
    """Whether it is an integer by its type, as :func:`is_real` has it."""
    if isinstance(value, int):
        return not isinstance(value, bool)
    return isinstance(value, numbers.Integral)


def number(value: object) -> float:
    """The value as a float; NaN, which no range holds, for what is no number, or several."""
    boolean = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
    several = getattr(value, "ndim", None) not in (None, 0)
    if boolean or several or isinstance(value, (str, bytes)):
        return math.nan
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:  # an integer beyond every float
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def plain(value: Any) -> Any:
    """Python's number for another's, as an array of no dimensions is one; else the value itself."""
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if is_integer(value):
        return int(value)
    return number(value) if is_real(value) else value


def check_floating(name: str, value: object, form: str = "") -> None:
    """Refuse what isn't a tensor of floating-point numbers; ``form`` is the shape in words."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        wanted = f"a floating-point tensor {form}".rstrip()
        raise TypeError(f"{name} must be {wanted}, got {kind}")


def count_not_finite(values: Tensor) -> int:
    """How many rows of ``values[M, ...]`` hold NaN or an infinity."""
    return int((~values.isfinite()).reshape(len(values), -1).any(1).sum())


def check_interval(name: str, interval: Any) -> None:
    """Refuse what isn't two numbers, finite, of which the first is less."""
    ends = [number(x) for x in interval] if isinstance(interval, (tuple, list)) else []
    if not (len(ends) == 2 and -math.inf < ends[0] < ends[1] < math.inf):
        raise ValueError(f"{name} must be (low, high) with low < high, got {interval!r}")


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
    return is_integer(value) and value >= least  # type: ignore[operator]


def check_count(name: str, value: object, least: int) -> None:
    """Refuse what isn't an integer of at least so much."""
    if not is_count(value, least):
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
