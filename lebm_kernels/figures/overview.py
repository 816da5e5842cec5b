"""The overview of the package: F from cold to hot, and the matrix that is never stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from lebm_kernels.extras import needs
from lebm_kernels.figures.drawing import (
    COLOR_MAP,
    DATA,
    MANIFOLD,
    angle_ticks,
    beta_name,
    free_energy_at,
    legend_below,
    manifold_curve,
    new_figure,
    plane_axes,
    spaced,
)
from lebm_kernels.models.latent_model import LatentModel
from lebm_kernels.training.datasets import Dataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAP_POINTS = 121
_LEVELS = 13

#: Queries and latents of the tile in the drawing.
_TILE = (4, 12)


def overview_figure(
    model: LatentModel, data: Dataset, betas: Sequence[float] = (math.inf, 1.0, 0.0)
) -> Figure:
    """Maps of F at some temperatures, and the matrix of energies that F reduces.

    Args:
        model: unconditional, of observations in the plane, with an angle as its latent.
        data: the observations, at least one.
        betas: inverse temperatures in [0, inf], cold, warm and hot.

    Raises:
        ValueError: the model is conditional.
    """
    with needs("figures"):
        from matplotlib.colors import PowerNorm

    figure = new_figure(2.6 * len(betas) + 3.8, 3.6)
    parts = figure.subfigures(1, 2, squeeze=False, width_ratios=[2.6 * len(betas), 3.8])
    maps, matrix = parts[0]
    half = 1.4 * float(manifold_curve(model).abs().max())
    # All panels share one scale, because F of a point rises from panel to panel.
    side = spaced(-half, half, _MAP_POINTS)
    plane = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1)
    values = [free_energy_at(model, plane.flatten(0, 1), beta) for beta in betas]
    high = float(torch.stack(values).max())
    levels = (high * spaced(0.0, 1.0, _LEVELS).double() ** 2).tolist()
    norm = PowerNorm(0.5, vmin=0.0, vmax=high)
    panels = maps.subplots(1, len(betas), sharey=True, squeeze=False)[0]
    words = {math.inf: "minimum", 0.0: "mean"}
    for axes, beta, value in zip(panels, betas, values, strict=True):
        field = value.reshape(plane.shape[:-1])
        filled = axes.contourf(side, side, field, levels=levels, norm=norm, cmap=COLOR_MAP)
        axes.contour(filled, colors="white", linewidths=0.4, alpha=0.6)
        curve = manifold_curve(model)
        axes.plot(curve[:, 0], curve[:, 1], color=MANIFOLD, lw=1.8, label="decoded latents")
        axes.plot(*data.y.cpu().unbind(1), "o", ms=4, mfc="white", mec=DATA, label="observations")
        plane_axes(axes, f"{beta_name(beta)}: {words.get(beta, 'marginal')}")
        axes.label_outer()
    bar = maps.colorbar(filled, ax=list(panels), shrink=0.75, label=r"free energy $F_\beta(y)$")
    bar.set_ticks(levels[::3], labels=[f"{level:.2g}" for level in levels[::3]])
    legend_below(maps, panels[0])
    _draw_matrix(matrix, model, data)
    return figure


def _draw_matrix(figure: Any, model: LatentModel, data: Dataset) -> None:
    """The energies of all pairs, and F as one more column."""
    from matplotlib.colors import PowerNorm
    from matplotlib.patches import Rectangle

    y = data.y.to(model.z)
    y = y[torch.atan2(y[:, 1], y[:, 0]).remainder(2.0 * math.pi).argsort()]
    with torch.no_grad():
        energy = (y[:, None] - model.manifold()).square().sum(-1).cpu().numpy()
    value = free_energy_at(model, y, math.inf).numpy()
    (M, N), turn = energy.shape, 2.0 * math.pi
    matrix, column = figure.subplots(1, 2, sharey=True, width_ratios=[12.0, 1.0])
    style = {"aspect": "auto", "cmap": COLOR_MAP, "norm": PowerNorm(0.5, 0.0, float(energy.max()))}
    matrix.imshow(energy, extent=(0.0, turn, M, 0.0), **style)
    column.imshow(value[:, None], extent=(0.0, 1.0, M, 0.0), **style)
    rows, columns = _TILE
    corner = (turn * (N - columns) / (2 * N), float((M - rows) // 2))
    size = (turn * columns / N, float(rows))
    matrix.add_patch(Rectangle(corner, *size, fill=False, ec=MANIFOLD, lw=2.5))
    white = {"boxstyle": "round", "fc": "white", "ec": "none", "alpha": 0.85}
    text = {"ha": "center", "va": "center", "bbox": white}
    middle = corner[0] + size[0] / 2
    matrix.text(middle, corner[1] - 0.1 * M, "one tile at a time", color=MANIFOLD, **text)
    matrix.text(middle, 0.88 * M, rf"{M} $\times$ {N} energies: never stored", **text)
    matrix.set(title="energies $E(y, z)$", xlabel="latent $z$ (rad)", ylabel="observation $y$")
    places, names = angle_ticks()
    matrix.set_xticks(places, labels=names)
    column.set_title(r"$F_\infty$")
    column.set_xticks([])
    column.tick_params(left=False)
