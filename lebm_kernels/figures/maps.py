"""Maps of the free energy over the plane, and the arrows of its gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lebm_kernels.figures.drawing import (
    COLOR_MAP,
    DATA,
    MANIFOLD,
    Y_CHECK,
    as_condition,
    beta_name,
    manifold_curve,
    new_figure,
    plane_axes,
    spaced,
    tick,
)
from lebm_kernels.models.latent_model import LatentModel
from lebm_kernels.training.datasets import Dataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAP_POINTS = 161
_LEVELS = 14


def free_energy_figure(
    model: LatentModel,
    *,
    betas: Sequence[float] = (math.inf, 1.0),
    x: float | None = None,
    data: Dataset | None = None,
) -> Figure:
    """Maps of the free energy over the plane, one panel per inverse temperature.

    Args:
        model: the model, of observations in the plane.
        betas: inverse temperatures in [0, inf], at least one.
        x: condition of the section to draw; conditional models only.
        data: observations to draw over the maps; of conditional data those with conditions within
            0.025 of ``x``.

    Raises:
        ValueError: ``betas`` is empty, or ``x`` is missing or unwanted.
    """
    return _maps([(beta_name(beta), model, beta) for beta in betas], x, data)


def cold_and_warm_figure(
    cold: LatentModel,
    warm: LatentModel,
    *,
    beta: float,
    x: float | None = None,
    data: Dataset | None = None,
) -> Figure:
    """Maps of two trained models, each at the temperature of its training.

    Args:
        cold: a model trained at zero temperature.
        warm: a model trained at ``beta``.
        beta: inverse temperature of the warm model.
        x: as in :func:`free_energy_figure`.
        data: as in :func:`free_energy_figure`.

    Raises:
        ValueError: ``x`` is missing or unwanted.
    """
    panels = [
        (f"Cold: {beta_name(math.inf)}", cold, math.inf),
        (f"Warm: {beta_name(beta)}", warm, beta),
    ]
    return _maps(panels, x, data)


def gradient_figure(model: LatentModel, y: Tensor) -> Figure:
    """A map of F at zero temperature, with its gradient 2 (y - y_check) as arrows.

    Args:
        model: unconditional, of observations in the plane.
        y: the starts of the arrows, ``[M, 2]``, which the map covers.

    Raises:
        ValueError: the model is conditional.
    """
    figure = new_figure(8.2, 5.0)
    axes = figure.add_subplot()
    sides = [spaced(float(low), float(high), _MAP_POINTS) for low, high in _extent(y)]
    filled = _fill(axes, model, sides, math.inf)
    query = y.to(model.z, copy=True).requires_grad_()
    (grad,) = torch.autograd.grad(model.free_energy(query).sum(), query)
    # An arrow points away from the manifold. Its length is 2/11 of the distance to the manifold.
    # The outline makes it visible on yellow too.
    arrows = axes.quiver(
        *y.cpu().unbind(1),
        *grad.cpu().unbind(1),
        angles="xy",
        scale_units="xy",
        scale=11.0,
        width=0.003,
        color="white",
        edgecolor="0.2",
        linewidth=0.4,
    )
    curve = manifold_curve(model)
    axes.plot(curve[:, 0], curve[:, 1], color=MANIFOLD, lw=2.0, label="manifold")
    _color_bar(figure, axes, filled, r"free energy $F_\infty(y)$")
    plane_axes(axes, rf"$F_\infty$ and its gradient $2\,(y - {Y_CHECK})$")
    label = r"$|\partial F_\infty / \partial y| = 4$"
    axes.quiverkey(arrows, 0.08, 1.04, 4.0, label, labelpos="E", color="black")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure


def _maps(
    panels: Sequence[tuple[str, LatentModel, float]],
    x: float | None,
    data: Dataset | None,
) -> Figure:
    if not panels:
        raise ValueError("betas must hold at least one inverse temperature, got none")
    figure = new_figure(5.6 * len(panels), 5.0)
    half = 1.5 * max(float(manifold_curve(model, x).abs().max()) for _, model, _ in panels)
    shown = None if data is None else _observations(data, x)
    if shown is not None and len(shown) > 0:
        half = max(half, 1.1 * float(shown.abs().max()))
    side = spaced(-half, half, _MAP_POINTS)
    for i, (name, model, beta) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        filled = _fill(axes, model, [side, side], beta, x)
        curve = manifold_curve(model, x)
        axes.plot(curve[:, 0], curve[:, 1], color=MANIFOLD, label="manifold")
        if shown is not None and len(shown) > 0:
            axes.plot(*shown.unbind(1), "o", ms=4, mfc="white", mec=DATA, label="observations")
        _color_bar(figure, axes, filled, "free energy $F_\\beta(y)$")
        plane_axes(axes, name)
        axes.legend(loc="upper right", fontsize="small")
    section = "" if x is None else f" at x = {x:g}"
    figure.suptitle(f"{type(panels[0][1]).__name__}{section}: free energy")
    return figure


def _fill(
    axes: Any, model: LatentModel, sides: Sequence[Tensor], beta: float, x: float | None = None
) -> Any:
    """Fill the axes with F over a rectangle, and return the filled contours."""
    from matplotlib.colors import PowerNorm

    plane = torch.stack(torch.meshgrid(*sides, indexing="xy"), dim=-1)
    with torch.no_grad():
        query = plane.flatten(0, 1).to(model.z)
        value = model.free_energy(query, as_condition(model, x), beta=beta)
    # F grows as a squared distance, so levels are evenly spaced in its square root.
    low, high = float(value.min()), float(value.max())
    levels = low + (high - low) * (spaced(0.0, 1.0, _LEVELS).double() ** 2).numpy()
    norm = PowerNorm(0.5, vmin=low, vmax=high)
    values = value.reshape(plane.shape[:-1]).cpu().numpy()
    filled = axes.contourf(*sides, values, levels=levels, norm=norm, cmap=COLOR_MAP)
    axes.contour(filled, colors="white", linewidths=0.4, alpha=0.6)
    return filled


def _color_bar(figure: Figure, axes: Any, filled: Any, label: str) -> None:
    from matplotlib.ticker import FuncFormatter

    figure.colorbar(filled, ax=axes, shrink=0.82, label=label, format=FuncFormatter(tick))


def _extent(y: Tensor) -> Tensor:
    """The smallest and the largest value of each component, ``[2, 2]``."""
    return torch.stack(torch.aminmax(y, dim=0), dim=1)


def _observations(data: Dataset, x: float | None) -> Tensor:
    y = data.y.cpu()
    return y if data.x is None or x is None else y[(data.x.cpu() - x).abs() < 0.025]
