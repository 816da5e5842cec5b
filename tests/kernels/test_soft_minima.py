"""Soft minima of given energies by the extension, on each instruction set, against float64."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from support.backends import identify, kernel_parameters, selected
from torch import Tensor

from lebm_kernels import reference, softargmax, softargmin, softmax, softmin
from lebm_kernels.backends import native
from lebm_kernels.diagnostics import promise

PARAMETERS = [p for p in kernel_parameters() if p[0] == "native"]
pytestmark = pytest.mark.skipif(native.call_softmin is None, reason="the extension is missing")

# Parts of a vector and of a step, a whole run, several runs, and a row in pieces.
SIZES = (1, 2, 3, 7, 8, 9, 31, 32, 33, 100, 255, 507, 1025, 40_001)
DTYPES = (torch.float32, torch.float64)


@pytest.fixture(params=PARAMETERS, ids=identify, autouse=True)
def _instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    with selected(*request.param):
        yield


def check(energy: Tensor, beta: Tensor, dim: int, log_weight: Tensor | None, sign: int) -> None:
    """Values, shares and their gradients in the energies keep the promise."""
    wide = sign * energy.double().movedim(dim, -1)
    wide_beta = beta.double()
    wide_weight = None if log_weight is None else log_weight.double()
    true = reference.softmin(wide, wide_beta, wide_weight)
    p = reference.softargmin(wide, wide_beta, wide_weight)
    log_w = reference.log_weights(wide_weight, wide)
    kept = (log_w > -math.inf).expand(wide.shape)
    least, nearest = torch.where(kept, wide, math.inf).min(-1)
    mean_excess = (log_w.exp() * torch.where(kept, wide - least.unsqueeze(-1), 0.0)).sum(-1)
    of_nearest = log_w.expand(wide.shape).gather(-1, nearest.unsqueeze(-1)).squeeze(-1)
    sizes = [x.numpy() for x in (least.abs(), mean_excess, wide_beta.expand(least.shape))]
    scale = promise.value_scale(*sizes, energy.shape[dim], of_nearest.numpy())
    allowed = promise.allowed(torch.from_numpy(scale), energy.dtype)

    leaf = energy.clone().requires_grad_()
    value = (softmin if sign > 0 else softmax)(leaf, beta, dim, log_weight)
    assert ((sign * value.detach() - true).abs() <= allowed).all()

    cooled = torch.where(kept, wide - least.unsqueeze(-1), 0.0)
    cooled = torch.where(wide_beta.unsqueeze(-1) < math.inf, wide_beta.unsqueeze(-1) * cooled, 0.0)
    blur = 1 + cooled - torch.where(kept, log_w, 0.0)
    tiny = torch.finfo(energy.dtype).smallest_normal
    bound_of_p = p * promise.allowed(blur, energy.dtype) + tiny
    shares = (softargmin if sign > 0 else softargmax)(energy, beta, dim, log_weight)
    assert shares.shape == energy.shape
    assert ((shares.movedim(dim, -1) - p).abs() <= bound_of_p).all()
    grad = torch.randn_like(value)
    (slope,) = torch.autograd.grad(value, leaf, grad)
    wanted = grad.unsqueeze(-1) * p
    bound = grad.abs().unsqueeze(-1) * bound_of_p + tiny
    assert ((slope.movedim(dim, -1) - wanted).abs() <= bound).all()

    shares = (softargmin if sign > 0 else softargmax)(leaf, beta, dim, log_weight)
    grad = torch.randn_like(shares)
    (slope,) = torch.autograd.grad(shares, leaf, grad)
    wide_grad = grad.double().movedim(dim, -1)
    rate = torch.where(wide_beta == math.inf, 0.0, -sign * wide_beta).unsqueeze(-1)
    wanted = rate * p * (wide_grad - (p * wide_grad).sum(-1, keepdim=True))
    largest = wide_grad.abs().amax(-1, keepdim=True)
    error_of_mean = (bound_of_p * largest).sum(-1, keepdim=True)
    bound = rate.abs() * (2 * bound_of_p * largest + p * error_of_mean)
    bound = bound + tiny * torch.finfo(energy.dtype).eps  # the spacing of subnormal numbers
    assert ((slope.movedim(dim, -1) - wanted).abs() <= bound).all()


BETAS = (0.0, 1e-40, 1e-7, 0.03, 1.0, 7.0, 1e4, math.inf)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_every_size(size: int, dtype: torch.dtype) -> None:
    energy = torch.randn(len(BETAS), size, dtype=dtype) + 3
    for sign in (1, -1):
        check(energy, torch.tensor(BETAS, dtype=dtype), 1, None, sign)


@pytest.mark.parametrize("weights", ["one", "each", "dropped"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 9, 33, 255, 40_001])
def test_weights(size: int, dtype: torch.dtype, weights: str) -> None:
    energy = torch.randn(len(BETAS), size, dtype=dtype) + 3
    shape = (size,) if weights == "one" else energy.shape
    log_weight = 3 * torch.randn(shape, dtype=dtype)
    if weights == "dropped":
        log_weight[:, 1::3] = -math.inf
    check(energy, torch.tensor(BETAS, dtype=dtype), 1, log_weight, 1)


@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 130])
@pytest.mark.parametrize("size", [1, 5, 300])
@pytest.mark.parametrize("dim", [0, 1])
def test_columns(size: int, width: int, dim: int) -> None:
    shape = (size, 2, width) if dim == 0 else (2, size, width)
    energy = torch.randn(shape)
    beta = torch.rand(2, width)
    for sign in (1, -1):
        check(energy, beta, dim, None, sign)
        check(energy, beta, dim, torch.randn(size), sign)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unit", [-1, 1])
def test_units_at_the_ends_of_the_range(dtype: torch.dtype, unit: int) -> None:
    finfo = torch.finfo(dtype)
    size = finfo.max / 16 if unit > 0 else finfo.smallest_normal * 16
    energy = size * torch.rand(5, 77, dtype=dtype)
    log_weight = torch.randn(77, dtype=dtype)
    # A beta of 1 / size, but within the range.
    betas = [min(factor / size, finfo.max / 2) for factor in (0.0, 1e-3, 0.3, 1.0, 30.0)]
    beta = torch.tensor(betas, dtype=dtype)
    for weights in (None, log_weight):
        found = softmin(energy, beta, 1, weights).double() / size
        p = softargmin(energy, beta, 1, weights).double()
        wide = None if weights is None else weights.double()
        true = reference.softmin(energy.double() / size, beta.double() * size, wide)
        shares = reference.softargmin(energy.double() / size, beta.double() * size, wide)
        # The least normal numbers, and betas near them, have fewer digits.
        rtol = 64 * finfo.eps
        torch.testing.assert_close(found, true, rtol=rtol, atol=rtol)
        torch.testing.assert_close(p, shares, rtol=2 * rtol, atol=rtol)


@pytest.mark.parametrize("dtype", DTYPES)
def test_energies_too_far_apart_for_the_dtype(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    for energy in ([-0.9 * most, 0.9 * most], [-most, most], [-0.9 * most, 0.8 * most, most]):
        row = torch.tensor([energy], dtype=dtype)
        # Infinitely far apart: at beta = 0 the mean is infinite, otherwise only the minimum counts.
        assert softmin(row, 0.0, dim=1).item() == math.inf
        assert softmax(row, 0.0, dim=1).item() == -math.inf
        for beta in (1.0, math.inf):
            assert softmin(row, beta, dim=1).item() == pytest.approx(energy[0], rel=1e-6)
            assert softargmin(row, beta, dim=1).tolist() == [[1.0] + [0.0] * (len(energy) - 1)]
        assert softmin(torch.tensor([[-math.inf, math.inf]], dtype=dtype), 0.0, dim=1).isnan()


def test_bits_do_not_depend_on_threads_or_neighbours() -> None:
    energy, log_weight = torch.randn(3, 70_000), torch.randn(70_000)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(
            [f(energy, 0.7, 1, w) for f in (softmin, softargmin) for w in (None, log_weight)]
        )
    torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))
    assert torch.equal(softmin(energy[1], 0.7, 0), softmin(energy, 0.7, 1)[1])


def test_neighbours_do_not_change_a_row() -> None:
    energy = torch.full((3, 13), math.nan)
    energy[1] = torch.arange(13.0)
    alone = torch.arange(13.0)
    assert softmin(energy, 1.0, 1)[1] == softmin(alone, 1.0, 0)
    assert torch.equal(softargmin(energy, 1.0, 1)[1], softargmin(alone, 1.0, 0))
    assert softmin(energy, 1.0, 1)[::2].isnan().all()


def test_small_shares_are_normal_numbers_or_zero() -> None:
    energy = torch.linspace(0, 110, 1000)
    p = softargmin(energy, 1.0, 0)
    assert ((p == 0) | (p >= torch.finfo(torch.float32).smallest_normal)).all()
    assert (p == 0).any()
