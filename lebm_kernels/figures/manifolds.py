"""Manifolds and observations: the ellipse in the plane, the horn in space."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from lebm_kernels.figures.drawing import (
    CURVE_POINTS,
    DATA,
    MANIFOLD,
    angle_ticks,
    legend_below,
    manifold_curve,
    new_figure,
    plane_axes,
    spaced,
)
from lebm_kernels.models.decoders import circle
from lebm_kernels.models.latent_model import LatentModel
from lebm_kernels.training.datasets import Dataset, horn_radii
from lebm_kernels.training.loop import mean_free_energy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SECTIONS = 9


def manifold_figure(
    untrained: LatentModel,
    trained: LatentModel,
    data: Dataset,
    *,
    titles: tuple[str, str] = ("Untrained", "Trained"),
) -> Figure:
    """The manifold before and after training, side by side, with the data.

    An unconditional model is drawn in the plane, with its decoded grid. A conditional model is
    drawn in space, as sections over the range of the data's x.

    Args:
        untrained: the model before training.
        trained: the model after training.
        data: the observations.
        titles: of the two panels; the mean of F is appended.

    Raises:
        ValueError: only one of the models is conditional, or the data lack x or have an unwanted x.
    """
    if untrained.conditional != trained.conditional:
        raise ValueError(
            f"untrained and trained must both be conditional or both not, "
            f"got {type(untrained).__name__} and {type(trained).__name__}"
        )
    if trained.conditional != (data.x is not None):
        expected = "conditions x" if trained.conditional else "no conditions x"
        raise ValueError(f"data must have {expected} for {type(trained).__name__}")
    figure = new_figure(11.0, 4.8)
    panels = zip(titles, (untrained, trained), strict=True)
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
    legend_below(figure, first)
    figure.suptitle(f"{type(trained).__name__}: manifold and observations")
    return figure


def horn_data_figure(data: Dataset) -> Figure:
    """The observations of the horn in space, with the true ellipses at five conditions.

    Args:
        data: observations in the plane, with their conditions.

    Raises:
        ValueError: the data have no conditions x.
    """
    if data.x is None:
        raise ValueError("data must have conditions x for the horn, got None")
    figure = new_figure(7.4, 5.4)
    axes = figure.add_subplot(projection="3d")
    _scatter_horn(axes, data)
    conditions = spaced(0.0, 1.0, 5)
    angle = spaced(0.0, 2.0 * math.pi, CURVE_POINTS)
    for x, radii in zip(conditions.tolist(), horn_radii(conditions), strict=True):
        y = (radii * circle(angle)).unbind(1)
        label = "without noise" if x == 0.0 else None
        axes.plot(torch.full_like(angle, x), *y, color="black", lw=1.0, label=label)
    _horn_axes(axes, zoom=1.25)
    axes.set_title(f"Horn: {len(data)} observations $y$ by condition $x$")
    legend_below(figure, axes)
    return figure


def horn_points_figure(
    untrained: LatentModel, trained: LatentModel, data: Dataset, *, sections: int = 51
) -> Figure:
    """The decoded grid at equally spaced conditions of [0, 1], before and after training.

    Args:
        untrained: a conditional model before training.
        trained: the model after training.
        data: the observations, which set the scale of the axes and the mean of F in the titles.
        sections: number of conditions, at least 2.

    Raises:
        ValueError: a model isn't conditional.
    """
    figure = new_figure(11.0, 5.0)
    x = spaced(0.0, 1.0, sections)
    half = float(data.y.abs().max())
    panels = []
    for i, (title, model) in enumerate((("Untrained", untrained), ("Trained", trained))):
        axes = figure.add_subplot(1, 2, i + 1, projection="3d")
        with torch.no_grad():
            y = model.manifold(x.to(model.z)).cpu().flatten(0, 1)
        z = model.z.cpu().repeat(sections)
        # Rasterized, because thousands of points would make an SVG large.
        shown = axes.scatter(
            x.repeat_interleave(len(model.z)),
            y[:, 0],
            y[:, 1],
            c=z,
            s=6,
            lw=0.15,
            edgecolors="0.35",
            cmap="twilight_shifted",
            vmin=0.0,
            vmax=2.0 * math.pi,
            depthshade=False,
            rasterized=True,
        )
        _horn_axes(axes)
        axes.set(ylim=(-half, half), zlim=(-half, half))
        energy = mean_free_energy(model, data)
        axes.set_title(f"{title}: mean $F_\\infty$ = {energy:.3g}")
        panels.append(axes)
    bar = figure.colorbar(shown, ax=panels, shrink=0.7, label="latent $z$ (rad)")
    places, names = angle_ticks()
    bar.set_ticks(places, labels=names)
    name = type(trained).__name__
    figure.suptitle(f"{name}: manifold at {sections} conditions $\\times$ {len(trained.z)} latents")
    return figure


def _draw_ellipse(axes: Any, model: LatentModel, data: Dataset) -> None:
    curve = manifold_curve(model)
    points = model.manifold().detach().cpu()
    axes.plot(curve[:, 0], curve[:, 1], color=MANIFOLD, lw=1.0, label="manifold")
    axes.plot(points[:, 0], points[:, 1], ".", color=MANIFOLD, ms=5, label="latent grid")
    axes.plot(*data.y.cpu().unbind(1), "o", ms=5, mfc="none", mec=DATA, label="observations")
    plane_axes(axes)


def _draw_horn(axes: Any, model: LatentModel, data: Dataset) -> None:
    assert data.x is not None  # checked by the caller
    x = data.x.cpu()
    _scatter_horn(axes, data)
    for i, section in enumerate(spaced(float(x.min()), float(x.max()), _SECTIONS).tolist()):
        curve = manifold_curve(model, section)
        axes.plot(
            torch.full_like(curve[:, 0], section),
            curve[:, 0],
            curve[:, 1],
            color=MANIFOLD,
            lw=1.5,
            label="manifold" if i == 0 else None,
        )
    _horn_axes(axes)


def _horn_axes(axes: Any, zoom: float = 1.05) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel="$x$", ylabel="$y_1$", zlabel="$y_2$")
    axes.patch.set_visible(False)  # it would hide the label of the next panel
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_major_locator(MaxNLocator(4))
    axes.set_box_aspect((1.5, 1.0, 1.0), zoom=zoom)
    axes.view_init(elev=18, azim=-62)


def _scatter_horn(axes: Any, data: Dataset) -> None:
    assert data.x is not None  # checked by the caller
    y = data.y.cpu().unbind(1)
    style = {"s": 7, "color": DATA, "alpha": 0.5, "lw": 0, "rasterized": True}
    axes.scatter(data.x.cpu(), *y, label="observations", **style)
