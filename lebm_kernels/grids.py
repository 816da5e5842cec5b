"""Latent grids: the points a latent variable may take, and the measure they stand for.

F is an average over the latent domain. On a grid the average is a quadrature, whose weights enter
the free energy as ``log_weight``; they are normalised there, so only their ratios count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

PRACTICUM_POINTS = 48
"""Points of the practicum's grid: [0, 2 pi) in steps of pi/24."""


@dataclass(frozen=True, eq=False)
class LatentGrid:
    """Points of a one-dimensional latent domain and their quadrature weights.

    Attributes:
        z: the points, ``[N]``, floating point, N >= 1.
        log_weight: logarithms of the quadrature weights, ``[N]``, up to one common constant;
            ``None`` where all weights are equal.

    Raises:
        TypeError: ``z`` or ``log_weight`` is not a floating-point tensor.
        ValueError: ``z`` is not one-dimensional or is empty, or ``log_weight`` has another shape.
    """

    z: Tensor
    log_weight: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the two fields against each other."""
        for name, value in (("z", self.z), ("log_weight", self.log_weight)):
            if value is None and name == "log_weight":
                continue
            if not isinstance(value, Tensor) or not value.is_floating_point():
                kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
        if self.z.dim() != 1 or self.z.numel() == 0:
            raise ValueError(f"z must have shape [N] with N >= 1, got {list(self.z.shape)}")
        if self.log_weight is not None and self.log_weight.shape != self.z.shape:
            raise ValueError(
                f"log_weight must have the shape of z, {list(self.z.shape)}, "
                f"got {list(self.log_weight.shape)}"
            )

    def __len__(self) -> int:
        """Return N, the number of points."""
        return self.z.numel()


def periodic_grid(
    num: int = PRACTICUM_POINTS,
    *,
    period: float = 2.0 * math.pi,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> LatentGrid:
    """Equally spaced points of [0, period), the end excluded, equally weighted.

    On a periodic domain equal weights are the trapezoid rule, which converges faster than any
    power of the step for a smooth integrand. The default is the practicum's grid.

    Args:
        num: number of points, at least 1.
        period: length of the domain, positive and finite.
        dtype: floating-point type of the points.
        device: where the points live.

    Raises:
        ValueError: ``num`` or ``period`` is out of range.
    """
    _check_count("num", num, least=1)
    if not (0.0 < period < math.inf):
        raise ValueError(f"period must be positive and finite, got {period}")
    # Computed in double and rounded once, so that float32 points are the nearest there are.
    z = torch.arange(num, dtype=torch.float64) * (period / num)
    return LatentGrid(z.to(device=device, dtype=dtype))


def interval_grid(
    low: float,
    high: float,
    num: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> LatentGrid:
    """Equally spaced points of [low, high], both ends included, weighted by the trapezoid rule.

    The two ends stand for half a step each, so their weights are half of the others'.

    Args:
        low: first point.
        high: last point, above ``low``.
        num: number of points, at least 2.
        dtype: floating-point type of the points.
        device: where the points live.

    Raises:
        ValueError: ``num`` is below 2, or ``low < high`` doesn't hold with both finite.
    """
    _check_count("num", num, least=2)
    if not (-math.inf < low < high < math.inf):
        raise ValueError(f"low must be below high, both finite, got low={low}, high={high}")
    z = torch.linspace(low, high, num, dtype=torch.float64)
    weight = torch.ones(num, dtype=torch.float64)
    weight[0] = weight[-1] = 0.5
    return LatentGrid(z.to(device=device, dtype=dtype), weight.log().to(device=device, dtype=dtype))


def _check_count(name: str, value: int, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
