"""Contrastive samples: points y_hat whose free energy a contrastive loss pushes up.

What draws them is a callable of the signature :class:`Negatives`. Each takes a generator of its
own, or draws from PyTorch's global one; a training checkpoint holds the state of either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lebm_kernels.checks import check_count, check_positive
from lebm_kernels.functional import posterior
from lebm_kernels.models.descent import Projection, descend
from lebm_kernels.models.latent_model import LatentModel

_PUSHES = 4
"""How often a point is pushed off its nearest observation before it is sent beyond all of them."""


class Negatives(Protocol):
    """The signature of what draws contrastive samples."""

    def __call__(
        self,
        model: LatentModel,
        y: Tensor,
        x: Tensor | None = None,
        *,
        beta: float = torch.inf,
        backend: str | None = None,
    ) -> Tensor:
        """Samples ``y_hat[..., M, D]``, constants, for observations ``y[M, D]`` at ``x[M]``."""
        ...


@dataclass(frozen=True)
class UniformBox:
    """Points drawn uniformly from a box, one an observation, wherever the observations are.

    Attributes:
        low: the box's lower corner: a number for all components, or D of them.
        high: its upper corner, above ``low``.
        generator: source of the draws, on y's device; the global generator if absent.

    Raises:
        ValueError: a corner isn't finite; when called, a corner hasn't as many components as
            ``y``, or ``low`` isn't below ``high``.

    Example:
        >>> from lebm_kernels.models.latent_model import Ellipse
        >>> UniformBox(-3.0, 3.0)(Ellipse(), torch.zeros(4, 2)).shape
        torch.Size([4, 2])
    """

    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        """Check that the corners are finite."""
        for name, corner in (("low", self.low), ("high", self.high)):
            try:
                finite = bool(torch.as_tensor(corner, dtype=torch.float64).isfinite().all())
            except (TypeError, ValueError, RuntimeError):  # no numbers
                finite = False
            if not finite:
                raise ValueError(f"{name} must be finite, got {corner!r}")

    def __call__(
        self, model: LatentModel, y: Tensor, x: Tensor | None = None, **_: object
    ) -> Tensor:
        """Draw as many points as ``y`` has, in its dtype: see :class:`Negatives`."""
        low, high = self._corner("low", y), self._corner("high", y)
        if not (low < high).all():
            raise ValueError(f"low must be below high, got low={self.low}, high={self.high}")
        u = torch.rand(y.shape, dtype=y.dtype, device=y.device, generator=self.generator)
        return torch.lerp(low, high, u)

    def _corner(self, name: str, y: Tensor) -> Tensor:
        corner = torch.as_tensor(getattr(self, name), dtype=y.dtype, device=y.device)
        if corner.dim() > 0 and corner.shape != y.shape[-1:]:
            raise ValueError(
                f"{name} must be one number or {y.shape[-1]}, got {list(corner.shape)} of them"
            )
        return corner


@dataclass(frozen=True)
class GaussianNoise:
    """The observations, each with normal noise on every component.

    Attributes:
        std: standard deviation of the noise, positive and finite.
        generator: source of the draws, on y's device; the global generator if absent.

    Raises:
        ValueError: ``std`` is out of range.
    """

    std: float
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        """Check the deviation."""
        check_positive("std", self.std)

    def __call__(
        self, model: LatentModel, y: Tensor, x: Tensor | None = None, **_: object
    ) -> Tensor:
        """Draw one point an observation, in its dtype: see :class:`Negatives`."""
        noise = torch.randn(y.shape, dtype=y.dtype, device=y.device, generator=self.generator)
        return y.detach() + self.std * noise


@dataclass(frozen=True)
class MostOffending:
    """The points of least free energy farther than ``radius`` from the data, by descent of F.

    Points are drawn, moved out of the balls of ``radius`` about the observations, and descend F
    outside the balls, sliding along where F would lead them in: projected gradient descent. Each
    ends in the basin it was drawn in; of ``num_starts`` the lowest is taken.

    The observations are those of the batch. Those of a conditional model lie at an x each, and
    its samples are kept away from the one whose x they have.

    Attributes:
        radius: the least distance from an observation, positive and finite.
        start: draws the points that descend.
        num_starts: how many of them for each sample, at least 1.
        max_steps: evaluations of F a descent, at least 0.

    Raises:
        ValueError: a number is out of range.
    """

    radius: float
    start: Negatives
    num_starts: int = 1
    max_steps: int = 50

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_positive("radius", self.radius)
        for name, least in (("num_starts", 1), ("max_steps", 0)):
            check_count(name, getattr(self, name), least)

    def __call__(
        self,
        model: LatentModel,
        y: Tensor,
        x: Tensor | None = None,
        *,
        beta: float = torch.inf,
        backend: str | None = None,
    ) -> Tensor:
        """Descend to one point a drawn one: see :class:`Negatives`."""
        y = y.detach()
        drawn = torch.stack(
            [self.start(model, y, x, beta=beta, backend=backend) for _ in range(self.num_starts)]
        )
        # Row i of the descent is sample i modulo M.
        own = torch.arange(len(y), device=y.device).expand(drawn.shape[:-1]).flatten()
        x = None if x is None else x.expand(len(y))

        def function(point: Tensor, rows: Tensor) -> Tensor:
            at = None if x is None else x[own[rows]]
            return model.free_energy(point, at, beta=beta, backend=backend)

        away = outside_balls(y, self.radius, None if x is None else own)
        found = descend(function, drawn.flatten(0, -2), max_steps=self.max_steps, project=away)
        value, point = found.value.view(drawn.shape[:-1]), found.point.view(drawn.shape)
        lowest = value.argmin(0, keepdim=True).unsqueeze(-1).expand(1, *point.shape[1:])
        return point.gather(0, lowest).squeeze(0)


def outside_balls(centres: Tensor, radius: float, own: Tensor | None = None) -> Projection:
    """A projection that leaves no point in the balls of ``radius`` about the centres.

    A point in one ball goes to the nearest place outside it. Where balls overlap it may be pushed
    from one into the next; if that does not end, it goes away from the middle of the centres until
    it is past them all.

    Args:
        centres: ``[M, D]``; about one that is not finite there is no ball.
        radius: of the balls, positive.
        own: for each row of the descent the one centre that counts for it; all if absent.
    """
    there = centres[centres.isfinite().all(-1)]
    if len(there) == 0:
        return lambda point, rows: point
    middle = there.mean(0)
    reach = float((there - middle).norm(dim=-1).amax()) + radius
    # The result is outside by more than its rounding.
    slack = 8.0 * torch.finfo(centres.dtype).eps * (radius + float(there.abs().amax()))

    def nearest(point: Tensor, rows: Tensor) -> Tensor:
        if own is not None:
            return centres[own[rows]]
        return there[posterior(point, there, math.inf).index]

    def project(point: Tensor, rows: Tensor) -> Tensor:
        point, left = point.clone(), torch.arange(len(point), device=point.device)
        for push in range(_PUSHES + 1):
            here, centre = point[left], nearest(point[left], rows[left])
            inside = _distance(here, centre).squeeze(-1) < radius
            left, here, centre = left[inside], here[inside], centre[inside]
            if len(left) == 0:
                break
            if push < _PUSHES:
                point[left] = _at(radius + slack, here, centre)
            else:
                point[left] = _at(reach + slack, here, middle)
        return point

    return project


def _distance(point: Tensor, centre: Tensor) -> Tensor:
    return (point - centre).norm(dim=-1, keepdim=True)


def _at(distance: float, point: Tensor, centre: Tensor) -> Tensor:
    """At that distance from the centres, in the direction of the points ``[m, D]``."""
    offset, length = point - centre, _distance(point, centre)
    # A point on its centre has no direction: it gets one.
    first = torch.zeros_like(offset)
    first[..., 0] = 1.0
    return centre + distance * torch.where(length > 0, offset / length, first)
