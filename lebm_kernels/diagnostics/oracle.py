"""The free energy and its derivatives in a wider format: the truth that results are compared with.

The formulas are written in NumPy and share no code with the backends or with reference.py. They
are computed in float64 for float32 and half arguments: float64 has half a billion values for each
rounding of float32, and takes a fraction of the time of extended precision. They are computed in
extended precision for float64 arguments, and for numbers whose squares and products might leave
the range of float64. Arguments are the tensors that a backend gets, so both have the same rounded
numbers.

With the shift m = min E, the log-normaliser L = log sum_n w exp(-beta (E - m)) and the gap
F - m = -L / beta, everything is written in

    tau = log(p / w) = -beta (E - m) - L = -beta (E - F)

so that nothing cancels at small beta. There is one exception: dF/dbeta where one latent has nearly
all of the weight and is not the nearest. With the weights of the others at e^-80 and beta = 0.01,
float64 finds 450 times the slope, and extended precision errs by a part in 10^4, where the
magnitude allows 10^10 times the slope and more. tests/ops/test_heavy_latents.py compares such
slopes with mpmath.

Each result comes with the sizes that the promise on accuracy (promise.py) needs:

    its magnitude: the sum of the absolute values of its terms;
    for a gradient, its noise: its change through p where every E and every log-weight has a
    relative error of 1, to first order;
    for a gradient, its remnants: the magnitude of the terms whose p may count as 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lebm_kernels.arguments import Arguments
from lebm_kernels.diagnostics.promise import Array, least_weight, value_scale

ARGUMENTS = Arguments._fields


@dataclass(frozen=True)
class Exact:
    """The results of the package's functions, and how large the terms are that make them up."""

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
    gradient_remnants: dict[str, Array]


@dataclass(frozen=True)
class Pairs:
    """Quantities of every pair, ``[..., M, N]``, or of every query, ``[..., M, 1]``."""

    beta: Array
    decoded: Array  # [..., 1, N, D]
    scale: Array | None  # [..., M, 1, D]
    difference: Array  # y - s g, [..., M, N, D]
    energy: Array
    bulk: Array  # the sum of the absolute terms of E: at least |E|
    log_w: Array
    w: Array
    p: Array
    tau: Array
    above: Array  # E - F
    index: npt.NDArray[np.int64]
    least: Array  # min E
    gap: Array  # F - min E
    mean_excess: Array  # <E>_w - min E
    rarity: Array  # |log w| where log-weights are given, else 0


def to_array(x: Tensor, number: type[np.floating[Any]] = np.longdouble) -> Array:
    """The numbers of a tensor, in extended precision unless another format is named."""
    return x.detach().double().numpy().astype(number)


# With these, products of six numbers and 1 / beta^2 stay within the range of float64.
_MODERATE = 1e18
_MODERATE_BETA = (1e-40, 1e40)


def _wider(beta: Tensor, *others: Tensor) -> type[np.floating[Any]]:
    """Float64 where it has bits and range to spare, else extended precision."""
    low, high = _MODERATE_BETA
    rates = beta.detach().double()
    rates = rates[(rates > 0) & (rates < math.inf)]
    sizes = torch.cat([x.detach().double().abs().reshape(-1) for x in others])
    enough = (
        all(x.dtype != torch.float64 for x in others)
        and bool(((rates > low) & (rates < high)).all())
        and not bool(((sizes > _MODERATE) & (sizes < math.inf)).any())
    )
    return np.float64 if enough else np.longdouble


def exact(
    arguments: Mapping[str, Tensor],
    grad: Tensor | None = None,
    of: Sequence[str] = ARGUMENTS,
    pairs: Pairs | None = None,
) -> Exact:
    """F and all that belongs to it; with ``grad``, gradients of sum(grad F) too.

    Args:
        arguments: of :func:`lebm_kernels.free_energy` by name, all of them tensors.
        grad: the gradient that arrives at F.
        of: the arguments to differentiate by; absent ones are ignored.
        pairs: ``every_pair(arguments)``, if the caller has it already.
    """
    pairs = pairs or every_pair(arguments)
    with np.errstate(all="ignore"):
        gradients: dict[str, Array] = {}
        magnitudes: dict[str, Array] = {}
        noises: dict[str, Array] = {}
        remnants: dict[str, Array] = {}
        if grad is not None:
            wanted = set(of) & set(arguments)
            least = least_weight(arguments["y"].dtype)
            for name, parts in _gradients(pairs, wanted, grad, least):
                gradients[name], magnitudes[name], noises[name], remnants[name] = (
                    _summed_to(x, tuple(arguments[name].shape)) for x in parts
                )
        return Exact(
            free_energy=(pairs.least + pairs.gap)[..., 0],
            magnitude=_value_magnitude(pairs),
            posterior=pairs.p,
            mean=(pairs.p[..., None] * pairs.decoded).sum(-2),
            energy=(pairs.p * pairs.energy).sum(-1),
            relative_entropy=np.where(pairs.p > 0, pairs.p * pairs.tau, 0).sum(-1),
            index=pairs.index,
            gradients=gradients,
            gradient_magnitudes=magnitudes,
            gradient_noises=noises,
            gradient_remnants=remnants,
        )


def every_pair(arguments: Mapping[str, Tensor]) -> Pairs:
    """The quantities that the results are made of."""
    with np.errstate(all="ignore"):
        return _every_pair(arguments)


def _every_pair(given: Mapping[str, Tensor]) -> Pairs:
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
    return Pairs(
        *(b, decoded, scale, difference, energy, bulk, log_w, w, p, tau, above),
        *(index, least, gap, mean_excess),
        np.zeros_like(w) if log_weight is None else np.where(kept, np.abs(log_w), 0),
    )


def _log_weights(log_weight: Array | None, num_latents: int) -> Array:
    if log_weight is None:
        return np.full((1, num_latents), -np.log(np.longdouble(num_latents)))
    wide = log_weight[..., None, :]
    wide = wide - wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def _value_magnitude(pairs: Pairs) -> Array:
    nearest = pairs.index[..., None]
    bulk, log_w = (np.take_along_axis(x, nearest, -1) for x in (pairs.bulk, pairs.log_w))
    num_latents = pairs.w.shape[-1]
    excess = np.where(pairs.w > 0, pairs.energy - pairs.least, 0)
    mean_excess = (pairs.w * _blur(pairs) * excess).sum(-1, keepdims=True)
    return value_scale(bulk, mean_excess, pairs.beta, num_latents, log_w)[..., 0]


def _blur(pairs: Pairs) -> Array:
    """What the rounding of a log-weight adds to that of its exponential: 100 eps for one of 100."""
    return 1 + np.where(pairs.w > 0, np.abs(pairs.log_w), 0) / 16


def _gradients(
    pairs: Pairs, wanted: set[str], upstream: Tensor, least: float
) -> Iterator[tuple[str, tuple[Array, Array, Array, Array]]]:
    """By name, derivatives of sum(upstream F), their magnitudes, noises and remnants.

    Remnants are the magnitudes of the terms with p below ``least``. The dimensions that
    broadcasting added are not summed yet.
    """
    beta, w, p, tau = pairs.beta, pairs.w, pairs.p, pairs.tau
    grad = to_array(upstream, p.dtype.type)
    G = grad[..., None]
    pull = 2 * p[..., None] * pairs.difference
    near = np.abs(tau) <= 0.5
    finite = np.where(beta == 0, 1, beta)
    mean_bulk = (p * pairs.bulk).sum(-1, keepdims=True)
    shaken = pairs.bulk + mean_bulk  # log p changes by beta times this
    blur = _blur(pairs)  # p comes from exp(log w - ...)
    cold = beta == np.inf
    jitter = _finite(beta) * shaken + pairs.rarity + (p * pairs.rarity).sum(-1, keepdims=True)

    # Twice: p, as computed, may be on the other side.
    small = p < 2 * least

    def by_query(terms: Array) -> tuple[Array, Array, Array, Array]:
        terms = G[..., None] * terms
        size = np.abs(terms)
        remnant = np.where(small[..., None], size, 0).sum(-2)
        return terms.sum(-2), size.sum(-2), (size * jitter[..., None]).sum(-2), remnant

    def by_latent(
        terms: Array, size: Array, noise: Array, remnant: Array
    ) -> tuple[Array, Array, Array, Array]:
        weight = G if terms.ndim == G.ndim else G[..., None]
        axis = G.ndim - 2
        return (
            (weight * terms).sum(axis),
            (np.abs(weight) * size).sum(axis),
            (np.abs(weight) * noise).sum(axis),
            (np.abs(weight) * remnant).sum(axis),
        )

    if "y" in wanted:
        yield "y", by_query(pull)
    if "scale" in wanted:
        yield "scale", by_query(-pull * pairs.decoded)
    if "decoded" in wanted:
        pulled = -pull if pairs.scale is None else -pull * pairs.scale
        size = np.abs(pulled)
        remnant = np.where(small[..., None], size, 0)
        yield "decoded", by_latent(pulled, size, size * jitter[..., None], remnant)
    if "latent_energy" in wanted:
        yield "latent_energy", by_latent(p, p, p * jitter, np.where(small, p, 0))
    if "beta" in wanted:
        # dF/dbeta = -KL(p|w)/beta^2 = -sum_n w (E - F)^2 phi(tau), phi(x) = (e^x (x - 1) + 1)/x^2
        phi = _series(tau, lambda k: (k - 1) / math.factorial(k))
        relative = (p * (np.where(p > 0, tau, 0) - 1) + w) / finite**2
        by_beta = -np.where(near, w * pairs.above**2 * phi, relative)
        # The terms: of (<E> - F)/beta in general; the squares where every tau is small.
        size = np.where(
            near.all(-1),
            ((w + p) * np.abs(pairs.above) * pairs.bulk).sum(-1),
            ((p * blur * pairs.bulk).sum(-1) + _value_magnitude(pairs)) / beta[..., 0],
        )
        shift = np.where(cold, 0, p * np.abs(pairs.above) * shaken).sum(-1)
        slope = np.where(cold, 0, by_beta).sum(-1)
        lost = np.where(small & ~near & (p > 0), p * (np.abs(tau) + 1) / finite**2, 0)
        remnant = np.where(cold, 0, lost).sum(-1)
        yield "beta", (grad * slope, *(np.abs(grad) * x for x in (size, shift, remnant)))
    if "log_weight" in wanted:
        # dF/dl = -(p - w)/beta = w (E - F) psi(tau), psi(x) = (e^x - 1)/x
        psi = _series(tau, lambda k: 1 / math.factorial(k), start=1)
        by_weight = np.where(near, w * pairs.above * psi, (w - p) / finite)
        weight_size = blur * np.fmin(
            (p + w) / beta, np.maximum(w, p) * (np.abs(pairs.above) + pairs.bulk)
        )
        remnant = np.where(small & ~near, p / finite, 0)
        noise = np.where(cold, 0, p * shaken)
        yield "log_weight", by_latent(by_weight, weight_size, noise, remnant)


def _finite(beta: Array) -> Array:
    return np.where(beta == np.inf, 0, beta)


def _series(x: Array, coefficient: Callable[[int], float], start: int = 2) -> Array:
    """Sum_k coefficient(k) x^(k - start) for |x| <= 1/2; 0 elsewhere, where no caller reads it."""
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
