"""Latent grids: the values that a latent variable may take, with quadrature weights.

F is an average over the latent domain. On a grid the average is a quadrature. Its weights enter the
free energy as ``log_weight``, which normalises them: only their ratios matter.

:func:`periodic_grid`, :func:`interval_grid` and :func:`gauss_legendre_grid` make one-dimensional
grids. For more dimensions :func:`product_grid` combines grids, which multiplies their numbers of
points, and :func:`sobol_grid` makes any number of points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from lebm_kernels.checks import (
    check_count,
    check_floating,
    check_positive,
    check_seed,
    number,
    shown,
)
from lebm_kernels.models.placing import placement

PRACTICUM_POINTS = 48
"""Points of the practicum's grid: [0, 2 pi) in steps of pi/24."""

# Points are computed like this and rounded once, so those in float32 are the nearest to the exact
# ones.
_EXACT: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}


@dataclass(frozen=True, eq=False)
class LatentGrid:
    """Points of a latent domain and their quadrature weights.

    Attributes:
        z: the points, ``[N]`` on a line or ``[N, K]`` in K dimensions, floating point, N >= 1.
        log_weight: logarithms of the quadrature weights, ``[N]``, floating point, up to a common
            constant; ``None`` means equal weights.

    Raises:
        TypeError: ``z`` or ``log_weight`` is not a floating-point tensor.
        ValueError: ``z`` has another shape or is empty, or ``log_weight`` isn't ``[N]``.
    """

    z: Tensor
    log_weight: Tensor | None = None

    def __post_init__(self) -> None:
        """Check both fields."""
        for name, value in (("z", self.z), ("log_weight", self.log_weight)):
            if value is None and name == "log_weight":
                continue
            check_floating(name, value)
        if self.z.dim() not in (1, 2) or self.z.numel() == 0:
            raise ValueError(
                f"z must have shape [N] or [N, K] with N, K >= 1, got {list(self.z.shape)}"
            )
        if self.log_weight is not None and self.log_weight.shape != self.z.shape[:1]:
            raise ValueError(
                f"log_weight must have one element a point of z, [{len(self)}], "
                f"got {list(self.log_weight.shape)}"
            )

    def __len__(self) -> int:
        """Return N, the number of points."""
        return self.z.shape[0]

    @property
    def dim(self) -> int:
        """K, the number of latent dimensions: 1 where ``z`` is ``[N]``."""
        return 1 if self.z.dim() == 1 else self.z.shape[1]

    @property
    def points(self) -> Tensor:
        """The points as ``[N, K]``, also if K = 1."""
        return self.z.reshape(len(self), self.dim)

    @property
    def log_measure(self) -> Tensor:
        """The logarithms of the weights, ``[N]``, normalised so that the weights sum to one."""
        if self.log_weight is None:
            return self.z.new_full((len(self),), -math.log(len(self)))
        return self.log_weight.log_softmax(0)


def checked_grid(grid: object, name: str = "grid") -> LatentGrid:
    """Refuse anything but a grid; return the grid."""
    if not isinstance(grid, LatentGrid):
        raise TypeError(f"{name} must be a LatentGrid, got {type(grid).__name__}")
    return grid


def periodic_grid(
    num: int = PRACTICUM_POINTS,
    *,
    period: float = 2.0 * math.pi,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> LatentGrid:
    """Equally spaced points of [0, period), with equal weights.

    On a periodic domain this is the trapezoid rule. For a smooth integrand it converges faster than
    any power of the step. The default is the practicum's grid.

    Args:
        num: number of points, at least 1.
        period: length of the domain, positive and finite.
        dtype: floating-point type of the points; PyTorch's default dtype if absent.
        device: of the points; PyTorch's default device if absent.

    Raises:
        ValueError: ``num`` or ``period`` is out of range.

    Example:
        >>> periodic_grid(4, period=1.0).z
        tensor([0.0000, 0.2500, 0.5000, 0.7500])
    """
    check_count("num", num, 1)
    check_positive("period", period)
    options = placement(dtype, device)
    z = torch.arange(num, **_EXACT) * (number(period) / num)
    return LatentGrid(z.to(**options))


def interval_grid(
    low: float,
    high: float,
    num: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> LatentGrid:
    """Equally spaced points of [low, high], both ends included: the trapezoid rule.

    Each end represents half a step, so it has half the weight of the other points.

    Args:
        low: first point.
        high: last point, above ``low``.
        num: number of points, at least 2.
        dtype: floating-point type of the points; PyTorch's default dtype if absent.
        device: of the points; PyTorch's default device if absent.

    Raises:
        ValueError: ``num`` is below 2, or ``low < high`` doesn't hold with both finite.

    Example:
        >>> interval_grid(0.0, 1.0, 3).log_measure.exp()
        tensor([0.2500, 0.5000, 0.2500])
    """
    check_count("num", num, 2)
    low, high = _interval(low, high)
    options = placement(dtype, device)
    z = torch.linspace(low, high, num, **_EXACT)
    weight = torch.ones(num, **_EXACT)
    weight[0] = weight[-1] = 0.5
    return LatentGrid(z.to(**options), weight.log().to(**options))


def gauss_legendre_grid(
    low: float,
    high: float,
    num: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> LatentGrid:
    """The Gauss-Legendre rule of [low, high]: exact for polynomials of degree below 2 num.

    For a smooth decoder, a few of these points are as accurate as many equally spaced ones. They
    exclude the ends. At zero temperature weights do not matter, and :func:`interval_grid` covers
    the interval better.

    Args:
        low: start of the domain.
        high: its end, above ``low``.
        num: number of points, at least 1.
        dtype: floating-point type of the points; PyTorch's default dtype if absent.
        device: of the points; PyTorch's default device if absent.

    Raises:
        ValueError: ``num`` is below 1, or ``low < high`` doesn't hold with both finite.

    Example:
        >>> grid = gauss_legendre_grid(0.0, 1.0, 3)
        >>> (grid.log_measure.exp() * grid.z**5).sum()  # the mean of z^5: 1/6
        tensor(0.1667)
    """
    check_count("num", num, 1)
    low, high = _interval(low, high)
    options = placement(dtype, device)
    node, weight = np.polynomial.legendre.leggauss(num)
    z = torch.from_numpy(low + (high - low) * (node + 1.0) / 2.0)
    log_weight = torch.from_numpy(weight).log()
    return LatentGrid(z.to(**options), log_weight.to(**options))


def product_grid(*grids: LatentGrid) -> LatentGrid:
    """All combinations of the points of the grids; the last grid's points vary fastest.

    The weight of a combination is the product of its points' weights.

    Args:
        grids: at least one, all of one dtype and device.

    Returns:
        A grid ``[N, K]``: N is the product of the grids' numbers of points, K the sum of their
        numbers of dimensions.

    Raises:
        TypeError: one of them isn't a :class:`LatentGrid`.
        ValueError: no grid is given, or their dtypes or devices differ.

    Example:
        >>> product_grid(periodic_grid(2), interval_grid(0.0, 1.0, 3)).z.shape
        torch.Size([6, 2])
    """
    if not grids:
        raise ValueError("grids must hold at least one grid, got none")
    for grid in grids:
        checked_grid(grid, "grids")
    for name in ("dtype", "device"):
        kinds = {str(getattr(grid.z, name)) for grid in grids}
        if len(kinds) > 1:
            raise ValueError(f"grids must be of one {name}, got {', '.join(sorted(kinds))}")
    index = torch.cartesian_prod(*(torch.arange(len(g), device=g.z.device) for g in grids))
    index = index.reshape(-1, len(grids))  # cartesian_prod of one argument is one-dimensional
    z = torch.cat([g.points[i] for g, i in zip(grids, index.unbind(1), strict=True)], dim=1)
    log_weight = None
    if any(grid.log_weight is not None for grid in grids):
        log_weights = [g.log_measure[i] for g, i in zip(grids, index.unbind(1), strict=True)]
        log_weight = torch.stack(log_weights).sum(0)
    return LatentGrid(z, log_weight)


def sobol_grid(
    num: int,
    dim: int,
    *,
    low: float = 0.0,
    high: float = 1.0,
    seed: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> LatentGrid:
    """The first points of the Sobol sequence in the cube [low, high]^dim, with equal weights.

    Use it where a product grid would have too many points. Averages converge almost as 1/num; a
    power of two is the best ``num``.

    Args:
        num: number of points, at least 1.
        dim: number of dimensions, from 1 to 21201, PyTorch's limit.
        low: lower end of each side; the unscrambled sequence starts there.
        high: upper end of each side, above ``low``.
        seed: of the scrambling, in [0, 2^63); ``None`` does not scramble.
        dtype: floating-point type of the points; PyTorch's default dtype if absent.
        device: of the points; PyTorch's default device if absent.

    Raises:
        ValueError: ``num`` or ``dim`` is out of range, or ``low < high`` doesn't hold.
    """
    check_count("num", num, 1)
    check_count("dim", dim, 1)
    if dim > SobolEngine.MAXDIM:
        raise ValueError(f"dim must be at most {SobolEngine.MAXDIM}, got {dim}")
    low, high = _interval(low, high)
    options = placement(dtype, device)
    if seed is not None:
        check_seed("seed", seed)
    with torch.device("cpu"):  # the engine has no argument for it
        engine = SobolEngine(dim, scramble=seed is not None, seed=seed)
        z = low + (high - low) * engine.draw(num, dtype=torch.float64)
    return LatentGrid(z.to(**options))


def _interval(low: float, high: float) -> tuple[float, float]:
    """The ends as floats; refuse ends that are not finite or not in increasing order."""
    for name, end in (("low", low), ("high", high)):
        if not math.isfinite(number(end)):
            raise ValueError(f"{name} must be a finite number, got {shown(end)}")
    if not number(low) < number(high):
        raise ValueError(f"low must be below high, got low={low}, high={high}")
    return number(low), number(high)
