"""Another unit of length changes a result by its power of the unit alone; <E> and KL are sums.

y, decoded -> a y, a decoded with beta -> beta / a^2 and latent_energy -> a^2 latent_energy takes F
to a^2 F. For a power of two nothing is rounded, so that the exact results of the ordinary unit are
those of every unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.accuracy import assert_gradients_accurate
from support.backends import identify, kernel_parameters, selected
from support.fuzzing import examples
from support.oracle import Array, every_pair, exact, to_array
from torch import Tensor

from lebm_kernels import free_energy, posterior
from lebm_kernels.diagnostics import promise

Arguments = dict[str, Tensor]

PARAMETERS = [p for p in kernel_parameters() if p[0] in ("native", "chunked")]
ON_EACH = pytest.mark.parametrize("parameter", PARAMETERS, ids=identify)

POWERS: Mapping[str, int] = {"y": 1, "decoded": 1, "beta": -2, "latent_energy": 2}
"""The power of the unit in each argument; the gradient of F by it has 2 minus this."""

# The exponents of the unit for which an energy of ordinary data, and then its square, stay normal.
_FARTHEST = {torch.float32: (50, 25), torch.float64: (490, 245)}


def in_unit(arguments: Arguments, exponent: int) -> Arguments:
    """The arguments in a unit of length 2^-exponent."""
    return {
        name: torch.ldexp(x, torch.tensor(exponent * POWERS.get(name, 0)))
        for name, x in arguments.items()
    }


def taken_back(x: Tensor, power: int) -> Tensor:
    """``x`` times 2^-power: exact, and an ordinary number again."""
    return torch.ldexp(x.double(), torch.tensor(-power)).to(x.dtype)


@st.composite
def problems(draw: Any) -> tuple[Arguments, int, bool]:
    """A problem in the ordinary unit, the exponent of another, whether KL / beta^2 is normal."""
    dtype = draw(st.sampled_from((torch.float32, torch.float64)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    D, N, M = (draw(st.sampled_from(x)) for x in ((1, 2, 4, 5, 7), (1, 2, 3, 8, 40), (1, 2, 17)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    decoded = normal(N, D)
    nearest = decoded[torch.randint(N, (M,), generator=generator)]
    apart = draw(st.sampled_from((0.0, 2.0**-8, 1.0, 30.0)))
    beta = draw(st.sampled_from((0.0, 1e-9, 1e-4, 1.0, 30.0, 1e5, math.inf)))
    arguments = {
        "y": (nearest + apart * normal(M, D)).to(dtype),
        "decoded": decoded.to(dtype),
        "beta": (beta * (normal(M).abs() + 0.5)).to(dtype),
    }
    if draw(st.booleans()):
        arguments["scale"] = (1 + normal(D) / 4).to(dtype)
    if draw(st.booleans()):
        arguments["log_weight"] = (draw(st.sampled_from((1.0, 20.0))) * normal(N)).to(dtype)
    if draw(st.booleans()):
        arguments["latent_energy"] = normal(N).abs().to(dtype)
    squared = draw(st.booleans())
    farthest = _FARTHEST[dtype][squared]
    return arguments, draw(st.integers(-farthest, farthest)), squared


# y, decoded and beta of one query, whose differences, powers or products used to leave the range.
EXTREMES = [
    pytest.param(dtype, *case, id=f"{name} {dtype}".replace("torch.", ""))
    for dtype, name, case in (
        (torch.float32, "a hit", ([0.0], [0.0, 500.0], 1e-4)),
        (torch.float32, "small", ([0.0], [0.0, 1e-10], 1.9e19)),
        (torch.float32, "large", ([0.0], [1e10, 0.0], 1e-20)),
        (torch.float32, "largest", ([1e19], [0.0], 1.0)),
        (torch.float64, "a hit", ([0.0], [0.0, 500.0], 1e-4)),
        (torch.float64, "small", ([0.0], [0.0, 1e-80], 1e160)),
        (torch.float64, "large", ([0.0], [1e80, 0.0], 1e-160)),
    )
]


@pytest.mark.parametrize(("dtype", "y", "decoded", "beta"), EXTREMES)
def test_extremes(
    backend: str, dtype: torch.dtype, y: list[float], decoded: list[float], beta: float
) -> None:
    arguments = [torch.tensor(x, dtype=dtype) for x in (y, decoded, beta)]
    found = posterior(*(x[:, None] for x in arguments[:2]), arguments[2], backend=backend)
    at, latents, rate = map(to_array, arguments)
    energy = (at[:, None] - latents) ** 2
    mass = np.exp(-rate * (energy - energy.min()))
    p = mass / mass.sum()
    entropy = (p * np.log(p * len(decoded))).sum()
    expected = (energy.min() - np.log(mass.mean()) / rate, (p * energy).sum(), entropy)
    for got, wanted in zip((found[0], found[2], found[3]), expected, strict=True):
        assert abs(to_array(got).item() - wanted) <= 512 * torch.finfo(dtype).eps * wanted


def test_a_circle_at_its_own_points(any_backend: str) -> None:
    angle = torch.arange(60) * (2 * math.pi / 60)
    circle = torch.stack((angle.cos(), angle.sin()), dim=1)
    found = posterior(circle, circle, 1e5, backend=any_backend)
    assert (found.energy >= 0).all()
    assert (found.energy < 1e-30).all()
    # To first order in beta, KL is beta^2 Var(E) / 2, and E is 2 - 2 cos with a variance of 2.
    beta = 1e-6
    entropy = posterior(circle, circle, beta, backend=any_backend).relative_entropy
    assert ((entropy / beta**2 - 1).abs() < 1e-5).all()


@ON_EACH
@examples(0.5 / len(PARAMETERS), 40)
@given(problem=problems(), seed=st.integers(0, 99))
def test_every_unit_of_length(
    parameter: tuple[str, str | None], problem: tuple[Arguments, int, bool], seed: int
) -> None:
    arguments, exponent, squared = problem
    there = in_unit(arguments, exponent)
    wanted = [name for name in arguments if squared or name != "beta"]
    leaves = {name: x.requires_grad_(name in wanted) for name, x in there.items()}
    with selected(*parameter) as backend:
        value = free_energy(**leaves, backend=backend)
        grad = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed)).to(value)
        found = torch.autograd.grad(value, [leaves[name] for name in wanted], grad)
        moments = posterior(**{n: x.detach() for n, x in there.items()}, backend=backend)
    tiny = 2.0**20 * torch.finfo(value.dtype).smallest_normal
    truth = exact(**arguments)
    error = np.abs(to_array(taken_back(value, 2 * exponent)) - truth.free_energy)
    beneath = math.ldexp(tiny, max(0, -2 * exponent))
    assert (error <= promise.allowed(truth.magnitude, value.dtype) + beneath).all()
    powers = {name: exponent * (2 - POWERS.get(name, 0)) for name in wanted}
    assert_gradients_accurate(
        {name: taken_back(x, powers[name]) for name, x in zip(wanted, found, strict=True)},
        arguments,
        grad,
        of=wanted,
        beneath={name: math.ldexp(tiny, max(0, -power)) for name, power in powers.items()},
    )
    check_sums(
        taken_back(moments.energy, 2 * exponent),
        moments.relative_entropy,
        arguments,
        beneath,
    )


def relative_entropy(pairs: Any) -> Array:
    """KL(p|w) at finite beta, in extended precision.

    With t = -beta (E - E_c) about the latent c of the largest p, L = log sum w e^t and tau = t - L
    it is sum w (e^tau (tau - 1) + 1). Nothing cancels where c has nearly all of the weight.
    """
    w, energy = pairs.w.astype(np.longdouble), pairs.energy.astype(np.longdouble)
    at = np.where(w > 0, pairs.p, -1).argmax(-1)[..., None]
    w, energy = np.broadcast_arrays(w, energy)
    with np.errstate(all="ignore"):
        t = -pairs.beta * (energy - np.take_along_axis(energy, at, -1))
        t = np.where(w > 0, t, 0)
        deficit = (w * np.expm1(t)).sum(-1, keepdims=True)
        log_sum = np.log((w * np.exp(t)).sum(-1, keepdims=True))
        log_sum = np.where(deficit > -0.5, np.log1p(deficit), log_sum)
        tau = t - log_sum
        series = np.zeros_like(tau)
        for k in range(30, 1, -1):
            series = series * tau + np.longdouble(k - 1) / math.factorial(k)
        closed = np.exp(tau) * (tau - 1) + 1
        return np.asarray((w * np.where(np.abs(tau) < 1, tau**2 * series, closed)).sum(-1))


def check_sums(energy: Tensor, entropy: Tensor, arguments: Arguments, tiny: float) -> None:
    """<E> and KL as exact as their terms are, of which none is negative; errors below ``tiny``."""
    truth, pairs = exact(**arguments), every_pair(arguments)
    cold = np.isinf(pairs.beta)
    # A relative error of eps in every E is one of eps `blur` in p.
    blur = np.where(cold, 0, pairs.beta) * (pairs.bulk + np.abs(pairs.above))
    blur = np.where(pairs.w > 0, blur + np.abs(pairs.log_w), 0)
    p = np.where(pairs.p > 0, pairs.p, 0)
    size: Array = (p * np.where(p > 0, pairs.bulk, 0) * (1 + blur)).sum(-1)
    # Terms of posterior weights that may count as 0.
    remnant = np.where(p < 2 * promise.least_weight(energy.dtype), p, 0)
    lost = (remnant * pairs.bulk).sum(-1) + tiny
    wrong = np.abs(to_array(energy) - truth.energy) > promise.allowed(size, energy.dtype) + lost
    assert not wrong.any(), (to_array(energy)[wrong], truth.energy[wrong])
    divergence = np.where(cold[..., 0], truth.relative_entropy, relative_entropy(pairs))
    tau = np.where(p > 0, np.abs(pairs.tau), 0)
    size = divergence + np.where(cold[..., 0], 1, (p * tau * blur).sum(-1))
    lost = (remnant * (1 + tau)).sum(-1) + 2.0**20 * torch.finfo(energy.dtype).smallest_normal
    wrong = np.abs(to_array(entropy) - divergence) > promise.allowed(size, energy.dtype) + lost
    assert not wrong.any(), (to_array(entropy)[wrong], divergence[wrong])
    # The least energy is rounded, and so is the one that <E> is compared with.
    slack = promise.allowed(
        np.take_along_axis(pairs.bulk, pairs.index[..., None], -1)[..., 0], energy.dtype
    )
    assert (to_array(energy) >= pairs.least[..., 0] - slack - tiny).all()
    assert (pairs.bulk > pairs.energy).any() or (energy >= 0).all()
    assert (entropy >= 0).all()


@ON_EACH
@examples(0.1 / len(PARAMETERS), 20)
@given(problem=problems(), seed=st.integers(0, 99))
def test_derivatives_of_the_posterior_and_second_ones(
    parameter: tuple[str, str | None], problem: tuple[Arguments, int, bool], seed: int
) -> None:
    """A law, not an accuracy: test_posterior_gradients.py and test_second_order.py have that."""
    arguments, exponent, _ = problem
    with selected(*parameter) as backend:
        here, there = (derivatives(in_unit(arguments, e), e, seed, backend) for e in (0, exponent))
    for name, (one, other, power) in {name: (here[name][0], *there[name]) for name in here}.items():
        eps, tiny = torch.finfo(one.dtype).eps, torch.finfo(one.dtype).smallest_normal
        got = to_array(taken_back(other, power))
        beneath = math.ldexp(2.0**26 * tiny, max(0, -power))
        size = np.abs(to_array(one)).max(initial=0)
        largest = np.ldexp(np.longdouble(torch.finfo(one.dtype).max), -power)
        normal = np.abs(to_array(one)) < largest
        wrong = ~(np.abs(got - to_array(one)) <= 2**10 * eps * size + beneath) & normal
        assert not wrong.any(), (name, got[wrong], to_array(one)[wrong])


def derivatives(
    arguments: Arguments, exponent: int, seed: int, backend: str
) -> dict[str, tuple[Tensor, int]]:
    """Gradients of the posterior and of |dF/dy|^2, each with the exponent of its unit."""
    leaves = {name: x.detach().requires_grad_() for name, x in arguments.items()}
    generator = torch.Generator().manual_seed(seed)
    found = posterior(**leaves, backend=backend)
    loss = found.energy.new_zeros(())
    for x, power in ((found.mean, 1), (found.energy, 2), (found.relative_entropy, 0)):
        weight = torch.randn(x.shape, generator=generator).to(x)
        loss = loss + (torch.ldexp(weight, torch.tensor(-power * exponent)) * x).sum()
    results = {}
    for name, x in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
        results[f"posterior by {name}"] = (x, -exponent * POWERS.get(name, 0))
    value = free_energy(**leaves, backend=backend)
    (slope,) = torch.autograd.grad(value.sum(), leaves["y"], create_graph=True)
    weight = torch.randn(slope.shape, generator=generator).to(slope)
    curved = (torch.ldexp(weight, torch.tensor(-exponent)) * slope).sum()
    for name, x in zip(leaves, torch.autograd.grad(curved, list(leaves.values())), strict=True):
        results[f"dF/dy by {name}"] = (x, -exponent * POWERS.get(name, 0))
    return results
