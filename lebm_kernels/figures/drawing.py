"""Shared by the figures: colours, line styles, axes, legends, ticks, and a manifold's curve."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lebm_kernels.extras import needs
from lebm_kernels.models.grids import periodic_grid
from lebm_kernels.models.latent_model import LatentModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# From Okabe and Ito's palette: they differ for colour-blind readers and in grey.
DATA = "#0072B2"
MANIFOLD = "#D55E00"
COLOR_MAP = "cividis"

#: For figures with many lines: the whole palette, with marks and dashes, so that no two styles of
#: :func:`line_style` look alike in grey.
_PALETTE = (DATA, MANIFOLD, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = "osD^vPX<>*hdp"
_DASHES = ("-", "--", ":", "-.")

# Letters with a combining caron, because mathtext's own \check is not centred on the letter.
Y_CHECK = "y\u030c"
Z_CHECK = "z\u030c"

#: Points of a curve over a full turn of the latent, both ends included.
CURVE_POINTS = 241


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, with its size in inches, that arranges its axes itself."""
    with needs("figures"):
        from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def spaced(low: float, high: float, num: int) -> Tensor:
    """Equally spaced numbers from ``low`` to ``high``, ``[num]``, on the CPU: places to draw at."""
    return torch.linspace(low, high, num, dtype=torch.float32, device="cpu")


def line_style(number: int) -> dict[str, Any]:
    """The style of a numbered line: styles differ in colour, mark and dash."""
    return {
        "color": _PALETTE[number % len(_PALETTE)],
        "marker": _MARKS[number % len(_MARKS)],
        "linestyle": _DASHES[number % len(_DASHES)],
        "markersize": 5,
        "linewidth": 1.4,
    }


@torch.no_grad()
def manifold_curve(model: LatentModel, x: float | None = None) -> Tensor:
    """The manifold as a smooth closed line, ``[CURVE_POINTS, 2]``, on the CPU."""
    grid = periodic_grid(CURVE_POINTS - 1, dtype=model.z.dtype, device=model.z.device)
    points = model.on_grid(grid).manifold(as_condition(model, x)).cpu()
    return torch.cat([points, points[:1]])


@torch.no_grad()
def free_energy_at(model: LatentModel, y: Tensor, beta: float) -> Tensor:
    """F ``[M]`` of points ``[M, 2]``, on the CPU."""
    return model.free_energy(y.to(model.z), beta=beta).cpu()


def as_condition(model: LatentModel, x: float | None) -> Tensor | None:
    """The condition as a scalar tensor of the model's dtype and device."""
    return None if x is None else model.z.new_tensor(x)


def beta_name(beta: float) -> str:
    """An inverse temperature, for a title."""
    return r"$\beta = \infty$" if beta == math.inf else rf"$\beta = {beta:g}$"


def tick(value: float, _: object) -> str:
    """A tick with three digits; below 0.01 it is 0, as F of a cold map is at the manifold."""
    return f"{value:.3g}" if value >= 0.01 else "0"


def plane_axes(axes: Any, title: str = "") -> None:
    """Label axes as the plane of the observations, with one scale for both directions."""
    axes.set(title=title, xlabel="$y_1$", ylabel="$y_2$", aspect="equal")


def legend_below(figure: Figure, axes: Any) -> None:
    """Put one legend, with the marks of these axes, below the whole figure."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=max(len(labels), 1),
        markerscale=1.5,
        frameon=False,
    )


def angle_ticks() -> tuple[list[float], list[str]]:
    """Positions and labels of ticks at the quarters of a full turn."""
    names = ["0", r"$\pi/2$", r"$\pi$", r"$3\pi/2$", r"$2\pi$"]
    return [i * math.pi / 2 for i in range(len(names))], names
