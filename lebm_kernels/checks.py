"""Checks of options: numbers in a range, counts, intervals, dtypes, devices, functions, paths.

Each raises an error of one line with the option's name, what it must be and what it was: ValueError
for numbers, counts and intervals, TypeError for what must be an object of some kind. A value that
is not a number lies in no range, so it gets the ValueError of that range. NumPy's numbers count as
numbers. Booleans, Python's or NumPy's, do not.
"""

from __future__ import annotations

import math
import numbers
import os
import textwrap
from typing import Any

import torch
from torch import Tensor

MOST = 2**40
"""The most items that an option may ask for: beyond it, sizes in bytes overflow."""


def is_real(value: object) -> bool:
    """Whether the type is that of a real number, Python's, NumPy's or another's, and not bool."""
    # Concrete types first: they are common, and torch.compile can trace them.
    if isinstance(value, (int, float)):
        return not isinstance(value, bool)
    return isinstance(value, numbers.Real)


def is_integer(value: object) -> bool:
    """Whether the type is that of an integer, and not bool; see :func:`is_real`."""
    if isinstance(value, int):
        return not isinstance(value, bool)
    return isinstance(value, numbers.Integral)


def number(value: object) -> float:
    """The value as a float; NaN, which lies in no range, if it is not a single number."""
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
    """A Python number for another library's number or 0-d array; else the value itself."""
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if is_integer(value):
        return int(value)
    return number(value) if is_real(value) else value


def shown(value: object) -> str:
    """A value as an error shows it, in one line that is not too long."""
    return textwrap.shorten(repr(value), 200, placeholder=" ...")


def check_kind(name: str, value: object, kind: type | tuple[type, ...], expected: str) -> None:
    """Refuse anything but an object of that class."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")


def check_callable(name: str, value: object, expected: str, *, may_be_class: bool = False) -> None:
    """Refuse anything that cannot be called, and a class where its instance is meant."""
    if not callable(value):
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")
    if isinstance(value, type) and not may_be_class:
        raise TypeError(f"{name} must be {expected}, got the class {value.__name__} itself")


def check_path(name: str, value: object) -> None:
    """Refuse anything but None or a path."""
    if value is not None:
        check_kind(name, value, (str, os.PathLike), "None or a path")


def check_boolean(name: str, value: object) -> None:
    """Refuse anything but True or False, NumPy's too."""
    if not isinstance(plain(value), bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")


def check_floating(name: str, value: object, form: str = "") -> None:
    """Refuse anything but a floating-point tensor; ``form`` is its shape in the message."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        wanted = f"a floating-point tensor {form}".rstrip()
        raise TypeError(f"{name} must be {wanted}, got {kind}")


def check_seed(name: str, value: object) -> None:
    """Refuse anything but an integer in [0, 2^63)."""
    if not (is_count(value, 0) and value < 2**63):  # type: ignore[operator]
        raise ValueError(
            f"{name} must be an integer of at least 0 and below 2^63, got {shown(value)}"
        )


def check_dtype(name: str, value: object) -> None:
    """Refuse anything but None or a floating-point dtype."""
    if value is None or (isinstance(value, torch.dtype) and value.is_floating_point):
        return
    raise TypeError(f"{name} must be None or a floating-point torch.dtype, got {shown(value)}")


def check_device(name: str, value: object) -> None:
    """Refuse anything but None or a device, by its name too."""
    if value is not None and not isinstance(value, (torch.device, str)):
        kind = type(value).__name__
        raise TypeError(f"{name} must be None, a torch.device or its name, got {kind}")
    try:
        torch.device("cpu" if value is None else value)
    except RuntimeError:
        raise ValueError(f"{name} must be a device of PyTorch, got {shown(value)}") from None


def check_generator(name: str, value: object) -> None:
    """Refuse anything but None or a generator."""
    if value is not None and not isinstance(value, torch.Generator):
        kind = type(value).__name__
        raise TypeError(f"{name} must be None or a torch.Generator, got {kind}")


def count_not_finite(values: Tensor) -> int:
    """How many rows of ``values[M, ...]`` contain NaN or an infinity."""
    return int((~values.isfinite()).reshape(len(values), -1).any(1).sum())


def check_interval(name: str, interval: Any) -> None:
    """Refuse anything but two finite numbers in increasing order."""
    ends = [number(x) for x in interval] if isinstance(interval, (tuple, list)) else []
    if not (len(ends) == 2 and -math.inf < ends[0] < ends[1] < math.inf):
        raise ValueError(f"{name} must be (low, high) with low < high, got {shown(interval)}")


def check_positive(name: str, value: object) -> None:
    """Refuse anything but a number in (0, inf)."""
    if not (0.0 < number(value) < math.inf):
        raise ValueError(f"{name} must be positive and finite, got {shown(value)}")


def check_not_negative(name: str, value: object) -> None:
    """Refuse anything but a number in [0, inf)."""
    if not (0.0 <= number(value) < math.inf):
        raise ValueError(f"{name} must be at least 0 and finite, got {shown(value)}")


def is_count(value: object, least: int) -> bool:
    """Whether it is an integer of at least ``least``, and not bool."""
    return is_integer(value) and value >= least  # type: ignore[operator]


def check_count(name: str, value: object, least: int) -> None:
    """Refuse anything but an integer of at least ``least``, or one that no memory can hold."""
    if not is_count(value, least):
        raise ValueError(f"{name} must be an integer of at least {least}, got {shown(value)}")
    if value > MOST:  # type: ignore[operator]
        raise ValueError(f"{name} must be at most 2^40, got {shown(value)}")
