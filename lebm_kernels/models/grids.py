"""Latent grids: the points a latent variable may take, and the measure they stand for.

F is an average over the latent domain. On a grid the average is a quadrature, whose weights enter
the free energy as ``log_weight``; they are normalised there, so only their ratios count.

One-dimensional grids are made by rule (:func:`periodic_grid`, :func:`interval_grid`,
:func:`gauss_legendre_grid`); grids of more dimensions are products of them, whose number of points
is the product too, or Sobol points (:func:`sobol_grid`), whose number is free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from lebm_kernels.checks import check_count, check_floating, check_positive, number

PRACTICUM_POINTS = 48
"""Points of the practicum's grid: [0, 2 pi) in steps of pi/24."""


@dataclass(frozen=True, eq=False)
class LatentGrid:
    """Points of a latent domain and their quadrature weights.

    Attributes:
        z: the points, ``[N]`` on a line or ``[N, K]`` in K dimensions, floating point, N >= 1.
        log_weight: logarithms of the quadrature weights, ``[N]``, up to one common constant;
            ``None`` where all weights are equal.

    Raises:
        TypeError: ``z`` or ``log_weight`` is not a floating-point tensor.
        ValueError: ``z`` has another shape or is empty, or ``log_weight`` isn't one a point.
    """

    z: Tensor
    log_weight: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the two fields against each other."""
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
        """The points as ``[N, K]``, whatever K."""
        return self.z.reshape(len(self), self.dim)

    @property
    def log_measure(self) -> Tensor:
        """The logarithms of the weights, ``[N]``, normalised so that the weights sum to one."""
        if self.log_weight is None:
            return self.z.new_full((len(self),), -math.log(len(self)))
        return self.log_weight.log_softmax(0)


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

    Example:
        >>> periodic_grid(4, period=1.0).z
        tensor([0.0000, 0.2500, 0.5000, 0.7500])
    """
    check_count("num", num, 1)
    check_positive("period", period)
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

    Example:
        >>> interval_grid(0.0, 1.0, 3).log_measure.exp()
        tensor([0.2500, 0.5000, 0.2500])
    """
    check_count("num", num, 2)
    _check_interval(low, high)
    z = torch.linspace(low, high, num, dtype=torch.float64)
    weight = torch.ones(num, dtype=torch.float64)
    weight[0] = weight[-1] = 0.5
    return LatentGrid(z.to(device=device, dtype=dtype), weight.log().to(device=device, dtype=dtype))


def gauss_legendre_grid(
    low: float,
    high: float,
    num: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> LatentGrid:
    """The Gauss-Legendre rule of [low, high]: exact for polynomials of degree below 2 num.

    For a smooth decoder few points do what many equally spaced ones do. The ends are not among
    them, so at zero temperature, where only the points count, :func:`interval_grid` serves better.

    Args:
        low: start of the domain.
        high: its end, above ``low``.
        num: number of points, at least 1.
        dtype: floating-point type of the points.
        device: where the points live.

    Raises:
        ValueError: ``num`` is below 1, or ``low < high`` doesn't hold with both finite.

    Example:
        >>> grid = gauss_legendre_grid(0.0, 1.0, 3)
        >>> (grid.log_measure.exp() * grid.z**5).sum()  # the mean of z^5: 1/6
        tensor(0.1667)
    """
    check_count("num", num, 1)
    _check_interval(low, high)
    node, weight = np.polynomial.legendre.leggauss(num)
    z = torch.from_numpy(low + (high - low) * (node + 1.0) / 2.0)
    log_weight = torch.from_numpy(weight).log()
    return LatentGrid(z.to(device=device, dtype=dtype), log_weight.to(device=device, dtype=dtype))


def product_grid(*grids: LatentGrid) -> LatentGrid:
    """All combinations of the points of the grids, the last grid's running fastest.

    The weights are the products of the grids' weights, so that each dimension keeps its rule.

    Args:
        grids: at least one, of one dtype and device. Their dimensions add up, their numbers of
            points multiply.

    Raises:
        TypeError: one isn't a :class:`LatentGrid`.
        ValueError: no grid is given, or their dtypes or devices differ.

    Example:
        >>> product_grid(periodic_grid(2), interval_grid(0.0, 1.0, 3)).z.shape
        torch.Size([6, 2])
    """
    if not grids:
        raise ValueError("grids must hold at least one grid, got none")
    for grid in grids:
        if not isinstance(grid, LatentGrid):
            raise TypeError(f"grids must be LatentGrids, got {type(grid).__name__}")
    for name in ("dtype", "device"):
        kinds = {str(getattr(grid.z, name)) for grid in grids}
        if len(kinds) > 1:
            raise ValueError(f"grids must be of one {name}, got {', '.join(sorted(kinds))}")
    pick = torch.cartesian_prod(*(torch.arange(len(g), device=g.z.device) for g in grids))
    pick = pick.reshape(-1, len(grids))
    z = torch.cat([g.points[i] for g, i in zip(grids, pick.unbind(1), strict=True)], dim=1)
    log_weight = None
    if any(grid.log_weight is not None for grid in grids):
        each = [g.log_measure[i] for g, i in zip(grids, pick.unbind(1), strict=True)]
        log_weight = torch.stack(each).sum(0)
    return LatentGrid(z, log_weight)


def sobol_grid(
    num: int,
    dim: int,
    *,
    low: float = 0.0,
    high: float = 1.0,
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> LatentGrid:
    """The first points of Sobol's sequence in the cube [low, high]^dim, equally weighted.

    Where a product grid would have too many points. Averages over them converge nearly as 1/num,
    best where ``num`` is a power of two.

    Args:
        num: number of points, at least 1.
        dim: number of dimensions, from 1 to the 21201 that PyTorch has numbers for.
        low: the cube's lower end, the first point of the unscrambled sequence.
        high: the cube's upper end, above ``low``.
        seed: scrambles the sequence; ``None`` leaves it as it is.
        dtype: floating-point type of the points.
        device: where the points live.

    Raises:
        ValueError: ``num`` or ``dim`` is out of range, or ``low < high`` doesn't hold.
    """
    check_count("num", num, 1)
    check_count("dim", dim, 1)
    if dim > SobolEngine.MAXDIM:
        raise ValueError(f"dim must be at most {SobolEngine.MAXDIM}, got {dim}")
    _check_interval(low, high)
    if seed is not None:
        check_count("seed", seed, 0)
    engine = SobolEngine(dim, scramble=seed is not None, seed=seed)
    z = low + (high - low) * engine.draw(num, dtype=torch.float64)
    return LatentGrid(z.to(device=device, dtype=dtype))


def _check_interval(low: float, high: float) -> None:
    if not (-math.inf < number(low) < number(high) < math.inf):
        raise ValueError(f"low must be below high, both finite, got low={low}, high={high}")
