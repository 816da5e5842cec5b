"""Figures of what ``lebm bench`` measured: a line a provider, a panel a direction.

Each takes the records of a run and returns None where they hold no two points along its axis.
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

#: No error at all has no place on a logarithmic axis.
_LEAST_ERROR = 0.01

#: The colour of each provider, the same in every figure of every run.
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
    "KeOps": "#D55E00",
    "GeomLoss": "#999933",
    "JAX": "#332288",
    "attention's log-sum-exp": "#777777",
    "KernelDensity": "#AA44DD",
    "FlashSinkhorn": "#44CCAA",
}

#: The fields that say which case on how many threads it is.
_CASE = ("M", "N", "D", "beta", "dtype", "layout", "device", "threads")


def throughput_figure(records: Sequence[Record]) -> Figure | None:
    """Pairs a second against the number of latents."""
    return _figure(records, "N", "latents N", "pairs_per_second", "pairs / s")


def memory_figure(records: Sequence[Record]) -> Figure | None:
    """Peak memory beyond inputs and outputs against the number of latents."""
    return _figure(records, "N", "latents N", "peak_bytes", "peak memory, MiB", 2.0**-20)


def dimensions_figure(records: Sequence[Record]) -> Figure | None:
    """The time of a step against the numbers in a query."""
    return _figure(records, "D", "dimensions D", "median", "time, ms", 1e3)


def temperature_figure(records: Sequence[Record]) -> Figure | None:
    """The time of a step against beta: where it is cold, latents can be left out."""
    return _figure(records, "beta", r"inverse temperature $\beta$", "median", "time, ms", 1e3)


def threads_figure(records: Sequence[Record]) -> Figure | None:
    """Pairs a second against the number of threads."""
    return _figure(records, "threads", "threads", "pairs_per_second", "pairs / s")


def accuracy_figure(betas: Sequence[float], errors: Mapping[str, Sequence[float]]) -> Figure:
    """The error of F by beta, hot to cold, a line for each name; 0 and infinity at the ends."""
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
        ylabel="ulp of the promise's scale",
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


#: By the name of the file that a figure is saved as.
FIGURES = {
    "throughput": throughput_figure,
    "memory": memory_figure,
    "dimensions": dimensions_figure,
    "temperature": temperature_figure,
    "threads": threads_figure,
}


def along(records: Sequence[Record], axis: str, value: str) -> dict[str, list[Record]]:
    """The records to draw along a case's axis, by ``backward``.

    Of the cases that differ in nothing but the axis, the largest set; only finite places on the
    axis, and records that have the value.
    """
    names = [field.name for field in fields(Record) if field.name in _CASE and field.name != axis]
    sets: dict[str, dict[Any, list[Record]]] = {}
    for record in records:
        place = getattr(record, axis)
        if getattr(record, value) is not None and 0 < place < float("inf"):
            rest = tuple(getattr(record, name) for name in names)
            sets.setdefault(record.backward, {}).setdefault(rest, []).append(record)

    def places(rows: list[Record]) -> int:
        return len({getattr(row, axis) for row in rows})

    largest = {backward: max(by_rest.values(), key=places) for backward, by_rest in sets.items()}
    return {backward: rows for backward, rows in largest.items() if places(rows) > 1}


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
            if len(own) > 1:  # one point is no line along the axis
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
    figure.suptitle(_what(first, axis))
    figure.legend(
        list(drawn.values()),
        list(drawn),
        loc="outside lower center",
        ncols=1 + len(panels),
        frameon=False,
    )
    return figure


def _styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How to draw the line of each provider; unknown ones come after those that are known."""
    order = list(dict.fromkeys((*PROVIDER_COLORS, *names)))
    styles = {name: line_style(number) for number, name in enumerate(order)}
    for name, color in PROVIDER_COLORS.items():
        styles[name]["color"] = color
    return {name: styles[name] for name in names}


def _what(record: Record, axis: str) -> str:
    """All of the case but the axis."""
    parts = [f"{name} = {getattr(record, name):g}" for name in ("M", "N", "D") if name != axis]
    if axis != "beta":
        parts.append(rf"$\beta$ = {record.beta:g}")
    parts.append(record.dtype)
    if record.layout != "normal":
        parts.append(f"on a {record.layout}")
    if axis != "threads":
        parts.append(f"{record.threads} thread{'s' if record.threads > 1 else ''}")
    return ", ".join(parts)
