"""The free energy as a height: along a line through the plane, and over the whole plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lebm_kernels.extras import needs
from lebm_kernels.figures.drawing import (
    DATA,
    MANIFOLD,
    beta_name,
    free_energy_at,
    legend_below,
    manifold_curve,
    new_figure,
    spaced,
)
from lebm_kernels.models.latent_model import LatentModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINE_POINTS = 401
_SURFACE_POINTS = 121
_CONTOURS = 30

#: Values of F at zero temperature that the practicum calls warm and hot.
_WARM, _HOT = 0.5, 1.0

_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))


def section_figure(model: LatentModel) -> Figure:
    """F at zero temperature along the line y1 = 0, up to 1 beyond the manifold.

    Args:
        model: unconditional, of observations in the plane; its manifold encloses the origin.

    Raises:
        ValueError: the model is conditional.
    """
    figure = new_figure(7.0, 4.6)
    axes = figure.add_subplot()
    crossing = _crossings(model)
    half = float(crossing.abs().max()) + 1.0
    line = spaced(-half, half, _LINE_POINTS)
    value = _along(model, line, math.inf)
    axes.plot(line, value, color=DATA, label=r"$F_\infty(0, y_2)$")
    label = "where the section meets the manifold"
    axes.plot(crossing, torch.zeros_like(crossing), "o", color=MANIFOLD, label=label)
    origin = float(_along(model, line.new_zeros(1), math.inf))
    axes.annotate(
        rf"$F_\infty(0, 0)$ = {origin:.3g}: a finite peak",
        (0.0, origin),
        xytext=(0.0, 24.0),
        textcoords="offset points",
        ha="center",
        arrowprops={"arrowstyle": "->"},
    )
    axes.set_ylim(top=1.25 * float(value.max()))  # room for the annotation of the peak
    _label(axes, r"free energy $F_\infty$", r"Section $y_1 = 0$ at zero temperature")
    legend_below(figure, axes)
    return figure


def sections_figure(
    panels: Sequence[tuple[str, LatentModel]], betas: Sequence[float], *, half: float = 2.0
) -> Figure:
    """F along the line y1 = 0 at several temperatures, one panel per model.

    Args:
        panels: title and unconditional model of each panel.
        betas: inverse temperatures in [0, inf], at most six.
        half: the sections cover y2 in [-half, half]; positive.

    Raises:
        ValueError: a model is conditional, or there are more than six betas.
    """
    if len(betas) > len(_DASHES):
        raise ValueError(f"betas must be at most {len(_DASHES)}, got {len(betas)}")
    with needs("figures"):
        from matplotlib import colormaps

    # Without the last fifth of the colours: light yellow is invisible on white.
    colors = colormaps["cividis"](spaced(0.0, 0.8, len(betas)).numpy())
    figure = new_figure(5.6 * len(panels), 4.8)
    line = spaced(-half, half, _LINE_POINTS)
    for i, (title, model) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for beta, color, dash in zip(betas, colors, _DASHES, strict=False):
            value = _along(model, line, beta)
            axes.plot(line, value, color=color, ls=dash, lw=1.8, label=beta_name(beta))
        crossing = _crossings(model)
        axes.plot(crossing, torch.zeros_like(crossing), "o", color=MANIFOLD, label="manifold")
        _label(axes, r"free energy $F_\beta$", title)
        axes.legend(loc="upper center", fontsize="small")
    figure.suptitle(r"Section $y_1 = 0$ from cold to hot")
    return figure


def surface_figure(model: LatentModel) -> Figure:
    """Contours of F at zero temperature over the plane, each drawn at its height.

    Args:
        model: unconditional, of observations in the plane.

    Raises:
        ValueError: the model is conditional.
    """
    figure = new_figure(7.6, 5.6)
    axes = figure.add_subplot(projection="3d")
    # Contours above this height would hide those below.
    top = 1.2 * _HOT
    curve = manifold_curve(model)
    half = float(curve.abs().max()) + 1.1 * math.sqrt(top)
    side = spaced(-half, half, _SURFACE_POINTS)
    plane = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1)
    value = free_energy_at(model, plane.flatten(0, 1), math.inf).reshape(plane.shape[:-1])
    levels = [i * top / _CONTOURS for i in range(1, _CONTOURS + 1)]
    axes.computed_zorder = False  # it would hide the manifold
    lines = axes.contour(
        *plane.unbind(-1),
        value,
        levels=levels,
        cmap="coolwarm",
        vmin=0.0,
        vmax=_HOT,
        linewidths=1.0,
    )
    zero = torch.zeros_like(curve[:, 0])
    axes.plot(*curve.unbind(1), zero, color="black", lw=2.0, zorder=10, label="manifold")
    axes.set(xlabel="$y_1$", ylabel="$y_2$", zlabel=r"$F_\infty(y)$", zlim=(0.0, top))
    axes.set_zticks([0.0, _WARM, _HOT])
    axes.set_title(r"Contours of $F_\infty$")
    axes.set_box_aspect((1.0, 1.0, 0.4), zoom=0.95)
    axes.view_init(elev=56, azim=-60)
    from matplotlib.cm import ScalarMappable

    colors = ScalarMappable(lines.norm, lines.cmap)
    bar = figure.colorbar(colors, ax=axes, shrink=0.7, pad=0.1, extend="max")
    bar.set_label(r"free energy $F_\infty(y)$")
    bar.set_ticks([0.0, _WARM, _HOT], labels=["cold: 0", f"warm: {_WARM:g}", f"hot: {_HOT:g}+"])
    axes.legend(loc="upper left")
    return figure


def _along(model: LatentModel, line: Tensor, beta: float) -> Tensor:
    """F ``[M]`` of the points (0, y2), for y2 of ``line[M]``."""
    return free_energy_at(model, torch.stack((torch.zeros_like(line), line), dim=1), beta)


def _crossings(model: LatentModel) -> Tensor:
    """The y2 at which the manifold crosses y1 = 0, interpolated between points of its curve."""
    start, end = (manifold_curve(model).roll(-i, 0)[:-1] for i in range(2))
    fraction = start[:, 0] / (start[:, 0] - end[:, 0])
    crossed = (fraction >= 0.0) & (fraction < 1.0)
    return (start + fraction.unsqueeze(1) * (end - start))[crossed, 1]


def _label(axes: Any, ylabel: str, title: str) -> None:
    axes.set(xlabel="$y_2$ at $y_1 = 0$", ylabel=ylabel, title=title)
    axes.grid(alpha=0.3)
