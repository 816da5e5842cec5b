"""softmin, softmax, softargmin and softargmax of energies that one already has."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp
from support.accuracy import BETAS
from support.fuzzing import examples
from support.oracle import Array, to_array
from torch import Tensor

from lebm_kernels import reference, softargmax, softargmin, softmax, softmin
from lebm_kernels.diagnostics import promise

WARM = (1e-3, 0.1, 1.0, 30.0, 1e3)
HALVES = (torch.float16, torch.bfloat16)


class Limit(NamedTuple):
    """The exact value, shares and weights of one row of energies, and the size of F's terms."""

    value: float
    shares: Array
    weights: Array
    scale: float
    blur: Array  # of log p: the sizes that a relative error of eps in each term counts for


def limit(energy: Array, beta: float, log_weight: Array) -> Limit:
    """In NumPy's long double, with each limit written out."""
    empty = np.full(energy.shape, math.nan)
    nothing = Limit(math.nan, empty, empty, math.nan, empty)
    if np.isnan(log_weight).any() or log_weight.max() in (math.inf, -math.inf):
        return nothing
    kept = log_weight > -math.inf
    if np.isnan(energy[kept]).any() or not beta >= 0:
        return nothing
    E = energy[kept].astype(np.longdouble)
    log_w = log_weight[kept].astype(np.longdouble)
    log_w = log_w - log_w.max()
    log_w = log_w - np.log(np.exp(log_w).sum())
    w, least = np.exp(log_w), E.min()
    with np.errstate(invalid="ignore"):
        excess = np.where(least == E, 0, E - least)  # equal infinities tie
    near = excess == 0 if beta == math.inf else excess < math.inf
    cooled = np.where(near, -(0 if beta == math.inf else beta) * np.where(near, excess, 0), -np.inf)
    p = np.exp(log_w + cooled - (log_w + cooled).max())
    p = p / p.sum()

    if beta == 0:
        with np.errstate(invalid="ignore"):
            value = (w * E).sum()  # NaN if both inf and -inf are among them
    elif math.isinf(least) or beta == math.inf:
        value = least
    else:
        deficit = (w * np.expm1(cooled)).sum()
        log_sum = np.log1p(deficit) if deficit > -0.5 else logsumexp(log_w + cooled)
        value = least - log_sum / beta
    shares, weights, blur = (np.zeros(energy.shape) for _ in range(3))
    shares[kept], weights[kept] = p, w
    blur[kept] = np.where(near, 1 - log_w - cooled, 0)
    mean_excess = (w * excess).sum()
    scale = promise.value_scale(abs(least), mean_excess, beta, E.size, log_w[E.argmin()])
    return Limit(float(value), shares, weights, float(scale), blur)


_ODD = st.sampled_from((0.0, 1.0, math.inf, -math.inf, math.nan))
_DTYPES = st.sampled_from((torch.float32, torch.float64, *HALVES))
_MODES = st.sampled_from(("eager", "vmap"))


@examples(0.05, 150)
@given(
    energies=st.lists(st.one_of(st.floats(-100, 100, width=16), _ODD), min_size=1, max_size=8),
    offset=st.sampled_from((0.0, 1e3)),
    beta=st.one_of(st.sampled_from((*BETAS, 1e-40)), st.floats(0, 10, width=16)),
    weights=st.lists(st.one_of(st.floats(-5, 5, width=16), _ODD), min_size=8, max_size=8),
    weighted=st.booleans(),
    sign=st.sampled_from((1, -1)),
    dtype=_DTYPES,
    mode=_MODES,
)
def test_any_numbers_have_their_limits(
    energies: list[float],
    offset: float,
    beta: float,
    weights: list[float],
    weighted: bool,
    sign: int,
    dtype: torch.dtype,
    mode: str,
) -> None:
    energy = (torch.tensor(energies) + offset).to(dtype)
    # NaN and inf in half of the weights would leave few cases.
    log_weight = torch.tensor(weights[: len(energies)]).to(dtype) if weighted else None
    wide = torch.promote_types(dtype, torch.float32)
    temperature = torch.tensor(beta, dtype=wide)
    truth = limit(
        to_array(energy),
        temperature.item(),
        np.zeros(len(energies)) if log_weight is None else to_array(log_weight),
    )

    def of(function: Callable[..., Tensor], energy: Tensor) -> Tensor:
        if mode == "eager":
            return function(energy, temperature, 0, log_weight)
        return torch.vmap(lambda e: function(e, temperature, 0, log_weight))(energy[None])[0]

    leaf = (sign * energy).requires_grad_()
    value = of(softmin if sign > 0 else softmax, leaf)
    shares = of(softargmin if sign > 0 else softargmax, leaf).detach()
    assert value.dtype == shares.dtype == dtype
    half = torch.finfo(dtype).eps if dtype in HALVES else 0.0
    tiny = torch.finfo(dtype).smallest_normal

    def check(found: Tensor, wanted: Any, bound: Any) -> None:
        with np.errstate(invalid="ignore"):
            difference = np.abs(to_array(found) - wanted)
        agree = (difference <= bound) | (to_array(found) == wanted)
        agree |= np.isnan(to_array(found)) & np.isnan(wanted)
        # The value may be beyond the dtype.
        agree |= np.isinf(to_array(found)) & (np.abs(wanted) > torch.finfo(dtype).max / 2)
        assert agree.all(), (found, wanted, bound)

    rounding = half * abs(truth.value) + tiny
    check(sign * value.detach(), truth.value, promise.allowed(truth.scale, dtype) + rounding)
    p_bound = truth.shares * (promise.allowed(truth.blur, dtype) + half) + tiny
    check(shares, truth.shares, p_bound)
    if not math.isnan(truth.value):
        (slope,) = torch.autograd.grad(value, leaf)
        check(slope, truth.shares, p_bound + promise.allowed(truth.weights, dtype))


def derivatives(
    function: Callable[..., Tensor], energy: Tensor, beta: Tensor, log_weight: Tensor, grad: Tensor
) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in (energy, beta, log_weight)]
    return list(torch.autograd.grad(function(*leaves), leaves, grad))


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("beta", BETAS)
def test_first_derivatives_against_the_formulas_in_float64(beta: float, offset: float) -> None:
    energy, log_weight = torch.randn(6, 50) + offset, 3 * torch.randn(6, 50)
    log_weight[:, 7] = -math.inf
    given = (energy, torch.full((6,), beta), log_weight)
    wide = [x.double() for x in given]
    grad = torch.randn(6)
    wanted = derivatives(reference.softmin, *wide, grad.double())
    found = derivatives(lambda e, b, w: softmin(e, b, 1, w), *given, grad)
    for got, true in zip(found, wanted, strict=True):
        close(got, true, float(true.abs().max()))

    grad = torch.randn(6, 50)
    wanted = derivatives(reference.softargmin, *wide, grad.double())
    found = derivatives(lambda e, b, w: softargmin(e, b, 1, w), *given, grad)
    largest = float(grad.abs().max())
    if beta == math.inf:  # constant, but where energies begin to tie
        wanted[0] = torch.zeros_like(wanted[0])
    sizes = (0.0 if beta == math.inf else beta, float(energy.max() - energy.min()), 1.0)
    for got, true, size in zip(found, wanted, sizes, strict=True):
        close(got, true, largest * size)


def close(found: Tensor, wanted: Tensor, size: float) -> None:
    """Within 16 eps of a sum whose terms have that size."""
    atol = promise.allowed(size, found.dtype)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("function", [softmin, softmax, softargmin, softargmax])
def test_compiled_and_transformed(function: Callable[..., Tensor]) -> None:
    energy, beta, log_weight = torch.randn(4, 5), torch.rand(4), torch.randn(5)
    energy[1, 2] = math.inf
    wanted = function(energy, beta, 1, log_weight)
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(energy, beta, 1, log_weight), wanted)
    each = torch.vmap(lambda e, b: function(e, b, 0, log_weight))
    torch.testing.assert_close(each(energy, beta), wanted)

    finite = [x.double() for x in (energy.nan_to_num(posinf=3.0), beta, log_weight)]
    leaves = [x.clone().requires_grad_() for x in finite]
    rates = [torch.randn_like(x) for x in finite]

    def of(e: Tensor, b: Tensor, w: Tensor) -> Tensor:
        return function(e, b, 1, w)

    value, rate = torch.func.jvp(of, tuple(finite), tuple(rates))
    found = of(*leaves)
    torch.testing.assert_close(value, found.detach())
    grad = torch.randn_like(found)
    slopes = torch.autograd.grad(found, leaves, grad)
    by_reverse = sum((slope * x).sum() for slope, x in zip(slopes, rates, strict=True))
    torch.testing.assert_close((grad * rate).sum(), by_reverse)
    transformed = torch.func.grad(lambda *x: (of(*x) * grad).sum(), argnums=(0, 1, 2))(*finite)
    torch.testing.assert_close(transformed, slopes)


def test_the_same_tensor_twice() -> None:
    x = torch.randn(5).double().requires_grad_()
    torch.autograd.gradgradcheck(lambda x: softmin(x, 2.0, 0, x), (x,))
    torch.autograd.gradgradcheck(lambda x: softargmin(x, 2.0, 0, x), (x,))


@pytest.mark.parametrize("function", [softargmin, softargmax])
@pytest.mark.parametrize("beta", [1e-2, 1.0])
def test_gradcheck_of_the_shares(function: Callable[..., Tensor], beta: float) -> None:
    leaves = (torch.randn(3, 4), torch.full((3,), beta), torch.randn(4))
    leaves = tuple(x.double().requires_grad_() for x in leaves)
    torch.autograd.gradcheck(lambda e, b, w: function(e, b, 1, w), leaves)
    torch.autograd.gradgradcheck(lambda e, b, w: function(e, b, 1, w), leaves)


@pytest.mark.parametrize("shape", [(1_000_000,), (70_000, 2), (2, 70_000)])
@pytest.mark.parametrize("dtype", HALVES)
def test_halves_are_summed_in_float32(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    dim = 1 if shape[0] == 2 else 0
    energy = torch.full(shape, 2.0, dtype=dtype, requires_grad=True)
    log_weight = torch.zeros(shape[dim], dtype=dtype, requires_grad=True)
    for beta in (0.0, 1.0, math.inf):
        assert (softmin(energy, beta, dim) == 2).all()
        assert (softmax(energy, beta, dim, log_weight) == 2).all()
    beta = torch.tensor(1.0, dtype=dtype, requires_grad=True)
    energy = torch.rand(shape).to(dtype).requires_grad_()
    value = softmin(energy, beta, dim, log_weight)
    slopes = torch.autograd.grad(value.sum(), (energy, beta, log_weight))
    wide = [x.detach().double().requires_grad_() for x in (energy, beta, log_weight)]
    wanted = reference.softmin(wide[0].movedim(dim, -1), wide[1], wide[2])
    wide_slopes = torch.autograd.grad(wanted.sum(), wide)
    for got, true in zip((value, *slopes), (wanted, *wide_slopes), strict=True):
        assert got.dtype == dtype
        rounding = torch.finfo(dtype)
        least = rounding.smallest_normal * rounding.eps
        atol = max(least, promise.allowed(float(true.detach().abs().max()), dtype))
        torch.testing.assert_close(got.double(), true, rtol=rounding.eps, atol=atol)


def test_a_beta_beyond_the_energies_dtype() -> None:
    energy = torch.tensor([1.0, 1.0 + 2**-10], dtype=torch.float16)
    wanted = torch.softmax(torch.tensor([0.0, -70000 * 2.0**-10]), 0).half()
    for beta in (70000.0, torch.tensor(70000.0)):
        torch.testing.assert_close(softargmin(energy, beta, 0), wanted)
    small = torch.tensor([0.0, 2**-24], dtype=torch.float16)  # float16's least
    torch.testing.assert_close(
        softargmin(small, 70000.0, 0).float(),
        torch.softmax(torch.tensor([0.0, -70000 * 2.0**-24]), 0),
        rtol=1e-3,
        atol=0,
    )
    assert softargmin(small, math.inf, 0).tolist() == [1, 0]
    assert softmin(energy, torch.tensor(2.0).half(), 0).dtype == torch.float16


@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_ten_million_energies(beta: float) -> None:
    energy = torch.rand(10_000_000)
    exponent = -beta * energy.double()
    mean = energy.mean(dtype=torch.float64)
    wanted = mean if beta == 0 else -torch.log1p(exponent.expm1().mean()) / beta
    p = exponent.exp_()
    p /= p.sum()
    leaf = energy.clone().requires_grad_()
    found = softmin(leaf, beta, 0)
    assert (found - wanted).abs() <= promise.allowed(wanted, torch.float32)
    (slope,) = torch.autograd.grad(found, leaf)
    for share in (slope, softargmin(energy[:, None], beta, 0)[:, 0]):
        assert ((share - p).abs() <= promise.allowed(p, torch.float32)).all()


@pytest.mark.parametrize("beta", WARM)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_against_scipy(beta: float, dim: int) -> None:
    energy = torch.randn(5, 6, 7).double()
    size = math.log(energy.shape[dim])
    low = -(logsumexp(-beta * energy.numpy(), axis=dim) - size) / beta
    high = (logsumexp(beta * energy.numpy(), axis=dim) - size) / beta
    np.testing.assert_allclose(softmin(energy, beta, dim).numpy(), low, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(softmax(energy, beta, dim).numpy(), high, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(softargmin(energy, beta, dim), torch.softmax(-beta * energy, dim))
    torch.testing.assert_close(softargmax(energy, beta, dim), torch.softmax(beta * energy, dim))


def test_limits() -> None:
    energy = torch.tensor([[1.0, 3.0, 1.0, 7.0]])
    assert softmin(energy, math.inf, 1).tolist() == [1.0]
    assert softmax(energy, math.inf, 1).tolist() == [7.0]
    assert softmin(energy, 0.0, 1).tolist() == [3.0]
    assert softmax(energy, 0, 1).tolist() == [3.0]
    assert softargmin(energy, math.inf, 1).tolist() == [[0.5, 0.0, 0.5, 0.0]]
    assert softargmax(energy, math.inf, 1).tolist() == [[0.0, 0.0, 0.0, 1.0]]
    assert softargmin(energy, 0.0, 1).tolist() == [[0.25] * 4]


@pytest.mark.parametrize("beta", BETAS)
def test_log_weights(beta: float) -> None:
    # Weights 1, 2 and 3 are the same as so many copies; -inf is the same as no latent.
    energy = torch.randn(4, 3).double()
    copies = torch.tensor([0, 1, 1, 2, 2, 2])
    log_weight = torch.tensor([1.0, 2.0, 3.0]).double().log() + 5
    for function in (softmin, softmax):
        torch.testing.assert_close(
            function(energy, beta, 1, log_weight), function(energy[:, copies], beta, 1)
        )
    whole = softargmin(energy, beta, 1, log_weight)
    parts = softargmin(energy[:, copies], beta, 1)
    torch.testing.assert_close(whole, torch.zeros_like(whole).index_add(1, copies, parts))
    torch.testing.assert_close(whole.sum(1), torch.ones(4).double())

    dropped = torch.tensor([0.0, -math.inf, 0.0]).double()
    torch.testing.assert_close(softmin(energy, beta, 1, dropped), softmin(energy[:, ::2], beta, 1))
    assert (softargmin(energy, beta, 1, dropped)[:, 1] == 0).all()


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("far", [5.0, -5.0, 1e3, 1e15])
def test_what_is_dropped_is_not_seen(beta: float, far: float) -> None:
    energy = torch.tensor([100.0, far, 100.2, far]).double().requires_grad_()
    log_weight = torch.tensor([0.3, -math.inf, -1.0, -math.inf]).double()
    for function in (softmin, softmax):
        found = function(energy, beta, 0, log_weight)
        wanted = function(energy[::2], beta, 0, log_weight[::2])
        torch.testing.assert_close(found, wanted, rtol=1e-14, atol=0)
        slopes = [torch.autograd.grad(x, energy)[0] for x in (found, wanted)]
        torch.testing.assert_close(slopes[0], slopes[1])


def test_dropped_energies_have_known_values() -> None:
    def of(energy: list[float], log_weight: list[float]) -> float:
        wide = [torch.tensor(x, dtype=torch.float64) for x in (energy, log_weight)]
        return softmin(wide[0], 1.0, 0, wide[1]).item()

    assert of([100.0, 5.0], [0.0, -math.inf]) == 100
    wanted = 100 - logsumexp([0.0, -0.2], b=[0.5, 0.5])
    assert of([100.0, 100.2, 0.0], [0.0, 0.0, -math.inf]) == pytest.approx(wanted, rel=1e-14)


def test_numbers_too_large_for_the_dtype_are_infinite() -> None:
    energy = torch.tensor([[1.0, 3.0, 1.0, 7.0]])
    for beta in (1e39, 10**400):
        assert softmin(energy, beta, 1).tolist() == [1.0]
        assert softmax(energy, beta, 1).tolist() == [7.0]
        assert softargmin(energy, beta, 1).tolist() == [[0.5, 0.0, 0.5, 0.0]]


def test_softmax_mirrors_softmin() -> None:
    energy, log_weight = torch.randn(4, 9).double(), torch.randn(9).double()
    for beta in BETAS:
        torch.testing.assert_close(
            softmax(energy, beta, 1, log_weight), -softmin(-energy, beta, 1, log_weight)
        )


def test_a_temperature_for_each_result() -> None:
    energy = torch.randn(6, 5).double()
    beta = torch.tensor([0.0, 1e-9, 0.1, 1.0, 1e5, math.inf]).double()
    found, p = softmin(energy, beta, 1), softargmin(energy, beta, 1)
    for i, b in enumerate(beta.tolist()):
        torch.testing.assert_close(found[i], softmin(energy[i], b, 0))
        torch.testing.assert_close(p[i], softargmin(energy[i], b, 0))
    assert softmin(energy, beta[:, None, None], 1).shape == (6, 1, 6)
    assert softargmin(energy, beta[:, None], 1).shape == (6, 6, 5)


@pytest.mark.parametrize("beta", [0.0, 1e-6, 1e-2, 1.0, 30.0])
@pytest.mark.parametrize("function", [softmin, softmax])
def test_gradcheck_to_second_order(function: Callable[..., torch.Tensor], beta: float) -> None:
    energy = torch.randn(3, 4).double().requires_grad_()
    log_weight = torch.randn(4).double().requires_grad_()
    temperature = torch.full((3,), beta).double().requires_grad_()
    if beta < 1e-3:
        # A difference quotient in beta would step below zero.
        temperature.requires_grad_(False)

    def of_all(e: torch.Tensor, b: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return function(e, b, 1, w)

    torch.autograd.gradcheck(of_all, (energy, temperature, log_weight))
    torch.autograd.gradgradcheck(of_all, (energy, temperature, log_weight))


def test_the_gradient_of_softmin_is_softargmin() -> None:
    energy = torch.randn(4, 9).double().requires_grad_()
    for beta in BETAS:
        (slope,) = torch.autograd.grad(softmin(energy, beta, 1).sum(), energy)
        torch.testing.assert_close(slope, softargmin(energy, beta, 1).detach())
