"""Problems drawn at random keep the promises on accuracy, and the laws of any free energy.

`make test` takes the same few cases each time; `make fuzz CASES=20000` takes many new ones.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp
from support.accuracy import assert_accurate, assert_gradients_accurate
from support.backends import identify, kernel_parameters, selected
from support.fuzzing import Case, cases, examples
from support.oracle import Array, every_pair, exact, to_array, undecided
from torch import Tensor

from lebm_kernels import free_energy, posterior
from lebm_kernels.diagnostics import promise

Parameter = tuple[str, str | None]
Arguments = dict[str, Tensor]

PARAMETERS = [p for p in kernel_parameters() if p[0] in ("native", "chunked")]
ON_EACH = pytest.mark.parametrize("parameter", PARAMETERS, ids=identify)
SEEDS = st.integers(0, 99)


def share(part: float) -> float:
    """That part of a long run, for each of the backends."""
    return part / len(PARAMETERS)


@ON_EACH
@examples(share(0.4), 25)
@given(case=cases(), seed=SEEDS)
def test_values_and_gradients_keep_the_promise(parameter: Parameter, case: Case, seed: int) -> None:
    arguments = case.arguments
    leaves = {name: x.detach().requires_grad_(name in case.wanted) for name, x in arguments.items()}
    dtype = arguments["y"].dtype
    with selected(*parameter) as backend:
        value = free_energy(**leaves, backend=backend)
        assert_accurate(value, **arguments)
        grad = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed)).to(value)
        # Energies wrong by a rounding give those another posterior, and any gradient.
        pairs = every_pair(arguments)
        grad[torch.from_numpy(undecided(pairs, promise.eps(dtype)))] = 0
        found = torch.autograd.grad(value, [leaves[name] for name in case.wanted], grad)
    got = dict(zip(case.wanted, found, strict=True))
    beneath = dict.fromkeys(arguments, 2**20 * torch.finfo(value.dtype).smallest_normal)
    assert_gradients_accurate(got, arguments, grad, of=case.wanted, beneath=beneath)


@ON_EACH
@examples(share(0.2), 15)
@given(case=cases())
def test_the_posterior_is_the_exact_one(parameter: Parameter, case: Case) -> None:
    arguments = case.arguments
    with selected(*parameter) as backend:
        found = posterior(**arguments, backend=backend)
    truth, pairs = exact(**arguments), every_pair(arguments)
    assert_accurate(found.free_energy, **arguments)
    dtype = arguments["y"].dtype
    # The index is a latent's that no energy is below by more than its rounding.
    at = found.index.numpy()[..., None]
    excess, bulk, w = (
        np.take_along_axis(x, at, -1) for x in (pairs.energy - pairs.least, pairs.bulk, pairs.w)
    )
    assert (w > 0).all() or not w.size
    assert (excess <= promise.allowed(bulk, dtype)).all()
    # A relative error of eps in E is one of beta eps E in p; one of eps in log w, of log w eps.
    known = ~undecided(pairs, promise.eps(dtype))
    p = np.where(pairs.p > 0, pairs.p, 0)
    share_of_bulk = (p * pairs.bulk).sum(-1)
    beta = np.where(np.isinf(pairs.beta), 0, pairs.beta)[..., 0]
    rarity = (p * np.where(pairs.w > 0, np.abs(pairs.log_w), 0)).sum(-1)
    blur = promise.allowed(1 + 2 * beta * share_of_bulk + rarity, dtype)
    reach = np.abs(to_array(arguments["decoded"])).max(initial=0)
    largest = np.where(pairs.w > 0, pairs.bulk, 0).max(initial=0)
    for name, size in (
        ("mean", reach),
        ("energy", largest),
        ("relative_entropy", 1 + truth.relative_entropy + rarity),
    ):
        error = np.abs(to_array(getattr(found, name)) - getattr(truth, name))
        error = error.max(-1) if name == "mean" else error
        assert not (known & ~(error <= blur * size)).any(), name


@ON_EACH
@examples(share(0.05), 10)
@given(case=cases(), tol=st.sampled_from((0.0, 1e-9, 1e-3, 0.1, 0.9)))
def test_a_tolerance_raises_f_by_no_more_than_it_may(
    parameter: Parameter, case: Case, tol: float
) -> None:
    arguments = case.arguments
    with selected(*parameter) as backend:
        value = free_energy(**arguments, tol=tol, backend=backend)
    truth = exact(**arguments)
    rounding = promise.allowed(truth.magnitude, value.dtype)
    with np.errstate(all="ignore"):
        rise = np.where(tol > 0, -math.log1p(-tol) / to_array(arguments["beta"]), 0)
    error = to_array(value) - truth.free_energy
    assert (error >= -rounding).all()
    assert (error <= rounding + rise).all()


def close(one: Tensor, of_one: Any, other: Array, of_other: Any, factor: float = 1) -> None:
    """Two values agree to what the promise leaves both, of their own arguments."""
    size = exact(**of_one).magnitude + factor * exact(**of_other).magnitude
    with np.errstate(all="ignore"):
        assert (np.abs(to_array(one) - other) <= promise.allowed(size, one.dtype)).all()


def with_latents(arguments: Arguments, change: Any) -> Arguments:
    """The same with ``change(x, dim)`` of what has latents, in that dimension."""
    return {
        name: change(x, -2 if name == "decoded" else -1)
        if name in ("decoded", "log_weight", "latent_energy")
        else x
        for name, x in arguments.items()
    }


@ON_EACH
@examples(share(0.2), 15)
@given(case=cases(dyadic=True), seed=SEEDS)
def test_the_laws(parameter: Parameter, case: Case, seed: int) -> None:
    arguments = case.arguments
    generator = torch.Generator().manual_seed(seed)
    N = arguments["decoded"].shape[-2]

    def value(arguments: Arguments) -> Tensor:
        return free_energy(**arguments, backend=backend)

    with selected(*parameter) as backend:
        found = value(arguments)
        # In another order.
        order = torch.randperm(N, generator=generator)
        moved = with_latents(arguments, lambda x, dim: x.index_select(dim, order))
        close(found, arguments, to_array(value(moved)), moved)
        # Twice.
        twice = with_latents(arguments, lambda x, dim: torch.cat((x, x), dim))
        close(found, arguments, to_array(value(twice)), twice)
        # At another scale of lengths: both powers of two, and rounded nowhere.
        larger = {
            name: x * {"y": 4, "decoded": 4, "beta": 1 / 16, "latent_energy": 16}.get(name, 1)
            for name, x in arguments.items()
        }
        if torch.equal(larger["beta"] * 16, arguments["beta"]):
            close(found, arguments, to_array(value(larger)) / 16, larger, 1 / 16)
        # Elsewhere; all are multiples of 1/16, and no wider than the halves' 8 bits with this.
        if "scale" not in arguments and arguments["y"].dtype in (torch.float32, torch.float64):
            shift = torch.randint(-64, 64, arguments["y"].shape[-1:], generator=generator) / 8
            there = {**arguments, **{n: arguments[n] + shift for n in ("y", "decoded")}}
            close(found, arguments, to_array(value(there)), there)
        # Energies that are all higher.
        if arguments["y"].dtype in (torch.float32, torch.float64):
            r = arguments.get("latent_energy", arguments["y"].new_zeros(N))
            high = {**arguments, "latent_energy": r + 5}
            close(found, arguments, to_array(value(high)) - 5, high)
        # Between the minimum and the mean; never rising with beta.
        pairs, size = every_pair(arguments), exact(**arguments).magnitude
        slack = promise.allowed(size, found.dtype)
        assert (to_array(found) >= pairs.least[..., 0] - slack).all()
        assert (to_array(found) <= (pairs.least + pairs.mean_excess)[..., 0] + slack).all()
        colder = {**arguments, "beta": 2 * arguments["beta"]}
        colder_slack = slack + promise.allowed(exact(**colder).magnitude, found.dtype)
        assert (to_array(value(colder)) <= to_array(found) + colder_slack).all()
        # The grid in two parts: w exp(-beta F) adds up.
        check_merging(arguments, found, value)


def check_merging(arguments: Arguments, found: Tensor, value: Any) -> None:
    """F of a grid follows from those of its two parts, and from their weights."""
    N = arguments["decoded"].shape[-2]
    half = (N + 1) // 2
    if N == 1:
        return
    parts = [
        with_latents(arguments, lambda x, dim, a=a, n=n: x.narrow(dim, a, n))
        for a, n in ((0, half), (half, N - half))
    ]
    log_weight = to_array(arguments.get("log_weight", torch.zeros(N)))
    log_mass = [logsumexp(x) - logsumexp(log_weight) for x in np.split(log_weight, [half])]
    if np.isinf(log_mass).any():
        return
    low, high = (to_array(value(part)) for part in parts)
    b = to_array(arguments["beta"])
    w0, w1 = np.exp(log_mass)
    least = np.minimum(low, high)
    with np.errstate(all="ignore"):
        excess = [b * (x - least) for x in (low, high)]
        # The first form is the exact one at a small beta; of a light part that is far below the
        # other, it keeps no digit.
        total = w0 * np.expm1(-excess[0]) + w1 * np.expm1(-excess[1])
        log_total = np.logaddexp(log_mass[0] - excess[0], log_mass[1] - excess[1])
        warm = least - np.where(total > -0.5, np.log1p(total), log_total) / b
    merged = np.where(np.isinf(b), least, np.where(b == 0, w0 * low + w1 * high, warm))
    size = sum(exact(**x).magnitude for x in (arguments, *parts))
    assert (np.abs(to_array(found) - merged) <= promise.allowed(size, found.dtype)).all()


@ON_EACH
@examples(share(0.1), 15)
@given(case=cases(dyadic=True), cut=st.integers(0, 300))
def test_queries_in_two_calls_have_the_same_bits(
    parameter: Parameter, case: Case, cut: int
) -> None:
    arguments = case.arguments
    M = arguments["y"].shape[0]
    cut = cut % (M + 1)

    def of(queries: slice) -> Arguments:
        own = {"y": 2, "scale": 2, "beta": 1}
        return {n: x[queries] if x.dim() == own.get(n) else x for n, x in arguments.items()}

    with selected(*parameter) as backend:
        whole, *parts = (
            (free_energy(**x, backend=backend), *posterior(**x, backend=backend))
            for x in (arguments, of(slice(0, cut)), of(slice(cut, M)))
        )
    for one, *others in zip(whole, *parts, strict=True):
        assert torch.equal(one, torch.cat(others))
