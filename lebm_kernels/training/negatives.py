"""Contrastive samples: points y_hat whose free energy a contrastive loss raises.

A callable with the signature of :class:`Negatives` draws them, from its own generator or from
PyTorch's global one. A training checkpoint holds the state of both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lebm_kernels.checks import (
    check_callable,
    check_count,
    check_floating,
    check_generator,
    check_positive,
    shown,
)
from lebm_kernels.functional import posterior
from lebm_kernels.models.descent import Projection, descend
from lebm_kernels.models.inference import condition_each
from lebm_kernels.models.latent_model import LatentModel
from lebm_kernels.models.modes import evaluation_mode

_PUSHES = 4
"""Pushes away from the nearest observation, before a point is moved outside all of them."""


class Negatives(Protocol):
    """The signature of a source of contrastive samples."""

    def __call__(
        self,
        model: LatentModel,
        y: Tensor,
        x: Tensor | None = None,
        *,
        beta: float = torch.inf,
        backend: str | None = None,
    ) -> Tensor:
        """Return samples ``y_hat[..., M, D]`` without gradients, for ``y[M, D]`` and ``x[M]``."""
        ...


@dataclass(frozen=True)
class UniformBox:
    """Points drawn uniformly from a box: one per observation, independent of the observations.

    Attributes:
        low: the box's lower corner: one number for all components, or D numbers.
        high: the box's upper corner, above ``low``.
        generator: source of the draws, on y's device; the global generator if absent.

    Raises:
        ValueError: a corner isn't finite. When called: a corner and ``y`` have different numbers of
            components, or ``low`` isn't below ``high``.

    Example:
        >>> from lebm_kernels.models.latent_model import Ellipse
        >>> UniformBox(-3.0, 3.0)(Ellipse(), torch.zeros(4, 2)).shape
        torch.Size([4, 2])
    """

    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        """Check that the corners are finite, and the generator."""
        check_generator("generator", self.generator)
        for name, corner in (("low", self.low), ("high", self.high)):
            try:
                finite = bool(
                    torch.as_tensor(corner, dtype=torch.float64, device="cpu").isfinite().all()
                )
            except (TypeError, ValueError, RuntimeError):  # not numbers
                finite = False
            if not finite:
                raise ValueError(f"{name} must be finite, got {shown(corner)}")

    def __call__(
        self, model: LatentModel, y: Tensor, x: Tensor | None = None, **_: object
    ) -> Tensor:
        """Draw points of the shape and dtype of ``y``: see :class:`Negatives`."""
        check_floating("y", y, "[..., M, D]")
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
    """The observations with normal noise on every component.

    Attributes:
        std: standard deviation of the noise, in units of ``y``, positive and finite.
        generator: source of the draws, on y's device; the global generator if absent.

    Raises:
        ValueError: ``std`` is out of range.
    """

    std: float
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        """Check the deviation and the generator."""
        check_positive("std", self.std)
        check_generator("generator", self.generator)

    def __call__(
        self, model: LatentModel, y: Tensor, x: Tensor | None = None, **_: object
    ) -> Tensor:
        """Draw one point per observation, in the dtype of ``y``: see :class:`Negatives`."""
        check_floating("y", y, "[..., M, D]")
        noise = torch.randn(y.shape, dtype=y.dtype, device=y.device, generator=self.generator)
        return y.detach() + float(self.std) * noise


@dataclass(frozen=True)
class MostOffending:
    """Points of low free energy at least ``radius`` away from the data, found by descent of F.

    Each point is drawn, moved out of the balls of ``radius`` about the batch's observations, and
    descends F outside the balls, along their surface if F falls inwards: projected gradient
    descent. A descent ends in the basin of its start; the lowest of ``num_starts`` ends is the
    sample. The descents run the model in evaluation mode, because they need an F that does not
    change.

    For a conditional model only one observation has the x of a sample, and the sample keeps away
    from that observation alone.

    Attributes:
        radius: the least distance from an observation, in units of ``y``, positive and finite.
        start: draws the starts of the descents.
        num_starts: starts per sample, at least 1.
        max_steps: evaluations of F per descent, at least 0.

    Raises:
        TypeError: ``start`` isn't a source of contrastive samples.
        ValueError: a number is out of range.
    """

    radius: float
    start: Negatives
    num_starts: int = 1
    max_steps: int = 50

    def __post_init__(self) -> None:
        """Check the numbers and the source of the starts."""
        check_callable("start", self.start, "a source of contrastive samples")
        check_positive("radius", self.radius)
        for name, minimum in (("num_starts", 1), ("max_steps", 0)):
            check_count(name, getattr(self, name), minimum)

    def __call__(
        self,
        model: LatentModel,
        y: Tensor,
        x: Tensor | None = None,
        *,
        beta: float = torch.inf,
        backend: str | None = None,
    ) -> Tensor:
        """Return one point per observation: see :class:`Negatives`."""
        x, y = condition_each(model, y, x), y.detach()
        drawn = torch.stack(
            [self.start(model, y, x, beta=beta, backend=backend) for _ in range(self.num_starts)]
        )
        # Row i of the descent is sample i modulo M.
        own = torch.arange(len(y), device=y.device).expand(drawn.shape[:-1]).flatten()

        def function(point: Tensor, rows: Tensor) -> Tensor:
            condition = None if x is None else x[own[rows]]
            return model.free_energy(point, condition, beta=beta, backend=backend)

        project = outside_balls(y, self.radius, None if x is None else own, backend=backend)
        with evaluation_mode(model):
            found = descend(
                function, drawn.flatten(0, -2), max_steps=self.max_steps, project=project
            )
        value, point = found.value.view(drawn.shape[:-1]), found.point.view(drawn.shape)
        value = value.nan_to_num(math.inf, math.inf)  # NaN would be the lowest
        lowest = value.argmin(0, keepdim=True).unsqueeze(-1).expand(1, *point.shape[1:])
        return point.gather(0, lowest).squeeze(0)


def outside_balls(
    centres: Tensor, radius: float, own: Tensor | None = None, *, backend: str | None = None
) -> Projection:
    """Make a projection that moves points out of the balls of ``radius`` about the centres.

    A point inside a ball moves to the nearest point outside it. If balls overlap, it may land in
    the next ball and is pushed again. After 4 pushes it moves straight away from the mean of the
    centres, to a place outside all balls.

    Args:
        centres: the centres of the balls, ``[M, D]``; one that is not finite has no ball.
        radius: of the balls, positive, in the units of ``centres``.
        own: for each row of the descent the index of the only centre that applies to it; if absent,
            all centres apply to all rows.
        backend: of the search for the nearest centre, as in :func:`lebm_kernels.free_energy`.
    """
    check_floating("centres", centres, "[M, D]")
    check_positive("radius", radius)
    finite = centres[centres.isfinite().all(-1)]
    if len(finite) == 0:
        return lambda point, rows: point
    middle = finite.mean(0)
    reach = float((finite - middle).norm(dim=-1).amax()) + radius
    # Points move farther out by more than the rounding error, so none stays inside.
    slack = 8.0 * torch.finfo(centres.dtype).eps * (radius + float(finite.abs().amax()))

    def nearest(point: Tensor, rows: Tensor) -> Tensor:
        if own is not None:
            return centres[own[rows]]
        return finite[posterior(point, finite, math.inf, backend=backend).index]

    def project(point: Tensor, rows: Tensor) -> Tensor:
        point, pending = point.clone(), torch.arange(len(point), device=point.device)
        for push in range(_PUSHES + 1):
            current, centre = point[pending], nearest(point[pending], rows[pending])
            inside = _distance(current, centre).squeeze(-1) < radius
            pending, current, centre = pending[inside], current[inside], centre[inside]
            if len(pending) == 0:
                break
            if push < _PUSHES:
                point[pending] = _move_to_distance(radius + slack, current, centre)
            else:
                point[pending] = _move_to_distance(reach + slack, current, middle)
        return point

    return project


def _distance(point: Tensor, centre: Tensor) -> Tensor:
    return (point - centre).norm(dim=-1, keepdim=True)


def _move_to_distance(distance: float, point: Tensor, centre: Tensor) -> Tensor:
    """Move points ``[m, D]`` along the line from their centre to a given distance from it."""
    offset, length = point - centre, _distance(point, centre)
    # A point on its centre has no direction: it moves along the first axis.
    first = torch.zeros_like(offset)
    first[..., 0] = 1.0
    return centre + distance * torch.where(length > 0, offset / length, first)
