"""The free energy in a wider format: NumPy formulas that share no code with the package.

Float64 is measured by extended precision, and so are numbers whose squares and products float64
might not hold; what is narrower, by float64, which has half a billion of float32's roundings in
one and takes a fraction of the time. Arguments are the tensors that a test passes to the package,
so that rounded inputs are the same for both. With m = min E, the log-normaliser
L = log sum_n w exp(-beta (E - m)) and the gap F - m = -L / beta, everything is written in

    tau = log(p / w) = -beta (E - m) - L = -beta (E - F)

so that no small beta cancels (test_oracle.py compares with mpmath). One thing does: dF/dbeta beside
a latent that has nearly all of the weight and is not the nearest. With the others' weights at
e^-80 and beta = 0.01 float64 has found 450 times the slope, extended precision errs by a part in
10^4, and what the magnitude allows is 10^10 times the slope and more. There mpmath measures, in
test_heavy_latents.py.

Beside each result stand, for the accuracy promises to be measured by,

    its magnitude: the sum of the absolute values of the terms that make it up;
    for a gradient, its noise: what relative errors of 1 in E do to it through p, to first order.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.floating[Any]]
_Result = TypeVar("_Result")


def remembered(function: Callable[..., _Result], most: int = 4) -> Callable[..., _Result]:
    """The function with its last results kept: every backend is asked the same questions.

    conftest.py puts the tests of one problem side by side, so that a few are enough.
    """
    kept: OrderedDict[Any, _Result] = OrderedDict()

    def key(x: Any) -> Any:
        if isinstance(x, Tensor):
            data = x.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
            return (x.dtype, tuple(x.shape), bytes(data.view(torch.uint8).numpy()))
        if isinstance(x, dict):
            return tuple((name, key(value)) for name, value in x.items())
        return x

    @wraps(function)
    def remembering(*args: Any, **options: Any) -> _Result:
        asked = (tuple(key(x) for x in args), key(options))
        if asked not in kept:
            kept[asked] = function(*args, **options)
            if len(kept) > most:
                kept.popitem(last=False)
        return kept[asked]

    return remembering


@dataclass(frozen=True)
class Exact:
    """What the package should find, and how large the terms are that it has to add up."""

    free_energy: Array
    magnitude: Array
    posterior: Array
    mean: Array
    energy: Array
    relative_entropy: Array
    index: npt.NDArray[np.int64]
    gradients: dict[str, Array]
    gradient_magnitudes: dict[str, Array]
    gradient_noises: dict[str, Array]


@dataclass(frozen=True)
class _Pairs:
    """Quantities of every (query, latent), ``[..., M, N]``, or of every query, ``[..., M, 1]``."""

    beta: Array
    decoded: Array  # [..., 1, N, D]
    scale: Array | None  # [..., M, 1, D]
    difference: Array  # y - s g, [..., M, N, D]
    energy: Array
    bulk: Array  # the size of what is summed to E: never less than |E|
    log_w: Array
    w: Array
    p: Array
    tau: Array
    above: Array  # E - F
    index: npt.NDArray[np.int64]
    least: Array
    gap: Array  # F - min E
    mean_excess: Array  # <E>_w - min E


def to_array(x: Tensor, number: type[np.floating[Any]] = np.longdouble) -> Array:
    return x.detach().double().numpy().astype(number)


# Where products of six such numbers and 1 / beta^2 stay within float64.
MODERATE = 1e18
MODERATE_BETA = (1e-40, 1e40)


def _wider(beta: Tensor, *others: Tensor) -> type[np.floating[Any]]:
    """The format to compute in: the one that has bits and range to spare."""
    low, high = MODERATE_BETA
    rates = beta.detach().double()
    rates = rates[(rates > 0) & (rates < math.inf)]
    sizes = torch.cat([x.detach().double().abs().reshape(-1) for x in others])
    enough = (
        all(x.dtype != torch.float64 for x in others)
        and bool(((rates > low) & (rates < high)).all())
        and not bool(((sizes > MODERATE) & (sizes < math.inf)).any())
    )
    return np.float64 if enough else np.longdouble


@remembered
def exact(
    y: Tensor,
    decoded: Tensor,
    beta: float | Tensor = 1.0,
    *,
    scale: Tensor | None = None,
    log_weight: Tensor | None = None,
    latent_energy: Tensor | None = None,
    grad: Tensor | None = None,
    of: tuple[str, ...] = ("y", "decoded", "beta", "scale", "log_weight", "latent_energy"),
) -> Exact:
    """F and all that belongs to it; where ``grad`` is given, gradients of sum(grad F).

    Those ``of`` the arguments that are given.
    """
    beta = beta if isinstance(beta, Tensor) else torch.tensor(beta, dtype=torch.float64)
    arguments = {
        "y": y,
        "decoded": decoded,
        "beta": beta,
        "scale": scale,
        "log_weight": log_weight,
        "latent_energy": latent_energy,
    }
    given = {name: x for name, x in arguments.items() if x is not None}
    with np.errstate(all="ignore"):
        pairs = _pairs(given)
        value = (pairs.least + pairs.gap)[..., 0]
        gradients: dict[str, Array] = {}
        magnitudes: dict[str, Array] = {}
        noises: dict[str, Array] = {}
        if grad is not None:
            wanted = set(of) & set(given)
            for name, parts in _gradients(pairs, wanted, grad):
                gradients[name], magnitudes[name], noises[name] = (
                    _summed_to(x, tuple(given[name].shape)) for x in parts
                )
        return Exact(
            free_energy=value,
            magnitude=_value_magnitude(pairs),
            posterior=pairs.p,
            mean=(pairs.p[..., None] * pairs.decoded).sum(-2),
            energy=(pairs.p * pairs.energy).sum(-1),
            relative_entropy=np.where(pairs.p > 0, pairs.p * pairs.tau, 0).sum(-1),
            index=pairs.index,
            gradients=gradients,
            gradient_magnitudes=magnitudes,
            gradient_noises=noises,
        )


@partial(remembered, most=1)
def _pairs(given: dict[str, Tensor]) -> _Pairs:
    beta, log_weight = given["beta"], given.get("log_weight")
    others = [x for name, x in given.items() if name not in ("beta", "log_weight")]
    wide = partial(to_array, number=_wider(beta, *others))
    decoded = prediction = wide(given["decoded"])[..., None, :, :]
    scale = None
    if "scale" in given:
        scale = wide(given["scale"])[..., None, :]
        prediction = scale * prediction
    difference = wide(given["y"])[..., None, :] - prediction
    energy = (difference**2).sum(-1)
    bulk = energy
    if scale is not None:
        # The product s g is rounded before anything is subtracted from it.
        bulk = bulk + np.abs(difference * prediction).sum(-1)
    if "latent_energy" in given:
        regulariser = wide(given["latent_energy"])[..., None, :]
        energy, bulk = energy + regulariser, bulk + np.abs(regulariser)
    weights = None if log_weight is None else wide(log_weight)
    log_w = _log_weights(weights, decoded.shape[-2]).astype(decoded.dtype)
    b = wide(beta)[..., None]
    shape = np.broadcast_shapes(energy.shape, b.shape, log_w.shape)
    energy, bulk, log_w = (np.broadcast_to(x, shape) for x in (energy, bulk, log_w))
    b = np.broadcast_to(b, (*shape[:-1], 1))
    kept = log_w > -np.inf
    energy = np.where(kept, energy, 0)
    w = np.exp(log_w)

    index = np.where(kept, energy, np.inf).argmin(-1)
    least = np.take_along_axis(energy, index[..., None], -1)
    excess = np.where(kept, energy - least, 0)
    mean_excess = (w * excess).sum(-1, keepdims=True)
    t = np.where(b == np.inf, np.where(excess > 0, np.inf, 0), _finite(b) * excess)
    exponent = np.where(kept, log_w - t, -np.inf)
    largest = exponent.max(-1, keepdims=True)
    deficit = (w * np.expm1(-t)).sum(-1, keepdims=True)
    log_normaliser = np.where(
        deficit > -0.5,
        np.log1p(deficit),
        largest + np.log(np.exp(exponent - largest).sum(-1, keepdims=True)),
    )
    gap = np.where(b == np.inf, 0, np.where(b == 0, mean_excess, -log_normaliser / b))
    tau = np.where(kept, -t - log_normaliser, 0)
    p = np.where(kept, np.exp(log_w + tau), 0)
    above = np.where(kept, excess - gap, 0)
    return _Pairs(
        *(b, decoded, scale, difference, energy, bulk, log_w, w, p, tau, above),
        *(index, least, gap, mean_excess),
    )


def every_pair(arguments: dict[str, Tensor]) -> _Pairs:
    """What the results are made of, of these arguments by name."""
    with np.errstate(all="ignore"):
        return _pairs(arguments)


def undecided(pairs: _Pairs, eps: float) -> npt.NDArray[np.bool_]:
    """Queries, ``[..., M]``, whose posterior is another one where energies are off by a rounding.

    There beta times a rounding of an energy is not small, for a latent that, but for it, has a
    share or would have one. No accuracy of p, nor of a gradient, is then to be had in the dtype.
    """
    with np.errstate(all="ignore"):
        at_least = np.take_along_axis(pairs.bulk, pairs.index[..., None], -1)
        rounding = 4 * eps * (pairs.bulk + at_least)
        excess = pairs.energy - pairs.least
        near = (excess > 0) & (pairs.w > 0) & (excess < rounding + 40 / pairs.beta)
        return (near & (pairs.beta * rounding > 0.25)).any(-1)


def _log_weights(log_weight: Array | None, num_latents: int) -> Array:
    if log_weight is None:
        return np.full((1, num_latents), -np.log(np.longdouble(num_latents)))
    wide = log_weight[..., None, :]
    wide = wide - wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def _value_magnitude(pairs: _Pairs) -> Array:
    """Min E + min(<E>_w - min E, (1 + log N)/beta), with 1/w of the least E where that beats N."""
    at_least = pairs.index[..., None]
    rarity = np.maximum(np.log(pairs.w.shape[-1]), -np.take_along_axis(pairs.log_w, at_least, -1))
    spread = np.fmin(pairs.mean_excess, (1 + rarity) / pairs.beta)
    return (np.take_along_axis(pairs.bulk, at_least, -1) + spread)[..., 0]


def _gradients(
    pairs: _Pairs, wanted: set[str], upstream: Tensor
) -> Iterator[tuple[str, tuple[Array, Array, Array]]]:
    """By name, derivatives of sum(upstream F), magnitudes and noises, not yet reduced."""
    beta, w, p, tau = pairs.beta, pairs.w, pairs.p, pairs.tau
    grad = to_array(upstream, p.dtype.type)
    G = grad[..., None]
    pull = 2 * p[..., None] * pairs.difference
    near = np.abs(tau) <= 0.5
    finite = np.where(beta == 0, 1, beta)
    mean_bulk = (p * pairs.bulk).sum(-1, keepdims=True)
    shaken = pairs.bulk + mean_bulk  # p shakes by beta times this
    # p comes from exp(log w - ...): a log-weight of 100, rounded, moves it by 100 eps.
    blur = 1 + np.where(w > 0, np.abs(pairs.log_w), 0) / 16
    cold = beta == np.inf
    jitter = _finite(beta) * shaken

    def by_query(terms: Array) -> tuple[Array, Array, Array]:
        terms = G[..., None] * terms
        size = np.abs(terms)
        return terms.sum(-2), size.sum(-2), (size * jitter[..., None]).sum(-2)

    def by_latent(terms: Array, size: Array, noise: Array) -> tuple[Array, Array, Array]:
        weight = G if terms.ndim == G.ndim else G[..., None]
        axis = G.ndim - 2
        return (
            (weight * terms).sum(axis),
            (np.abs(weight) * size).sum(axis),
            (np.abs(weight) * noise).sum(axis),
        )

    if "y" in wanted:
        yield "y", by_query(pull)
    if "scale" in wanted:
        yield "scale", by_query(-pull * pairs.decoded)
    if "decoded" in wanted:
        pulled = -pull if pairs.scale is None else -pull * pairs.scale
        yield "decoded", by_latent(pulled, np.abs(pulled), np.abs(pulled) * jitter[..., None])
    if "latent_energy" in wanted:
        yield "latent_energy", by_latent(p, p, p * jitter)
    if "beta" in wanted:
        # dF/dbeta = -KL(p|w)/beta^2 = -sum_n w (E - F)^2 phi(tau), phi(x) = (e^x (x - 1) + 1)/x^2
        phi = _series(tau, lambda k: (k - 1) / math.factorial(k))
        relative = (p * (np.where(p > 0, tau, 0) - 1) + w) / finite**2
        by_beta = -np.where(near, w * pairs.above**2 * phi, relative)
        # What is added up: in general (<E> - F)/beta; the squares where every term is small.
        size = np.where(
            near.all(-1),
            ((w + p) * np.abs(pairs.above) * pairs.bulk).sum(-1),
            ((p * blur * pairs.bulk).sum(-1) + _value_magnitude(pairs)) / beta[..., 0],
        )
        shift = np.where(cold, 0, p * np.abs(pairs.above) * shaken).sum(-1)
        slope = np.where(cold, 0, by_beta).sum(-1)
        yield "beta", (grad * slope, np.abs(grad) * size, np.abs(grad) * shift)
    if "log_weight" in wanted:
        # dF/dl = -(p - w)/beta = w (E - F) psi(tau), psi(x) = (e^x - 1)/x
        psi = _series(tau, lambda k: 1 / math.factorial(k), start=1)
        by_weight = np.where(near, w * pairs.above * psi, (w - p) / finite)
        weight_size = blur * np.fmin(
            (p + w) / beta, np.maximum(w, p) * (np.abs(pairs.above) + pairs.bulk)
        )
        yield "log_weight", by_latent(by_weight, weight_size, np.where(cold, 0, p * shaken))


def _finite(beta: Array) -> Array:
    return np.where(beta == np.inf, 0, beta)


def _series(x: Array, coefficient: Callable[[int], float], start: int = 2) -> Array:
    """Sum_k coefficient(k) x^(k - start) for |x| <= 1/2; 0 elsewhere, where it is not used."""
    near = np.abs(x) <= 0.5
    small = x[near]
    total = np.zeros_like(small)
    for k in range(start + 26, start - 1, -1):
        total = total * small + x.dtype.type(coefficient(k))
    result = np.zeros_like(x)
    result[near] = total
    return result


def _summed_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Undo broadcasting: the sum over the dimensions that ``shape`` lacks."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    stretched = tuple(d for d, size in enumerate(shape) if size == 1 != x.shape[d])
    return x.sum(axis=stretched, keepdims=True) if stretched else x
