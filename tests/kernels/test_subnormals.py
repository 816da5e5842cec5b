"""On ordinary data the CPU kernels compute with no subnormal number, which would be slow.

On some processors an operation takes a hundred times longer once an operand or its result is
subnormal. The processor's sticky flags tell whether any operation of a call did.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from support.accuracy import assert_gradients_accurate
from support.backends import selected
from support.float_flags import library, subnormal
from support.oracle import exact, to_array
from torch import Tensor

from lebm_kernels import free_energy
from lebm_kernels.backends import native
from lebm_kernels.backends.contract import ColumnWants, Problem, RowWants
from lebm_kernels.diagnostics import promise

BETAS = (0.0, 0.01, 2.0, 100.0, 1e4, math.inf)
GRADIENTS = (1.0, 1 / 1024, 1e-8)
ON_EACH = pytest.mark.parametrize(
    "instruction_set", native.instruction_sets(), ids="native-{}".format
)
"""The size of the incoming gradient: of sum(), of mean() and of a loss with a small factor."""

ROWS = {
    "F": RowWants(),
    "dF/dy": RowWants(slope_y=True),
    "dF/dy and dF/dscale": RowWants(slope_y=True, slope_scale=True),
    "posterior": RowWants(mean=True, energy=True, index=True),
    "dF/dbeta and KL": RowWants(slope_beta=True, relative_entropy=True),
}
COLUMNS = {
    "dF/ddecoded": ColumnWants(decoded=True),
    "dF/ddecoded and dF/dlatent_energy": ColumnWants(decoded=True, latent_energy=True),
    "dF/dlog_weight": ColumnWants(log_weight=True),
}


class Call(NamedTuple):
    """A pass over a problem, with the beta and the size of the incoming gradient that it has."""

    wanted: str
    beta: float
    G: float
    run: Callable[[], object]


def is_excepted(call: Call, kind: str, dtype: torch.dtype, numbers: str) -> bool:
    """Whether a call may compute with such subnormal numbers.

    Only with log-weights so far apart that some weights are near the end of float32's range:

    - A latent's gradient of log_weight may itself be subnormal, a multiple of its weight. It is
      rounded to float32 once.
    - At small beta the terms of all other latents may cancel in dF/dbeta and KL. Then latents of
      very small weight give the whole result, and their terms must not be rounded to 0.
    """
    if dtype != torch.float32 or kind not in ("weights", "all"):
        return False
    if call.wanted == "dF/dlog_weight":
        return numbers == "result"
    return call.wanted == "dF/dbeta and KL" and call.beta < 1


# Many queries, for which blocks are summed as series; few, past which a grid is streamed; neither.
SIZES = [(520, 700, D) for D in (1, 2, 3)] + [(3, 4500, D) for D in (1, 2, 4)]
SIZES += [(70, 300, D) for D in (1, 2, 3, 4, 5, 8, 16, 48, 64)] + [(50, 100, 200), (50, 100, 784)]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def far(M: int, N: int, D: int) -> dict[str, Tensor]:
    """Queries 30 units away from the latents."""
    return {"y": normal(M, D) + 30 * torch.nn.functional.normalize(normal(M, D))}


def weights(M: int, N: int, D: int) -> dict[str, Tensor]:
    """Log-weights in a range of 100."""
    return {"log_weight": 100 * torch.rand(N, dtype=torch.float64)}


def energies(M: int, N: int, D: int) -> dict[str, Tensor]:
    return {"latent_energy": 5 * torch.rand(N, dtype=torch.float64)}


KINDS: dict[str, Callable[[int, int, int], dict[str, Tensor]]] = {
    "plain": lambda M, N, D: {},
    "far": far,
    "close": lambda M, N, D: {"y": 0.01 * normal(M, D), "decoded": 0.01 * normal(N, D)},
    "scale": lambda M, N, D: {"scale": 1 + normal(M, D) / 8},
    "weights": weights,
    "energies": energies,
    "all": lambda *size: far(*size) | weights(*size) | energies(*size),
}


def problem(size: tuple[int, int, int], kind: str, beta: float, dtype: torch.dtype) -> Problem:
    """One problem in the canonical form of a backend."""
    M, N, D = size
    tensors = {"y": normal(M, D), "decoded": normal(N, D), **KINDS[kind](M, N, D)}
    made = {name: x[None].to(dtype) for name, x in tensors.items()}
    made["beta"] = torch.full((1, M), beta, dtype=dtype)
    return Problem(*(made.get(name) for name in Problem._fields))  # type: ignore[arg-type]


def calls(size: tuple[int, int, int], kind: str, dtype: torch.dtype) -> Iterator[Call]:
    """Both passes at every temperature, with all that they compute."""
    for beta in BETAS:
        of = problem(size, kind, beta, dtype)
        for name, want in ROWS.items():
            yield Call(name, beta, 1.0, partial(native.call_rows, *of, *want))
        state = native.rows(of, RowWants()).state
        for G, (name, wanted) in itertools.product(GRADIENTS, COLUMNS.items()):
            grad = (G * (0.5 + torch.rand(1, size[0]))).to(dtype)
            yield Call(name, beta, G, partial(native.call_columns, grad, state, *of, *wanted))


def test_the_flags_tell_of_subnormal_numbers() -> None:
    product = library().product
    # Python's numbers are rounded to floats beforehand.
    one, small, tiny = map(ctypes.c_float, (1.0, 1e-30, 1e-40))
    assert subnormal(lambda: product(one, small)) == ""
    assert "operand" in subnormal(lambda: product(tiny, one))
    assert "result" in subnormal(lambda: product(small, small))


@ON_EACH
def test_the_flags_tell_of_subnormal_data(instruction_set: str) -> None:
    of = problem((8, 40, 5), "plain", 1.0, torch.float32)
    tiny = of._replace(y=1e-25 * of.y, decoded=1e-25 * of.decoded)
    with selected("native", instruction_set):
        assert subnormal(partial(native.call_rows, *of, *RowWants())) == ""
        assert "result" in subnormal(partial(native.call_rows, *tiny, *RowWants()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@ON_EACH
def test_ordinary_data(
    instruction_set: str, dtype: torch.dtype, size: tuple[int, int, int], kind: str
) -> None:
    with selected("native", instruction_set):
        found = [(call, subnormal(call.run)) for call in calls(size, kind, dtype)]
    wrong = [
        (*call[:3], numbers)
        for call, numbers in found
        if numbers and not is_excepted(call, kind, dtype, numbers)
    ]
    assert wrong == []


def soft_calls(energy: Tensor, log_weight: Tensor | None) -> Iterator[tuple[str, Any]]:
    """Soft minima of given energies over the last and the first dimension, and their gradients."""
    for dim, beta in itertools.product((0, 1), BETAS):
        dropped = None if log_weight is None or dim == 0 else log_weight
        given: tuple[Any, ...] = (energy, dim, beta, None, dropped, False)
        case = f"dim {dim}, beta {beta:g}"
        yield f"softmin, {case}", partial(native.call_softmin, *given)
        yield f"softargmin, {case}", partial(native.call_softargmin, *given, None)
        p = native.call_softargmin(*given, None)
        for G in GRADIENTS:
            factor = (G * (0.5 + torch.rand(energy.shape[1 - dim]))).to(energy)
            slopes = (G * torch.randn(energy.shape)).to(energy)
            yield f"dF/dE, {case}, G {G:g}", partial(native.call_softargmin, *given, factor)
            yield (
                f"dp/dE, {case}, G {G:g}",
                partial(native.call_softargmin_slopes, p, slopes, dim, beta, None, False),
            )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@ON_EACH
def test_ordinary_energies(instruction_set: str, dtype: torch.dtype, weighted: bool) -> None:
    energy = (110 * torch.rand(60, 1000, dtype=torch.float64)).to(dtype)
    log_weight = (100 * torch.rand(1000, dtype=torch.float64)).to(dtype) if weighted else None
    with selected("native", instruction_set):
        found = [(name, subnormal(call)) for name, call in soft_calls(energy, log_weight)]
    assert [each for each in found if each[1]] == []


@pytest.mark.parametrize("D", [2, 5, 48])
@pytest.mark.parametrize(
    ("size", "beta", "grad_size"),
    [(1e-18, 1.0, 1.0), (1e-18, 1e36, 1.0), (1e-30, 1.0, 1.0), (1.0, 2.0, 1e-36)],
)
@ON_EACH
def test_tiny_numbers_still_count(
    instruction_set: str, size: float, beta: float, grad_size: float, D: int
) -> None:
    arguments = {"y": size * torch.randn(30, D), "decoded": size * torch.randn(200, D)}
    arguments["beta"] = torch.full((30,), beta)
    grad = grad_size * (0.5 + torch.rand(30))
    tiny = torch.finfo(torch.float32).smallest_normal * torch.finfo(torch.float32).eps
    with selected("native", instruction_set):
        function = partial(free_energy, backend="native")
        value = function(**arguments)
        leaves = {name: x.clone().requires_grad_(name != "beta") for name, x in arguments.items()}
        of = ("y", "decoded")
        found = torch.autograd.grad(function(**leaves), [leaves[name] for name in of], grad)
    truth = exact(**arguments)
    error = np.abs(to_array(value) - truth.free_energy)
    assert (error <= promise.allowed(truth.magnitude, value.dtype) + D * tiny).all()
    beneath = dict.fromkeys(of, tiny)
    assert_gradients_accurate(
        dict(zip(of, found, strict=True)), arguments, grad, of=of, beneath=beneath
    )
