"""Figures of the results of ``lebm bench``: a line for each provider, a panel for each direction.

Each function takes the records of a run. It returns None if there is no line to draw, because no
two cases differ along its axis only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from lebm_kernels.benchmarks.sweeps import Record
from lebm_kernels.diagnostics.promise import ROUNDINGS
from lebm_kernels.figures.drawing import line_style, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Smaller errors are drawn at this value, because a logarithmic axis has no zero.
_LEAST_ERROR = 0.01

#: The colour of each provider, in every figure.
PROVIDER_COLORS = {
    "native": "#0072B2",
    "triton": "#56B4E9",
    "chunked": "#009E73",
    "reference": "#000000",
    "eager, expansion (mm)": "#CC79A7",
    "eager, differences": "#E69F00",
    "eager, cdist": "#882255",
    "torch.compile, expansion (mm)": "#F0A3A3",
    "torch.compile, unrolled": "#661100",
    "torch.compile, differences": "#DDCC77",
    "KeOps": "#D55E00",
    "GeomLoss": "#999933",
    "JAX": "#332288",
    "attention's log-sum-exp": "#777777",
    "KernelDensity": "#AA44DD",
    "FlashSinkhorn": "#44CCAA",
}

#: The fields of a record that describe the case and the number of threads.
_CASE = ("M", "N", "D", "beta", "dtype", "layout", "device", "threads")


def throughput_figure(records: Sequence[Record]) -> Figure | None:
    """Pairs per second against the number of latents."""
    return _figure(records, "N", "latents N", "pairs_per_second", "pairs / s")


def memory_figure(records: Sequence[Record]) -> Figure | None:
    """Peak memory beyond inputs and outputs against the number of latents."""
    return _figure(records, "N", "latents N", "peak_bytes", "peak memory, MiB", 2.0**-20)


def dimensions_figure(records: Sequence[Record]) -> Figure | None:
    """The time of a step against the number of dimensions."""
    return _figure(records, "D", "dimensions D", "median", "time, ms", 1e3)


def temperature_figure(records: Sequence[Record]) -> Figure | None:
    """The time of a step against beta: cold cases are faster, because latents are pruned."""
    return _figure(records, "beta", r"inverse temperature $\beta$", "median", "time, ms", 1e3)


def threads_figure(records: Sequence[Record]) -> Figure | None:
    """Pairs per second against the number of threads."""
    return _figure(records, "threads", "threads", "pairs_per_second", "pairs / s")


def accuracy_figure(betas: Sequence[float], errors: Mapping[str, Sequence[float]]) -> Figure:
    """The error of F against beta, from 0 (hot) to infinity (cold), a line for each name.

    Args:
        betas: inverse temperatures, in increasing order.
        errors: for each name the largest error at each beta, in ulps of the promise's scale.
    """
    figure = new_figure(8.0, 5.0)
    axes = figure.subplots()
    places = range(len(betas))
    for number, (name, line) in enumerate(errors.items()):
        axes.plot(places, [max(x, _LEAST_ERROR) for x in line], label=name, **line_style(number))
    axes.axhline(ROUNDINGS, color="0.4", linewidth=1)
    axes.annotate("promised", (0, ROUNDINGS), (2, 3), textcoords="offset points", color="0.3")
    axes.set_yscale("log")
    names = ["∞" if b == math.inf else f"{b:.0e}" if b else "0" for b in betas]
    shown = [i for i in places if i in (0, len(betas) - 1) or i % 6 == 4]
    axes.set_xticks(shown, [names[i] for i in shown])
    axes.set(
        title="largest error of F in float32: near, far and offset data",
        xlabel=r"inverse temperature $\beta$",
        ylabel="error, ulps of the promise's scale",
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


#: The figures by the name of the file that they are saved to.
FIGURES = {
    "throughput": throughput_figure,
    "memory": memory_figure,
    "dimensions": dimensions_figure,
    "temperature": temperature_figure,
    "threads": threads_figure,
}


def along(records: Sequence[Record], axis: str, value: str) -> dict[str, list[Record]]:
    """The records to draw along an axis, for each value of ``backward``.

    These are the largest set of records whose cases differ only along the axis. Records without the
    value, and records at zero or infinity on the axis, are excluded.

    Args:
        records: of a run.
        axis: the field of the horizontal axis.
        value: the field of the vertical axis.
    """
    names = [field.name for field in fields(Record) if field.name in _CASE and field.name != axis]
    sets: dict[str, dict[Any, list[Record]]] = {}
    for record in records:
        if getattr(record, value) is not None and 0 < getattr(record, axis) < math.inf:
            rest_of_case = tuple(getattr(record, name) for name in names)
            sets.setdefault(record.backward, {}).setdefault(rest_of_case, []).append(record)

    def num_places(rows: list[Record]) -> int:
        return len({getattr(row, axis) for row in rows})

    largest = {backward: max(cases.values(), key=num_places) for backward, cases in sets.items()}
    return {backward: rows for backward, rows in largest.items() if num_places(rows) > 1}


def _figure(
    records: Sequence[Record], axis: str, label: str, value: str, unit: str, factor: float = 1.0
) -> Figure | None:
    panels = along(records, axis, value)
    if not panels:
        return None
    styles = _styles(dict.fromkeys(record.provider for record in records))
    figure = new_figure(1.5 + 4.5 * len(panels), 4.8)
    drawn: dict[str, Any] = {}
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (backward, rows) in zip(all_axes, panels.items(), strict=True):
        for name, style in styles.items():
            own = sorted((r for r in rows if r.provider == name), key=lambda r: getattr(r, axis))
            if len(own) > 1:  # one point makes no line
                x = [getattr(row, axis) for row in own]
                y = [getattr(row, value) * factor for row in own]
                (drawn[name],) = axes.plot(x, y, label=name, **style)
        direction = f"forward + backward ({backward.replace('+', ', ')})" if backward else "forward"
        axes.set(title=direction, xlabel=label)
        axes.set_xscale("log", base=10 if axis == "beta" else 2)
        axes.set_yscale("symlog" if value == "peak_bytes" else "log")
        axes.grid(alpha=0.3)
        if axis in ("D", "threads"):
            ticks = sorted({getattr(row, axis) for row in rows})
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.minorticks_off()
    all_axes[0].set_ylabel(unit)
    first = next(iter(panels.values()))[0]
    figure.suptitle(_describe_case(first, axis))
    figure.legend(
        list(drawn.values()),
        list(drawn),
        loc="outside lower center",
        ncols=1 + len(panels),
        frameon=False,
    )
    return figure


def _styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The line style of each provider; those without a colour of their own come last."""
    order = list(dict.fromkeys((*PROVIDER_COLORS, *names)))
    styles = {name: line_style(number) for number, name in enumerate(order)}
    for name, color in PROVIDER_COLORS.items():
        styles[name]["color"] = color
    return {name: styles[name] for name in names}


def _describe_case(record: Record, axis: str) -> str:
    """The case in words, without the field of the axis."""
    parts = [f"{name} = {getattr(record, name):g}" for name in ("M", "N", "D") if name != axis]
    if axis != "beta":
        parts.append(rf"$\beta$ = {record.beta:g}")
    parts.append(record.dtype)
    if record.layout != "normal":
        parts.append(f"on a {record.layout}")
    if axis != "threads":
        parts.append(f"{record.threads} thread{'s' if record.threads > 1 else ''}")
    return ", ".join(parts)
