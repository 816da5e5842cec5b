"""`lebm bench` checks, times and writes what it says; its records are the same in every form."""

from __future__ import annotations

import csv
import importlib.machinery
import importlib.util
import json
import math
import sys
import types
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from lebm_kernels import cli
from lebm_kernels.benchmarks import compare as benchmarking
from lebm_kernels.benchmarks import memory, providers, sweeps
from lebm_kernels.benchmarks.cases import ARGUMENTS, Case
from lebm_kernels.benchmarks.compare import Comparison, Timing, compare
from lebm_kernels.benchmarks.limits import Product
from lebm_kernels.benchmarks.sweeps import Point, default_sweep, measure, records
from lebm_kernels.figures import benchmarks as drawn

runner = CliRunner()

LIBRARIES = {
    "GeomLoss": "geomloss",
    "JAX": "jax",
    "KernelDensity": "sklearn",
    "attention's log-sum-exp": "torch",
}


def lebm(*arguments):
    return runner.invoke(cli.app, [str(argument) for argument in arguments])


def cell(value):
    return "" if value is None else str(value)


def test_a_small_bench_writes_records_that_agree(tmp_path):
    sizes = ["--queries", 5, "--latents", 7, "--latents", 17, "--dims", 2, "--beta", "inf"]
    names = ["--provider", "chunked", "--provider", "eager, cdist", "--provider", "KeOps"]
    options = ["--rounds", 2, "--threads", 1, "--out", tmp_path]
    result = lebm("bench", *sizes, *names, *options)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "bench.json").read_text())["records"]
    # Two sizes, two directions, three providers.
    assert len(rows) == 12
    assert {(row["N"], row["backward"]) for row in rows} == {
        (n, b) for n in (7, 17) for b in ("", "y+decoded")
    }
    for row in rows:
        assert (row["M"], row["D"], row["beta"], row["threads"]) == (5, 2, "inf", 1)
        if row["provider"] == "KeOps":
            assert row["failure"].startswith("not available")
            assert row["median"] is None
        else:
            assert row["failure"] == ""
            assert row["error"] < 1e-5
            assert len(row["rounds"]) == 2
            assert row["median"] == pytest.approx(sum(row["rounds"]) / 2)
            assert row["pairs_per_second"] == pytest.approx(5 * row["N"] / row["median"])
    with (tmp_path / "bench.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for row, line in zip(rows, lines, strict=True):
        row["rounds"] = " ".join(map(repr, row["rounds"]))
        assert {name: cell(value) for name, value in row.items()} == line
    for name in ("throughput", "memory"):
        for suffix in ("png", "svg"):
            assert (tmp_path / f"bench-{name}.{suffix}").stat().st_size > 1000
    assert not (tmp_path / "bench-threads.png").exists()
    assert "chunked" in result.output
    assert "KeOps: not available" in result.output


def test_a_planted_wrong_provider_is_reported_and_not_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(providers, "_cdist_energy", lambda y, g: 1.01 * torch.cdist(y, g) ** 2)
    sizes = ["--queries", 5, "--latents", 7, "--direction", "forward", "--threads", 1]
    names = ["--provider", "chunked", "--provider", "eager, cdist"]
    # Cold: the minimum of wrong energies is as wrong as they are.
    options = ["--beta", "inf", "--rounds", 1, "--out", tmp_path]
    result = lebm("bench", *sizes, *names, *options)
    assert result.exit_code == 0, result.output
    right, wrong = json.loads((tmp_path / "bench.json").read_text())["records"]
    assert right["failure"] == ""
    assert wrong["failure"].startswith("wrong: relative error")
    assert wrong["error"] == pytest.approx(0.01, rel=0.1)
    assert wrong["rounds"] == []
    assert wrong["median"] is None
    assert "eager, cdist: wrong" in result.output


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--queries", 0),
        ("--latents", -1),
        ("--dims", 0),
        ("--beta", -1),
        ("--gradients", "z"),
        ("--provider", "nobody"),
        ("--threads", 0),
        ("--rounds", 0),
        ("--budget", 0),
        ("--device", "tpu"),
    ],
)
def test_a_mistake_is_answered_by_its_option(tmp_path, option, value):
    result = lebm("bench", "--latents" if option != "--latents" else "--dims", 3, option, value,
                  "--out", tmp_path)  # fmt: skip
    assert result.exit_code == 2
    assert f"'{option}'" in result.output


@pytest.mark.parametrize("name", list(LIBRARIES))
@pytest.mark.parametrize(("D", "backward"), [(2, ()), (10, ("y",)), (3, ARGUMENTS)])
def test_a_peer_is_right_or_says_why_not(name, D, backward):
    case = Case(4, 6, D, beta=1.3, dtype=torch.float64, backward=backward)
    (timing,) = compare(case, [name], rounds=1).timings
    if importlib.util.find_spec(LIBRARIES[name]) is None:
        assert timing.failure == f"not available: {LIBRARIES[name]} is not installed"
    elif timing.failure:
        least = {"KernelDensity": (), "attention's log-sum-exp": ("y",)}[name]
        assert timing.failure.startswith("not available")
        assert set(backward) - set(least)
    else:
        assert timing.error is not None
        assert timing.error < 1e-9


def test_the_default_sweep_goes_along_every_axis_once():
    for quick in (True, False):
        points = default_sweep("cpu", quick=quick)
        assert len({(point.case, point.threads) for point in points}) == len(points)
        both = {point.case.direction for point in points}
        assert both == {"forward", "forward + backward (y, decoded)"}
        for axis in ("N", "D", "beta"):
            assert len({getattr(point.case, axis) for point in points}) >= 3
        latents = [point.case.N for point in points]
        assert latents == sorted(latents)
    names = ("chunked", "eager, cdist")
    assert {p.names for p in default_sweep("cpu", quick=True, names=names)} == {names}


def test_what_the_budget_leaves_no_time_for_is_not_begun():
    point = Point(Case(2, 3, 2), 1, ("chunked",))
    first, second = measure([point, point], rounds=1, budget=1e-9)
    assert first[1] is not None
    assert second == (point, None)


def test_the_share_is_of_the_product_where_that_bounds(monkeypatch):
    case = Case(6, 8, 32, dtype=torch.float64)
    ((_, comparison),) = measure([Point(case, 1, ("chunked",))], rounds=3)
    assert comparison is not None
    (beside,) = comparison.beside
    assert comparison.limit == 48 / beside.median
    mine = comparison.timings[0]
    assert comparison.share(mine) == pytest.approx(beside.median / mine.median)
    product = Product(case)
    product()
    inputs = case.inputs()
    wanted = inputs["y"].double() @ inputs["decoded"].double().T
    torch.testing.assert_close(product._out.double(), wanted, rtol=1e-5, atol=1e-5)


def test_peak_memory_is_that_of_the_work_and_not_of_what_it_returns():
    size = 32 << 20

    def work():
        held = torch.ones(size, dtype=torch.uint8)
        return (held[: size // 2].clone(),)

    peak = memory.peak_bytes(work)
    assert peak is not None
    assert peak == pytest.approx(size, rel=0.1)
    kept = memory.peak_bytes(lambda: (torch.ones(size, dtype=torch.uint8),))
    assert kept is not None
    assert kept < size / 10


def test_what_would_not_fit_is_not_asked_for(monkeypatch):
    case = Case(50, 60, 2)
    free = 2 * providers.needed_bytes("eager, cdist", case)
    asked = []
    monkeypatch.setattr(benchmarking, "available_bytes", lambda device: free - 1)
    monkeypatch.setattr(providers, "_cdist_energy", lambda y, g: asked.append(1))
    refused, ours = compare(case, ["eager, cdist", "chunked"], rounds=1).timings
    assert refused.failure.startswith("out of memory: skipped")
    assert asked == []
    assert ours.failure == ""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("full"),
        torch.OutOfMemoryError("full"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_is_reported_as_such(monkeypatch, error):
    def prepare(case):
        raise error

    monkeypatch.setattr(benchmarking, "providers", lambda device: {"full": prepare})
    (timing,) = compare(Case(2, 3, 2), rounds=1).timings
    assert timing.failure.startswith("out of memory")


def timed(case, threads, seconds):
    comparison = Comparison(case, (Timing("ours", [seconds], error=0.0, peak_bytes=1 << 20),))
    return records(Point(case, threads, ("ours",)), comparison)


def test_a_provider_has_one_colour_whoever_else_is_drawn():
    every = list(providers.providers("cpu"))
    assert set(every) <= set(drawn.PROVIDER_COLORS)
    colors = list(drawn.PROVIDER_COLORS.values())
    assert len({color.lower() for color in colors}) == len(colors)
    styles = drawn._styles([*reversed(every), "another"])
    for name in every:
        assert styles[name] == drawn._styles([name])[name]
        assert styles[name]["color"] == drawn.PROVIDER_COLORS[name]
    # In grey, by mark and dash.
    looks = {(style["marker"], style["linestyle"]) for style in styles.values()}
    assert len(looks) == len(styles)


@pytest.mark.parametrize("missing", ["function", "module"])
def test_a_version_of_flash_sinkhorn_that_is_too_old_is_not_available(monkeypatch, missing):
    package = types.ModuleType("flash_sinkhorn")
    package.__spec__ = importlib.machinery.ModuleSpec("flash_sinkhorn", None, is_package=True)
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "flash_sinkhorn", package)
    where = "flash_sinkhorn.kernels.sinkhorn_flashstyle_sqeuclid"
    if missing == "function":
        for name in ("flash_sinkhorn.kernels", where):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    (timing,) = compare(Case(4, 6, 2), ["FlashSinkhorn"], rounds=1).timings
    words = {"function": "has no flashsinkhorn_lse", "module": f"has no {where}, or cannot import"}
    start = "not available: this version of flash-sinkhorn "
    assert timing.failure.startswith(start + words[missing])


def test_a_figure_draws_the_cases_that_differ_in_its_axis_alone():
    base = Case(4, 16, 2)
    rows = [
        *timed(base, 2, 1.0),
        *timed(replace(base, N=64), 2, 2.0),
        *timed(replace(base, N=64), 1, 8.0),
        *timed(replace(base, N=64, backward=("y",)), 2, 4.0),
        *timed(replace(base, beta=math.inf), 2, 1.0),
    ]
    panels = drawn.along(rows, "N", "median")
    assert {key: [(r.N, r.threads) for r in found] for key, found in panels.items()} == {
        "": [(16, 2), (64, 2)]
    }
    figure = drawn.throughput_figure(rows)
    assert figure is not None
    (axes,) = figure.axes
    (line,) = axes.get_lines()
    assert line.get_xydata().tolist() == [[16, 64.0], [64, 128.0]]
    memory_figure = drawn.memory_figure(rows)
    assert memory_figure is not None
    assert memory_figure.axes[0].get_lines()[0].get_ydata().tolist() == [1.0, 1.0]
    assert drawn.threads_figure(rows) is not None
    assert drawn.dimensions_figure(rows) is None
    # Infinity has no place on the axis, so that one temperature is left.
    assert drawn.temperature_figure(rows) is None


def test_json_knows_no_nan(tmp_path):
    comparison = Comparison(Case(2, 3, 2), (Timing("nobody", failure="no"),))
    (row,) = records(Point(comparison.case, 1, ("nobody",)), comparison)
    sweeps.write_json(tmp_path / "a.json", {}, [row])
    (read,) = json.loads((tmp_path / "a.json").read_text())["records"]
    assert read["median"] is None
    assert read["ratio"] is None
    assert read["failure"] == "no"
