"""`lebm gradcheck` passes right results, and finds and places planted errors."""

from __future__ import annotations

import math
import re

import pytest
import torch
from typer.testing import CliRunner

import lebm_kernels
from lebm_kernels import cli
from lebm_kernels.backends import native, preferred
from lebm_kernels.benchmarks.cases import ARGUMENTS
from lebm_kernels.diagnostics import accuracy as over_beta
from lebm_kernels.diagnostics import gradient_cases, gradient_checks, promise
from lebm_kernels.diagnostics.accuracy import BETAS, accuracy
from lebm_kernels.diagnostics.gradient_cases import nasty_cases, random_cases, standard_cases
from lebm_kernels.diagnostics.gradient_checks import SECOND, VALUE, check_subject
from lebm_kernels.diagnostics.subjects import Subject, subjects

runner = CliRunner()
REFERENCE = Subject("reference")

# The fastest backend here: a check takes hundreds of differences.
FASTEST = preferred("cpu")


def lebm(*arguments):
    return runner.invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def few_cases(monkeypatch):
    """One standard case and no nasty ones, for tests that do not depend on the cases."""
    hot = list(standard_cases(0))[:1]
    monkeypatch.setattr(gradient_cases, "standard_cases", lambda seed: iter(hot))
    monkeypatch.setattr(gradient_cases, "nasty_cases", lambda seed: iter(()))


class _Wrong(torch.autograd.Function):
    """The identity, with a gradient that is wrong by one part in a hundred."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 1.01 * grad


def plant(monkeypatch):
    right = lebm_kernels.free_energy

    def wrong(y, decoded, beta, *, scale, **others):
        return right(y, decoded, beta, scale=_Wrong.apply(scale), **others)

    monkeypatch.setattr(lebm_kernels, "free_energy", wrong)


EACH = "each of an argument, backend, instruction set and dtype"


def table_rows(output):
    """The cells of each backend and dtype."""
    return [x.split() for x in output.splitlines() if re.search(r" (ok|FAILED \d+)$", x.rstrip())]


def total_checks(rows):
    return sum(int(row[2]) for row in rows)


def test_what_is_right_passes_with_status_0(few_cases):
    result = lebm("gradcheck", "--backend", FASTEST, "--cases", 1, "--seed", 3)
    assert result.exit_code == 0, result.output
    assert "FAILED" not in result.output
    sets = native.instruction_sets() if FASTEST == "native" else [None]
    for instruction_set in sets:
        assert str(Subject(FASTEST, instruction_set)) in result.output
    for dtype in ("float64", "float32", "bfloat16", "float16"):
        assert dtype in result.output
    assert max(map(len, result.output.splitlines())) <= 100
    rows = table_rows(result.output)
    assert len(rows) == 4 * len(sets)
    # In float64 second derivatives are one check more, in the others F is.
    assert [int(row[2]) for row in rows] == [len(ARGUMENTS) + 1] * len(rows)
    assert all(int(row[3]) > int(row[2]) for row in rows)  # of two cases each
    assert result.output.splitlines()[-1] == f"passed all {total_checks(rows)} checks, {EACH}"


def test_a_planted_wrong_gradient_makes_status_1(few_cases, monkeypatch):
    plant(monkeypatch)
    result = lebm("gradcheck", "--backend", FASTEST, "--cases", 0)
    assert result.exit_code == 1
    words = " ".join(result.output.split())
    # In half precision one part in a hundred may be rounding.
    rows = table_rows(result.output)
    failed = sum(int(row[-1]) for row in rows if row[-2] == "FAILED")
    assert words.endswith(f"FAILED {failed} of {total_checks(rows)} checks, {EACH}")
    assert "torch.float64, scale: hot, shared scale" in words
    assert "torch.float32, scale: hot, shared scale" in words
    assert f"{subjects([FASTEST])[0]}, torch.float64, scale" in words
    assert "float64, y:" not in words


def test_a_planted_error_is_measured_and_placed(monkeypatch):
    plant(monkeypatch)
    cases = list(standard_cases(0))
    checks = {c.argument: c for c in check_subject(Subject(FASTEST), cases, torch.float64)}
    assert set(checks) == set(ARGUMENTS)
    wrong = checks["scale"]
    assert not wrong.ok
    # A hundredth of a gradient g, of which a thousandth and 1e-5 are allowed: 10 at most.
    assert 5 < wrong.error < 10
    assert wrong.place.split(",")[0] in ("hot", "warm", "cold")
    assert all(checks[name].ok and checks[name].error < 0.01 for name in checks if name != "scale")


def test_a_wrong_value_is_found_in_single_precision(monkeypatch):
    right = lebm_kernels.free_energy
    monkeypatch.setattr(
        lebm_kernels, "free_energy", lambda *a, **b: right(*a, **b) * (1 + 40 * 2.0**-23)
    )
    checks = {
        c.argument: c for c in check_subject(REFERENCE, list(standard_cases(0)), torch.float32)
    }
    assert not checks[VALUE].ok
    assert 1 < checks[VALUE].error < 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_nasty_case_passes_in_every_dtype(dtype):
    cases = [*random_cases(0, 1), *nasty_cases(0)]
    for subject in subjects():
        if subject.backend != "triton" and subject.device == "cpu":
            bad = [check for check in check_subject(subject, cases, dtype) if not check.ok]
            assert bad == []


@pytest.mark.parametrize("seed", [1, 24])
def test_posterior_weights_that_underflow_pass(seed):
    # They are 1e-37 instead of 0, and several queries add up.
    cases = [case for case in nasty_cases(seed) if case[0] == "beta 10000"]
    assert len(cases) == 1
    bad = [c for c in check_subject(Subject(FASTEST), cases, torch.float32) if not c.ok]
    assert bad == []


def second_derivatives(monkeypatch, cases):
    """Their verdict, without the first ones' differences, which take longer."""
    monkeypatch.setattr(gradient_checks, "_check_by_differences", lambda *a: None)
    (check,) = check_subject(REFERENCE, cases, torch.float64, twice=True)
    assert check.argument == SECOND
    return check


def test_second_derivatives_agree_with_differences_of_the_first(monkeypatch):
    cases = [*list(standard_cases(0))[1:2], *nasty_cases(0)]
    check = second_derivatives(monkeypatch, cases)
    assert check.ok, check.message
    assert check.cases == len(cases) - 1  # a tied minimum has none


def test_a_planted_wrong_second_derivative_is_found(monkeypatch):
    class Wrong(torch.autograd.Function):
        """The square, whose second derivative is 2.02 instead of 2."""

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return grad * (2.02 * x - 0.02 * x.detach())

    right = lebm_kernels.free_energy

    def wrong(y, decoded, *others, **more):
        return right(y, decoded, *others, **more) + Wrong.apply(y).sum(-1)

    monkeypatch.setattr(lebm_kernels, "free_energy", wrong)
    assert not second_derivatives(monkeypatch, list(standard_cases(0))[1:2]).ok


def test_finite_differences_agree_on_nasty_cases():
    checks = check_subject(Subject(FASTEST), list(nasty_cases(0)), torch.float64)
    assert [check for check in checks if not check.ok] == []
    by_name = {check.argument: check.cases for check in checks}
    # Of beta none can be taken at 0, 1e-7 and, twice, infinity.
    assert by_name["beta"] == by_name["y"] - 4


def test_cases_follow_from_the_seed():
    for make in (standard_cases, nasty_cases, lambda seed: random_cases(seed, 3)):
        first, second, other = (dict(make(seed)) for seed in (0, 0, 1))
        for title, arguments in first.items():
            for name, value in arguments.items():
                assert torch.equal(value, second[title][name])
        assert any(
            title not in other or not torch.equal(arguments["y"], other[title]["y"])
            for title, arguments in first.items()
        )
    beta = [float(arguments["beta"].max()) for _, arguments in nasty_cases(0)]
    assert 0.0 in beta
    assert math.inf in beta


def test_a_backend_on_its_instruction_sets():
    found = [subject.instruction_set for subject in subjects(["native"]) if subject.device == "cpu"]
    assert found == (native.instruction_sets() or [None])
    assert subjects(["nobody"]) == [Subject("nobody")]
    before = native.instruction_set() if native.instruction_sets() else None
    if before is not None:
        check_subject(Subject("native", "baseline"), [], torch.float64)
        assert native.instruction_set() == before


def test_accuracy_over_beta():
    errors = accuracy(REFERENCE)
    assert len(errors) == len(BETAS)
    assert max(errors) <= promise.ROUNDINGS
    # Squares of 100 cancel: the expansion is what the package does not do.
    assert max(accuracy(None)) > 1000


@pytest.mark.parametrize("asked", [["--picture"], ["--out", "pictures"]])
def test_the_picture_is_written(tmp_path, few_cases, monkeypatch, asked):
    monkeypatch.setattr(over_beta, "BETAS", (0.0, 1.0, math.inf))
    monkeypatch.chdir(tmp_path)
    result = lebm("gradcheck", "--backend", FASTEST, "--cases", 0, *asked)
    assert result.exit_code == 0, result.output
    folder = tmp_path / (asked[1] if asked[1:] else "out")
    for suffix in ("png", "svg"):
        assert (folder / f"accuracy.{suffix}").stat().st_size > 1000


def test_a_backend_that_cannot_run_says_why_once():
    if "cpu" in next(row for row in lebm_kernels.backends() if row.name == "triton").devices:
        pytest.skip("Triton runs here")
    result = lebm("gradcheck", "--backend", "triton")
    assert result.exit_code == 2
    assert "backend 'triton' cannot run on cpu" in " ".join(result.output.split())
    assert "FAILED" not in result.output


@pytest.mark.parametrize(("option", "value"), [("--backend", "nobody"), ("--cases", -1)])
def test_a_mistake_is_answered_by_its_option(option, value):
    result = lebm("gradcheck", option, value)
    assert result.exit_code == 2
    assert f"'{option}'" in result.output
