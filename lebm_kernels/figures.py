"""Figures of the models: manifolds with their data, and maps of the free energy.

Each function returns a :class:`matplotlib.figure.Figure` made without pyplot, so that no display
and no global state is needed: ``figure.savefig("out.png")``. Matplotlib is imported when a figure
is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lebm_kernels.datasets import Dataset
from lebm_kernels.grids import periodic_grid
from lebm_kernels.models import LatentModel
from lebm_kernels.training import mean_free_energy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of Okabe and Ito's palette, told apart by the colour-blind and in grey.
_DATA = "#0072B2"
_MANIFOLD = "#D55E00"
_COLOR_MAP = "cividis"

_SECTIONS = 9
_CURVE_POINTS = 241
_MAP_POINTS = 161
_LEVELS = 14


def manifold_figure(untrained: LatentModel, trained: LatentModel, data: Dataset) -> Figure:
    """The manifold before and after training, side by side, with the data.

    An unconditional model is drawn in the plane, with its latent points; a conditional one as
    sections over the range of the data's x, in space.

    Args:
        untrained: a model as it was before training.
        trained: the same model trained.
        data: the observations.

    Raises:
        ValueError: the models aren't both conditional or both not, or the data's x doesn't suit.
    """
    if untrained.conditional != trained.conditional:
        raise ValueError(
            f"untrained and trained must be alike, got {type(untrained).__name__} and "
            f"{type(trained).__name__}"
        )
    if trained.conditional != (data.x is not None):
        expected = "conditions x" if trained.conditional else "no x"
        raise ValueError(f"data must have {expected} for {type(trained).__name__}")
    figure = _new_figure(11.0, 4.8)
    panels = (("Untrained", untrained), ("Trained", trained))
    first = None
    for i, (title, model) in enumerate(panels):
        if model.conditional:
            axes = figure.add_subplot(1, 2, i + 1, projection="3d")
            _draw_horn(axes, model, data)
        else:
            axes = figure.add_subplot(1, 2, i + 1, sharex=first, sharey=first)
            _draw_ellipse(axes, model, data)
        first = first or axes
        energy = mean_free_energy(model, data)
        axes.set_title(f"{title}: mean $F_\\infty$ = {energy:.3g}")
    handles, labels = first.get_legend_handles_labels() if first is not None else ([], [])
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=max(len(labels), 1),
        markerscale=1.5,
        frameon=False,
    )
    figure.suptitle(f"{type(trained).__name__}: manifold and observations")
    return figure


def free_energy_figure(
    model: LatentModel,
    *,
    betas: Sequence[float] = (math.inf, 1.0),
    x: float | None = None,
    data: Dataset | None = None,
    title: str | None = None,
) -> Figure:
    """Maps of the free energy over the plane, one panel an inverse temperature.

    Args:
        model: gives the free energy.
        betas: inverse temperatures in [0, inf], at least one.
        x: the section to draw; conditional models only.
        data: observations to draw over the maps, those with ``|x' - x| < 0.025`` if they have x.
        title: of the whole; says the model and x if absent.

    Raises:
        ValueError: ``betas`` is empty, or ``x`` is missing or not wanted.
    """
    return _maps([(_beta_name(beta), model, beta) for beta in betas], x, data, title)


def cold_and_warm_figure(
    cold: LatentModel,
    warm: LatentModel,
    *,
    beta: float,
    x: float | None = None,
    data: Dataset | None = None,
    title: str | None = None,
) -> Figure:
    """The map of each of two trained models at the temperature it was trained at.

    Args:
        cold: a model trained at zero temperature, drawn at it.
        warm: a model trained at ``beta``, drawn at it.
        beta: inverse temperature of the warm model.
        x: as in :func:`free_energy_figure`.
        data: as in :func:`free_energy_figure`.
        title: as in :func:`free_energy_figure`.

    Raises:
        ValueError: ``x`` is missing or not wanted.
    """
    panels = [
        (f"Cold: {_beta_name(math.inf)}", cold, math.inf),
        (f"Warm: {_beta_name(beta)}", warm, beta),
    ]
    return _maps(panels, x, data, title)


def latent_map_figure(model: LatentModel, data: Dataset, label: Tensor) -> Figure:
    """Where observations lie in a latent plane: each one's label at its posterior's mode.

    Args:
        model: unconditional, with a latent grid of two dimensions and a learned beta.
        data: the observations, ``[num, D]``.
        label: a digit for each, ``[num]``, which gives the colour and the mark.

    Raises:
        ValueError: the latent grid is not of two dimensions.
    """
    if model.grid.dim != 2:
        raise ValueError(f"model must have a latent grid of 2 dimensions, got {model.grid.dim}")
    figure = _new_figure(6.4, 6.0)
    axes = figure.add_subplot()
    beta = math.inf if model.beta is None else model.beta.detach()
    with torch.no_grad():
        index = model.posterior(data.to(model.z).y, beta=beta).index
    z = model.z[index].cpu()
    # Marks of one latent would cover each other: they are spread over half its cell.
    side = (z.amax(0) - z.amin(0)) / math.sqrt(len(model.z))
    z = z + side * (torch.rand(z.shape, generator=torch.Generator().manual_seed(0)) - 0.5)
    for digit in label.unique().tolist():
        chosen = z[label == digit]
        color = f"C{digit % 10}"
        axes.scatter(chosen[:, 0], chosen[:, 1], marker=f"${digit}$", s=24, lw=0, color=color)
    axes.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal", title="observations by latent")
    return figure


def _maps(
    panels: Sequence[tuple[str, LatentModel, float]],
    x: float | None,
    data: Dataset | None,
    title: str | None,
) -> Figure:
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import FuncFormatter

    if not panels:
        raise ValueError("betas must hold at least one inverse temperature, got none")
    figure = _new_figure(5.6 * len(panels), 5.0)
    half = 1.5 * max(float(_curve(model, x).abs().max()) for _, model, _ in panels)
    shown = None if data is None else _observations(data, x)
    if shown is not None and len(shown) > 0:
        half = max(half, 1.1 * float(shown.abs().max()))
    side = torch.linspace(-half, half, _MAP_POINTS)
    plane = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1)
    for i, (name, model, beta) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        with torch.no_grad():
            query = plane.flatten(0, 1).to(model.z)
            value = model.free_energy(query, _condition(model, x), beta=beta)
        values = value.reshape(_MAP_POINTS, _MAP_POINTS).cpu().numpy()
        # F grows as a squared distance: levels evenly spaced in its root show the valley.
        low, high = float(value.min()), float(value.max())
        levels = low + (high - low) * (torch.linspace(0.0, 1.0, _LEVELS).double() ** 2).numpy()
        norm = PowerNorm(0.5, vmin=low, vmax=high)
        filled = axes.contourf(side, side, values, levels=levels, norm=norm, cmap=_COLOR_MAP)
        axes.contour(filled, colors="white", linewidths=0.4, alpha=0.6)
        curve = _curve(model, x)
        axes.plot(curve[:, 0], curve[:, 1], color=_MANIFOLD, label="manifold")
        if shown is not None and len(shown) > 0:
            axes.plot(*shown.unbind(1), "o", ms=4, mfc="white", mec=_DATA, label="observations")
        label = "free energy $F_\\beta(y)$"
        figure.colorbar(filled, ax=axes, shrink=0.82, label=label, format=FuncFormatter(_tick))
        axes.set(title=name, xlabel="$y_1$", ylabel="$y_2$", aspect="equal")
        axes.legend(loc="upper right", fontsize="small")
    section = "" if x is None else f" at x = {x:g}"
    figure.suptitle(title or f"{type(panels[0][1]).__name__}{section}: free energy")
    return figure


def _draw_ellipse(axes: Any, model: LatentModel, data: Dataset) -> None:
    curve = _curve(model, None)
    points = model.manifold().detach().cpu()
    axes.plot(curve[:, 0], curve[:, 1], color=_MANIFOLD, lw=1.0, label="manifold")
    axes.plot(points[:, 0], points[:, 1], ".", color=_MANIFOLD, ms=5, label="latent grid")
    axes.plot(*data.y.cpu().unbind(1), "o", ms=5, mfc="none", mec=_DATA, label="observations")
    axes.set(xlabel="$y_1$", ylabel="$y_2$", aspect="equal")


def _draw_horn(axes: Any, model: LatentModel, data: Dataset) -> None:
    from matplotlib.ticker import MaxNLocator

    assert data.x is not None  # checked by the caller
    x = data.x.cpu()
    y = data.y.cpu()
    axes.scatter(x, y[:, 0], y[:, 1], s=7, color=_DATA, alpha=0.5, lw=0, label="observations")
    for i, section in enumerate(torch.linspace(float(x.min()), float(x.max()), _SECTIONS).tolist()):
        curve = _curve(model, section)
        axes.plot(
            torch.full_like(curve[:, 0], section),
            curve[:, 0],
            curve[:, 1],
            color=_MANIFOLD,
            lw=1.5,
            label="manifold" if i == 0 else None,
        )
    axes.set(xlabel="$x$", ylabel="$y_1$", zlabel="$y_2$")
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_major_locator(MaxNLocator(4))
    axes.set_box_aspect((1.5, 1.0, 1.0), zoom=1.05)
    axes.view_init(elev=18, azim=-62)


@torch.no_grad()
def _curve(model: LatentModel, x: float | None) -> Tensor:
    """The manifold as a smooth closed line, ``[points, 2]``, on the CPU."""
    points = model.on_grid(periodic_grid(_CURVE_POINTS - 1)).manifold(_condition(model, x)).cpu()
    return torch.cat([points, points[:1]])


def _condition(model: LatentModel, x: float | None) -> Tensor | None:
    return None if x is None else torch.as_tensor(x).to(model.z)


def _observations(data: Dataset, x: float | None) -> Tensor:
    y = data.y.cpu()
    return y if data.x is None or x is None else y[(data.x.cpu() - x).abs() < 0.025]


def _beta_name(beta: float) -> str:
    return r"$\beta = \infty$" if beta == math.inf else rf"$\beta = {beta:g}$"


def _tick(value: float, _: object) -> str:
    """Three digits; the least of a cold map is zero but for the plane's own resolution."""
    return f"{value:.3g}" if value >= 0.01 else "0"


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
