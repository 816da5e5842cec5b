"""Latents and observations: energies by latent, restored points, pulls, and latent maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lebm_kernels.extras import needs
from lebm_kernels.figures.drawing import (
    COLOR_MAP,
    CURVE_POINTS,
    DATA,
    MANIFOLD,
    Y_CHECK,
    Z_CHECK,
    angle_ticks,
    beta_name,
    legend_below,
    manifold_curve,
    new_figure,
    plane_axes,
    spaced,
)
from lebm_kernels.functional import softargmin
from lebm_kernels.models.gtm import restore
from lebm_kernels.models.inference import infer_on_grid
from lebm_kernels.models.latent_model import DecoderModel, LatentModel
from lebm_kernels.reference import energies
from lebm_kernels.training.datasets import Dataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 6


def energy_curves_figure(model: LatentModel, data: Dataset) -> Figure:
    """E(y, z) of each observation over a full turn of z, with the minimum on the grid.

    Args:
        model: unconditional, with an angle as its latent.
        data: the observations, one panel each.

    Raises:
        ValueError: the model is conditional.
    """
    rows = -(-len(data) // _COLUMNS)
    figure = new_figure(11.0, 1.75 * rows + 0.6)
    panels = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False).flatten()
    y = data.to(model.z).y
    z = spaced(0.0, 2.0 * math.pi, CURVE_POINTS)
    with torch.no_grad():
        energy = energies(y, model.decode(z.to(model.z))).cpu()
    best = infer_on_grid(model, y)
    for i, axes in enumerate(panels[: len(data)]):
        axes.plot(z, energy[i], color=DATA, label="$E(y, z)$")
        minimum = (float(best.z[i]), float(best.energy[i]))
        label = rf"${Z_CHECK}$ of least energy: $F_\infty(y) = E(y, {Z_CHECK})$"
        axes.plot(*minimum, "X", color=MANIFOLD, ms=7, mec="white", mew=0.5, label=label)
        axes.set_title(rf"$Y[{i}]$: $F_\infty$ = {minimum[1]:.2f}", fontsize="medium")
        axes.set_xticks(*angle_ticks())
        axes.grid(alpha=0.3)
    for axes in panels[len(data) :]:
        axes.remove()
    panels[0].set_ylim(0.0, 1.08 * float(energy.max()))
    for axes in panels[max(len(data) - _COLUMNS, 0) : len(data)]:
        axes.set_xlabel("$z$ (rad)")
    figure.supylabel("energy $E(y, z)$")
    figure.suptitle(f"Energy of {len(data)} observations by latent")
    legend_below(figure, panels[0])
    return figure


def restored_figure(model: LatentModel, y: Tensor) -> Figure:
    """Points of the plane, each joined to y_check, the nearest decoded point of the grid.

    Args:
        model: unconditional, of observations in the plane.
        y: the points, ``[M, 2]``.

    Raises:
        ValueError: the model is conditional.
    """
    with needs("figures"):
        from matplotlib.collections import LineCollection

    figure = new_figure(8.2, 5.8)
    axes = figure.add_subplot()
    restored = infer_on_grid(model, y.to(model.z)).y.cpu()
    lines = torch.stack((y.cpu(), restored), dim=1).numpy()
    axes.add_collection(LineCollection(list(lines), colors="0.6", linewidths=0.6))
    axes.plot(*y.cpu().unbind(1), ".", color=DATA, ms=4, label="$y$")
    curve = manifold_curve(model)
    axes.plot(curve[:, 0], curve[:, 1], color=MANIFOLD, lw=1.0, label="manifold")
    label = f"${Y_CHECK} = g({Z_CHECK})$"
    axes.plot(*restored.unbind(1), "o", color=MANIFOLD, ms=4, label=label)
    plane_axes(axes, f"The nearest decoded point ${Y_CHECK}$ of {len(y)} points $y$")
    legend_below(figure, axes)
    return figure


def likelihood_figure(
    model: LatentModel, queries: Sequence[tuple[str, Tensor]], *, beta: float = 1.0
) -> Figure:
    """exp(-beta E) of each latent of the grid, on the manifold, for a few observations.

    Args:
        model: unconditional, of observations in the plane.
        queries: name and value ``[2]`` of each observation, one panel each.
        beta: inverse temperature, positive and finite.

    Raises:
        ValueError: the model is conditional.
    """
    figure = new_figure(4.7 * len(queries), 4.4)
    decoded = model.manifold().detach()
    curve = manifold_curve(model)
    first = None
    for i, (name, y) in enumerate(queries):
        axes = figure.add_subplot(1, len(queries), i + 1, sharex=first, sharey=first)
        first = first or axes
        query = y.to(decoded).unsqueeze(0)
        value = (-beta * energies(query, decoded)[0]).exp().cpu()
        axes.plot(curve[:, 0], curve[:, 1], color="0.6", lw=0.8, zorder=1)
        points = decoded.cpu()
        # Each panel has its own range, from zero, because only the ratios of the terms matter.
        shown = axes.scatter(
            points[:, 0], points[:, 1], c=value, s=34, vmin=0.0, cmap=COLOR_MAP, zorder=2
        )
        axes.plot(*y.cpu(), "X", color=MANIFOLD, ms=10, mec="white", label="$y$")
        factor = "" if beta == 1.0 else rf"{beta:g}\,"
        label = rf"$\exp(-{factor}E(y, z))$"
        figure.colorbar(shown, ax=axes, orientation="horizontal", shrink=0.9, label=label)
        free = model.free_energy(query, beta=beta).item()
        plane_axes(axes, rf"$y$ = {name}: $F_{{{beta:g}}}$ = {free:.3g}")
        axes.margins(0.12)
    figure.suptitle("Each latent's term in the free energy")
    if first is not None:
        first.legend(loc="lower left", fontsize="small")
    return figure


def pulls_figure(
    panels: Sequence[tuple[str, LatentModel, float]], data: Dataset, *, chosen: int
) -> Figure:
    """How the observations pull the manifold: arrows averaged with the posterior weights.

    For the chosen observation, an arrow to it from each decoded latent is drawn, with the posterior
    weight p(z) as its colour. For every observation, the average of its arrows is drawn: it starts
    at the posterior mean of the decoded points, and equals half of dF/dy. The chosen observation's
    average is heavy.

    Args:
        panels: title, unconditional model and inverse temperature of each panel, two per row.
        data: the observations.
        chosen: index of the observation whose arrows from all latents are drawn.

    Raises:
        ValueError: a model is conditional.
    """
    rows = -(-len(panels) // 2)
    figure = new_figure(11.0, 3.7 * rows + 0.6)
    figure.set_layout_engine("constrained", h_pad=0.1)  # room between the rows for titles
    first: Any = None
    shown: Any = None
    all_axes = []
    for i, (title, model, beta) in enumerate(panels):
        axes = figure.add_subplot(rows, 2, i + 1, sharex=first, sharey=first)
        first = first or axes
        all_axes.append(axes)
        shown = _draw_pulls(axes, model, beta, data, chosen)
        plane_axes(axes, f"{title}, {beta_name(beta)}")
        axes.label_outer()
    label = f"posterior $p(z)$ of $Y[{chosen}]$, relative to its largest"
    figure.colorbar(shown, ax=all_axes, shrink=0.6, label=label)
    figure.suptitle("Observations pull the manifold")
    legend_below(figure, first)
    return figure


def _draw_pulls(axes: Any, model: LatentModel, beta: float, data: Dataset, chosen: int) -> Any:
    y = data.to(model.z).y
    with torch.no_grad():
        decoded = model.manifold()
        p = softargmin(energies(y, decoded), beta, -1, log_weight=model.log_weight)
        mean = (p @ decoded).cpu()
    decoded, p, y = decoded.cpu(), p[chosen].cpu(), y.cpu()
    style = {"angles": "xy", "scale_units": "xy", "scale": 1.0}
    # Faint arrows first, so that the dark ones lie on top.
    order = p.argsort()[p.sort().values > 1e-3 * p.max()]
    start = decoded[order]
    shown = axes.quiver(
        *start.unbind(1),
        *(y[chosen] - start).unbind(1),
        (p / p.max())[order],
        cmap="Greys",
        clim=(0.0, 1.0),
        width=0.003,
        **style,
    )
    curve = manifold_curve(model)
    axes.plot(curve[:, 0], curve[:, 1], color=MANIFOLD, lw=1.0, label="manifold")
    axes.plot(*decoded.unbind(1), ".", color=MANIFOLD, ms=4)
    axes.quiver(*mean.unbind(1), *(y - mean).unbind(1), color=DATA, width=0.004, **style)
    axes.quiver(*mean[chosen], *(y - mean)[chosen], color=MANIFOLD, width=0.008, **style)
    label = r"$\sum_z\; p(z)\,g(z)$, where the average arrow starts"
    axes.plot(*mean.unbind(1), "x", color="black", ms=5, label=label)
    axes.plot(*y.unbind(1), "o", ms=5, mfc="white", mec=DATA, label="observations")
    axes.plot(*y[chosen], "P", ms=10, color=DATA, mec="white", label=f"$Y[{chosen}]$")
    return shown


def latent_map_figure(model: LatentModel, data: Dataset, label: Tensor) -> Figure:
    """Observations in a latent plane: each one's label at the mode of its posterior.

    Args:
        model: unconditional, with a latent grid of two dimensions; cold without a learned beta.
        data: the observations, ``[num, D]``.
        label: a digit for each observation, ``[num]``, which sets the colour and the mark.

    Raises:
        ValueError: the latent grid is not of two dimensions.
    """
    if model.grid.dim != 2:
        raise ValueError(f"model must have a latent grid of 2 dimensions, got {model.grid.dim}")
    figure = new_figure(6.4, 6.0)
    axes = figure.add_subplot()
    beta = math.inf if model.beta is None else model.beta.detach()
    with torch.no_grad():
        index = model.posterior(data.to(model.z).y, beta=beta).index
    z = model.z[index].cpu()
    # Marks at one latent would cover each other: spread them over its cell.
    side = (z.amax(0) - z.amin(0)) / math.sqrt(len(model.z))
    generator = torch.Generator().manual_seed(0)
    place = torch.rand(z.shape, generator=generator, dtype=z.dtype, device="cpu")
    z = z + side * (place - 0.5)
    for digit in label.unique().tolist():
        chosen = z[label == digit]
        color = f"C{digit % 10}"
        axes.scatter(chosen[:, 0], chosen[:, 1], marker=f"${digit}$", s=24, lw=0, color=color)
    axes.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal", title="observations by latent")
    return figure


def restored_images_figure(
    model: DecoderModel, y: Tensor, *, noise: float, generator: torch.Generator | None = None
) -> Figure:
    """Noisy images, and images with a hidden lower half, restored by the posterior mean.

    Args:
        model: a topographic mapping of images, with a learned beta.
        y: square images, ``[num, D]``, one column of the figure each.
        noise: standard deviation of the added noise, in units of ``y``.
        generator: source of the noise; the global generator if absent.

    Raises:
        ValueError: D is not a square.
    """
    num, D = y.shape
    side = math.isqrt(D)
    if side * side != D:
        raise ValueError(f"y must hold square images, got {D} numbers each")
    noisy = y + noise * torch.randn(y.shape, generator=generator, dtype=y.dtype, device=y.device)
    seen = torch.arange(D, device=y.device) < D - D // 2
    low, high = float(y.min()), float(y.max())
    rows = {
        "image": y,
        "with noise": noisy,
        "restored": restore(model, noisy),
        "lower half hidden": torch.where(seen, y, low),
        "restored ": restore(model, y, seen),
    }
    figure = new_figure(0.8 * num + 1.2, 0.85 * len(rows) + 0.5)
    axes = figure.subplots(len(rows), num, squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for place, image in zip(line, images.cpu().view(num, side, side).numpy(), strict=True):
            place.imshow(image, cmap="gray_r", vmin=low, vmax=high)
            place.set(xticks=[], yticks=[])
        line[0].set_ylabel(name.strip(), rotation=0, ha="right", va="center")
    figure.suptitle("Images restored by the posterior mean")
    return figure
