"""The comparison checks before it times, and the peers compute what they are named for."""

from __future__ import annotations

import importlib.util
import io
import math
import os
import sys
import time
import types
from functools import partial
from typing import Any

import pytest
import torch
from rich.console import Console

import lebm_kernels
from lebm_kernels.backends import preferred
from lebm_kernels.benchmarks import compare as benchmarking
from lebm_kernels.benchmarks import providers
from lebm_kernels.benchmarks.cases import ARGUMENTS, Case
from lebm_kernels.benchmarks.compare import (
    Comparison,
    Timing,
    compare,
    comparison_table,
    format_pairs,
    format_seconds,
)
from lebm_kernels.benchmarks.providers import NotAvailableError
from lebm_kernels.diagnostics.gradient_checks import check_gradients

FORMS = [
    providers._expanded_energy,
    providers._materialised_energy,
    providers._cdist_energy,
    providers._unrolled_energy,
]
PEERS = ["reference", "eager, expansion (mm)", "eager, differences", "eager, cdist"]


@pytest.fixture
def one_call_a_round(monkeypatch):
    """Steps of tests are short; do not repeat them within a round."""
    monkeypatch.setattr(benchmarking, "_SHORTEST_SECONDS", 0.0)


def only(monkeypatch, **prepares):
    monkeypatch.setattr(benchmarking, "providers", lambda device: prepares)


def truth(case, cotangent):
    """F and its gradients, written out anew."""
    absent: dict[str, Any] = {
        "scale": 1.0,
        "log_weight": torch.zeros(case.N),
        "latent_energy": 0.0,
    }
    inputs = {**absent, **case.inputs()}
    leaves = [inputs[name] for name in case.backward]
    difference = inputs["y"][:, None, :] - inputs["scale"] * inputs["decoded"][None]
    energy = (difference**2).sum(-1) + inputs["latent_energy"]
    weight = torch.softmax(inputs["log_weight"].double(), 0)
    beta = inputs["beta"]
    value = -((weight * torch.exp(-beta * energy)).sum(-1)).log() / beta
    return value.detach(), *torch.autograd.grad(value, leaves, cotangent)


def test_a_mean_divides_the_incoming_gradient():
    total, mean = (Case(5, 3, 2, backward=("y",), loss=loss) for loss in ("sum", "mean"))
    torch.testing.assert_close(mean.cotangent() * 5, total.cotangent())
    assert ((total.cotangent() > 0.5) & (total.cotangent() < 1.5)).all()
    with pytest.raises(ValueError, match="loss must be one of"):
        Case(5, 3, 2, loss="max")


def test_inputs_are_the_same_at_each_call_and_no_more_than_asked_for():
    case = Case(3, 5, 2, backward=("y",))
    first, second = case.inputs(), case.inputs()
    assert set(first) == {"y", "decoded", "beta"}
    assert torch.equal(first["y"], second["y"])
    assert first["y"].requires_grad
    assert not first["decoded"].requires_grad
    everything = Case(3, 5, 2, dtype=torch.float64, backward=ARGUMENTS).inputs()
    assert set(everything) == set(ARGUMENTS)
    assert all(value.requires_grad for value in everything.values())
    assert torch.equal(everything["y"].float(), first["y"])
    assert not torch.equal(Case(3, 5, 2, seed=1).inputs()["y"], first["y"])


def test_latents_lie_on_the_curve_and_queries_near_it():
    case = Case(500, 400, 2, dtype=torch.float64, layout="curve")
    inputs = case.inputs()
    assert "curve" in str(case)
    assert torch.equal(inputs["y"], case.inputs()["y"])
    stretch = torch.tensor([1.0, 2.0], dtype=torch.float64)
    on = (inputs["decoded"] * stretch).norm(dim=1)
    torch.testing.assert_close(on, torch.ones_like(on))
    off = ((inputs["y"] * stretch).norm(dim=1) - 1).abs()
    assert 0.001 < off.median() < 0.02
    assert off.max() < 0.2
    # All around, and in random order: neighbours in the list are no neighbours on the curve.
    for points in (inputs["y"], inputs["decoded"]):
        assert points.mean(0).abs().max() < 0.2
        assert points.diff(dim=0).norm(dim=1).mean() > 0.5


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("M", {"M": 0}),
        ("N", {"N": 0}),
        ("D", {"D": -1}),
        ("beta", {"beta": -0.5}),
        ("beta", {"beta": math.nan}),
        ("dtype", {"dtype": torch.int64}),
        ("backward", {"backward": ("z",)}),
        ("layout", {"layout": "line"}),
        ("D", {"layout": "curve", "D": 3}),
    ],
)
def test_a_bad_field_is_named(name, fields):
    with pytest.raises(ValueError, match=f"^{name} must"):
        Case(**{"M": 2, "N": 2, "D": 2, **fields})


@pytest.mark.parametrize("slice_numbers", [1, 1 << 20])
def test_reference_in_slices_is_the_whole(monkeypatch, slice_numbers):
    monkeypatch.setattr(providers, "SLICE_NUMBERS", slice_numbers)
    # Not in the order of the arguments: gradients follow the case's order.
    backward = ("log_weight", "decoded", "y", "scale", "beta", "latent_energy")
    case = Case(7, 5, 3, beta=0.8, dtype=torch.float64, backward=backward)
    found = providers._prepare_reference(case)(case.cotangent())
    for a, b in zip(found, truth(case, case.cotangent()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_peers_are_right_with_every_argument(form):
    case = Case(4, 6, 3, beta=1.3, dtype=torch.float64, backward=ARGUMENTS)
    step = providers._prepare_eager(case, form)
    for a, b in zip(step(case.cotangent()), truth(case, case.cotangent()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_peers_at_the_ends_of_beta(form):
    y, decoded = torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    log_weight = torch.tensor([0.25, 0.75]).log()
    # Energies 4 and 10.
    peer = partial(providers._peer, form, y, decoded)
    torch.testing.assert_close(peer(math.inf), torch.tensor([4.0]))
    torch.testing.assert_close(peer(0.0), torch.tensor([7.0]))
    torch.testing.assert_close(peer(0.0, log_weight=log_weight), torch.tensor([8.5]))


@pytest.mark.parametrize(("D", "backward"), [(2, ("decoded", "y", "beta")), (3, ARGUMENTS)])
def test_keops_is_right_or_not_available(D, backward):
    case = Case(4, 6, D, beta=1.3, dtype=torch.float64, backward=backward)
    (timing,) = compare(case, ["KeOps"], rounds=1).timings
    if importlib.util.find_spec("pykeops") is None:
        assert timing.failure == "not available: pykeops is not installed"
    else:
        assert timing.failure == ""
        assert timing.error is not None
        assert timing.error < 1e-9
        assert (torch.tensor([1e-40]) * 1).item() > 0  # denormal numbers are still numbers


@pytest.mark.parametrize("beta", [0.0, math.inf])
def test_keops_is_not_asked_for_the_ends_of_beta(monkeypatch, beta):
    monkeypatch.setattr(providers, "_keops", lambda: None)
    with pytest.raises(NotAvailableError, match="beta"):
        providers._prepare_keops(Case(2, 3, 2, beta=beta))


def test_keops_built_with_other_flags_is_not_timed(monkeypatch):
    pykeops, torch_part = types.ModuleType("pykeops"), types.ModuleType("pykeops.torch")
    base = types.SimpleNamespace(get_cpp_flags=lambda: "-O3")
    monkeypatch.setattr(pykeops, "config", types.SimpleNamespace(pykeops_base=base), raising=False)
    monkeypatch.setattr(torch_part, "Genred", None, raising=False)
    monkeypatch.setitem(sys.modules, "pykeops", pykeops)
    monkeypatch.setitem(sys.modules, "pykeops.torch", torch_part)
    monkeypatch.delenv("CXXFLAGS", raising=False)
    with pytest.raises(NotAvailableError, match="without CXXFLAGS"):
        providers._keops()
    assert "CXXFLAGS" not in os.environ


def test_compare_checks_and_times_every_peer():
    case = Case(5, 17, 3, backward=("y", "decoded", "scale"))
    comparison = compare(case, [preferred("cpu"), *PEERS], rounds=2)
    for timing in comparison.timings:
        assert timing.failure == ""
        assert timing.error is not None
        assert timing.error < 1e-5
        assert len(timing.seconds) == 2
        assert timing.median > 0


def test_a_wrong_value_or_gradient_is_not_timed(monkeypatch, one_call_a_round):
    def prepare(case, spoil):
        right = providers._prepare_reference(case)

        def step(cotangent):
            values = list(right(cotangent))
            if spoil is not None:
                values[spoil] = values[spoil] * 1.01
            return tuple(values)

        return step

    case = Case(4, 5, 2, backward=("y",))
    only(
        monkeypatch,
        right=partial(prepare, spoil=None),
        value=partial(prepare, spoil=0),
        gradient=partial(prepare, spoil=1),
    )
    right, value, gradient = compare(case, rounds=1).timings
    assert right.failure == ""
    for timing in (value, gradient):
        assert timing.failure.startswith("wrong: relative error")
        assert timing.error == pytest.approx(0.01, rel=0.01)
        assert timing.seconds == []


def test_a_nan_is_wrong(monkeypatch, one_call_a_round):
    only(monkeypatch, nan=lambda case: lambda cotangent: (cotangent * math.nan,))
    (timing,) = compare(Case(4, 5, 2), rounds=1).timings
    assert timing.failure.startswith("wrong")


def test_the_queries_beyond_the_check_do_not_reach_summed_gradients(monkeypatch):
    monkeypatch.setattr(benchmarking, "SLICE_NUMBERS", 20)
    case = Case(7, 5, 2, dtype=torch.float64, backward=("decoded", "y"))
    check = benchmarking._Truth(case)
    assert check.rows == 2
    assert check.error(partial(truth, case)) < 1e-12


def test_who_cannot_run_is_reported_and_the_others_are_timed(monkeypatch, one_call_a_round):
    def missing(case):
        raise NotAvailableError("no such library")

    def broken(case):
        raise RuntimeError("\n  it broke  \nin many lines")

    only(monkeypatch, missing=missing, broken=broken, right=providers._prepare_reference)
    comparison = compare(Case(2, 3, 2), rounds=3)
    missing_timing, broken_timing, right = comparison.timings
    assert missing_timing.failure == "not available: no such library"
    assert broken_timing.failure == "failed: it broke"
    assert len(right.seconds) == 3

    text = io.StringIO()
    Console(file=text, width=100).print(comparison_table([comparison]))
    assert "missing: not available: no such library" in text.getvalue()
    assert "right" in text.getvalue()


def test_a_backend_that_cannot_run_gives_its_reason():
    for row in lebm_kernels.backends():
        if not row.available:
            with pytest.raises(NotAvailableError) as caught:
                providers._prepare_backend(Case(2, 3, 2), row.name)
            assert str(caught.value) == row.reason


def test_without_a_compiler_torch_compile_is_not_available(monkeypatch):
    def broken(function, **options):
        def call(*args, **kwargs):
            raise RuntimeError("InvalidCxxCompiler: no working C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    (timing,) = compare(Case(2, 3, 2), ["torch.compile, unrolled"]).timings
    assert timing.failure == "not available: InvalidCxxCompiler: no working C++ compiler"


def test_rounds_are_interleaved_and_rotate(monkeypatch, one_call_a_round):
    calls = []

    def prepare(case, name):
        right = providers._prepare_reference(case)

        def step(cotangent):
            calls.append(name)
            return right(cotangent)

        return step

    only(monkeypatch, **{name: partial(prepare, name=name) for name in "abc"})
    compare(Case(2, 3, 2), rounds=3)
    assert "".join(calls) == "aabbcc" + "abc" + "bca" + "cab"


def test_no_round_begins_after_the_budget(monkeypatch, one_call_a_round):
    only(monkeypatch, a=providers._prepare_reference)
    (timing,) = compare(Case(2, 3, 2), rounds=50, budget=0.0).timings
    assert len(timing.seconds) == 1


def test_who_is_slower_than_one_is_patient_runs_once(monkeypatch, one_call_a_round):
    calls = []

    def prepare(case):
        right = providers._prepare_reference(case)

        def step(cotangent):
            calls.append(cotangent)
            return right(cotangent)

        return step

    monkeypatch.setattr(benchmarking, "_SHORTEST_SECONDS", 0.0)
    only(monkeypatch, slow=prepare)
    (timing,) = compare(Case(2, 3, 2), rounds=3, patience=0.0).timings
    assert len(timing.seconds) == 1
    assert len(calls) == 1  # to be checked, which is its time too
    assert timing.error is not None


@pytest.fixture
def take(monkeypatch):
    """A comparison of providers whose steps take the seconds that are told, then a tenth each."""

    def compare_these(seconds, **options):
        times = {name: iter(told) for name, told in seconds.items()}

        def prepare(case, name):
            def step(cotangent):
                return providers._prepare_reference(case)(cotangent)

            step.provider = name
            return step

        monkeypatch.setattr(
            benchmarking, "_time", lambda step, *others: next(times[step.provider], 0.1)
        )
        only(monkeypatch, **{name: partial(prepare, name=name) for name in seconds})
        timings = compare(Case(2, 3, 2), rounds=3, patience=2.0, **options).timings
        return {timing.name: timing.seconds for timing in timings}

    return compare_these


def test_one_slow_time_is_not_believed(take):
    assert take({"hiccup": [3.3], "fast": []}) == {"hiccup": [0.1] * 3, "fast": [0.1] * 3}
    # Two are, and the shorter counts; and one that is far beyond what a hiccup takes.
    assert take({"slow": [3.5, 2.5], "slower": [2.5, 3.5]}) == {"slow": [2.5], "slower": [2.5]}
    assert take({"endless": [11.0]}) == {"endless": [11.0]}


def test_a_second_time_is_part_of_the_budget(take):
    assert take({"slow": [3.0], "fast": []}, budget=2.9) == {"slow": [3.0], "fast": [0.1] * 3}
    # What is left is too little for another's second time, or for a second round.
    found = take({"a": [3.0, 3.0], "b": [3.0], "fast": []}, budget=5.0)
    assert found == {"a": [3.0], "b": [3.0], "fast": [0.1] * 3}
    found = take({"a": [3.0, 3.0], "fast": []}, budget=3.0)
    assert found == {"a": [3.0], "fast": [0.1]}


def test_other_work_runs_in_the_same_rounds(monkeypatch, one_call_a_round):
    calls = []
    only(monkeypatch, a=providers._prepare_reference)
    work = {"limit": partial(calls.append, 1)}
    comparison = compare(Case(2, 3, 2), rounds=3, beside=work)
    assert [timing.name for timing in comparison.timings] == ["a"]
    (limit,) = comparison.beside
    assert limit.name == "limit"
    assert len(limit.seconds) == 3
    assert len(calls) == 4  # once to warm up


@pytest.mark.parametrize(
    ("names", "rounds", "argument"),
    [(["nobody"], 1, "names"), ([], 1, "names"), (None, 0, "rounds")],
)
def test_compare_names_a_bad_argument(names, rounds, argument):
    with pytest.raises(ValueError, match=f"^{argument} must"):
        compare(Case(2, 3, 2), names, rounds=rounds)


def test_figures_of_a_timing():
    ours, theirs = Timing("ours", [1.0, 2.0, 9.0]), Timing("theirs", [4.0, 6.0, 8.0, 10.0])
    comparison = Comparison(Case(100, 20, 2), (ours, theirs))
    assert ours.median == 2.0
    assert theirs.spread == pytest.approx(3.0 / 7.0)
    assert comparison.ratio(theirs) == 3.5
    assert comparison.pairs_per_second(ours) == 1000.0
    assert math.isnan(Timing("nobody").median)
    assert math.isnan(Timing("nobody").spread)


def test_the_timer_measures_a_known_time(monkeypatch):
    clock = iter([10.0, 16.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    calls = []

    def step(cotangent):
        calls.append(cotangent)
        return (cotangent,)

    assert benchmarking._time(step, torch.zeros(1), 3) == 2.0
    assert len(calls) == 3


def test_numbers_for_people():
    assert format_seconds(2.5) == "2.5 s"
    assert format_seconds(0.01234) == "12.3 ms"
    assert format_seconds(4.2e-7) == "0.42 us"
    assert format_seconds(0.9996) == "1 s"
    assert format_pairs(1.234e9) == "1.23 G/s"
    assert format_pairs(5.6e6) == "5.6 M/s"
    assert format_pairs(7.0e2) == "0.7 k/s"


def test_the_table_says_in_which_size_a_section_differs():
    ours = Timing("ours", [1.0, 1.0], error=1e-7)
    first = Comparison(Case(4096, 64, 2), (ours,))
    second = Comparison(Case(128, 64, 2, backward=("y",)), (ours,))
    text = io.StringIO()
    Console(file=text, width=120).print(comparison_table([first, second]))
    assert "M=4096, N=64, D=2" in text.getvalue()
    assert "forward + backward (y), M=128" in " ".join(text.getvalue().split())
    one, two = (Comparison(Case(4096, 64, 2), (ours,), threads=n) for n in (1, 2))
    Console(file=text, width=120).print(comparison_table([one, two]))
    assert "forward, threads=2" in text.getvalue()


def test_gradients_of_every_backend_that_can_run_agree_with_differences():
    checks = check_gradients()
    names = [row.name for row in lebm_kernels.backends() if row.available]
    assert {(c.backend, c.argument) for c in checks} == {(n, a) for n in names for a in ARGUMENTS}
    assert [check for check in checks if not check.ok] == []


class _Doubled(torch.autograd.Function):
    """The identity, with twice its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def test_a_wrong_gradient_is_found(monkeypatch):
    right = lebm_kernels.free_energy

    def wrong(y, decoded, beta, *, scale, **others):
        return right(y, decoded, beta, scale=_Doubled.apply(scale), **others)

    monkeypatch.setattr(lebm_kernels, "free_energy", wrong)
    checks = check_gradients(["reference"])
    assert [check.argument for check in checks if not check.ok] == ["scale"]
    assert all(check.message.startswith("hot") for check in checks if not check.ok)


def test_a_backend_that_cannot_run_does_not_pass():
    checks = check_gradients(["nobody"])
    assert [check.ok for check in checks] == [False] * len(ARGUMENTS)
