r"""The soft minimum of energies that one already has, and its distribution, for ``functional.py``.

    softmin(E)    = -1/beta log sum_n w[n] exp(-beta E[n]),   w = softmax(l), 1/N where l is absent
    softargmin(E) = w[n] exp(-beta E[n]) / sum_n (same)

over the last dimension of ``energy [..., N]``, with ``beta [...]`` and ``log_weight [..., N]``, all
float32 or all float64. The formulas of ``reference.py`` are exact, but PyTorch needs many passes
over the energies for them. They serve here under torch.compile, torch.func and forward mode, and
for derivatives beyond the first. In plain eager mode ``soft_eager.py`` uses the extension on CPUs.
Elsewhere in that mode a few passes give the value and the first derivatives, with m = min E,
x = E - m, F = m + gap and u = x - gap:

    gap      = -1/beta log S,  S = sum_n w exp(-beta x)
             = -1/beta log1p(sum_n w expm1(-beta x))      where S > 1/2, since 1 - S would cancel
    dF/dE    = p,  dF/dl = (w - p) / beta,  dF/dbeta = -sum_n (w - (1 + beta u) p) / beta^2

and power series in beta u in place of differences that cancel. F and p are the same for every beta
up to eps / (16 max x). A smaller beta is replaced by this bound: beta = 0 needs no formula of its
own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lebm_kernels import reference
from lebm_kernels.torch_internals import in_plain_eager_mode, softmax_backward

_INF = math.inf
# Of (1 - (1 + t) exp(-t)) / t^2, the integral of s exp(-t s) over s from 0 to 1, for |t| <= 1/2.
_SLOPE_SERIES = [(-1.0) ** k / (math.factorial(k) * (k + 2)) for k in range(16)]


def softmin(energy: Tensor, beta: Tensor, log_weight: Tensor | None) -> Tensor:
    """The soft minimum, ``[...]``."""
    energy, beta = reference.broadcast(energy, beta, log_weight)
    if in_plain_eager_mode():
        value: Tensor = _Softmin.apply(energy, beta, log_weight)
        return value
    return _softmin(energy, beta, log_weight)


def softargmin(energy: Tensor, beta: Tensor, log_weight: Tensor | None) -> Tensor:
    """Its distribution, ``[..., N]``."""
    energy, beta = reference.broadcast(energy, beta, log_weight)
    if in_plain_eager_mode():
        p: Tensor = _Softargmin.apply(energy, beta, log_weight)
        return p
    return _softargmin(energy, beta, log_weight)


class _Reachable(NamedTuple):
    """The same problem without infinite energies.

    Attributes:
        energy: the energies, 0 where infinite, ``[..., N]``.
        log_weight: -inf for latents that are dropped or infinitely far above the minimum.
        least: min E over the latents that are not dropped, ``[..., 1]``.
        beyond: which latents are infinitely far above the minimum, ``[..., N]``.
    """

    energy: Tensor
    log_weight: Tensor
    least: Tensor
    beyond: Tensor


def _reachable(energy: Tensor, log_weight: Tensor | None) -> _Reachable:
    if log_weight is None:
        log_weight = torch.zeros_like(energy)
    dropped = log_weight == -_INF
    least = torch.where(dropped, _INF, energy.detach()).amin(-1, keepdim=True)
    beyond = ~dropped & torch.where(least.isinf(), energy != least, energy == _INF)
    finite = torch.where(dropped | beyond | least.isinf(), 0.0, energy)
    reachable = torch.where(beyond & (log_weight < _INF), -_INF, log_weight)
    return _Reachable(finite, reachable, least, beyond)


def _softmin(energy: Tensor, beta: Tensor, log_weight: Tensor | None) -> Tensor:
    """By the formulas of ``reference.py``: differentiable to any order, in every mode."""
    finite, reachable, least, beyond = _reachable(energy, log_weight)
    value = reference.softmin(finite, beta, reachable)
    # The weights of the latents beyond reach are missing in the sum. At beta = 0, F is the mean.
    whole = torch.zeros_like(energy) if log_weight is None else log_weight
    missing = torch.logsumexp(whole, -1) - torch.logsumexp(reachable, -1)
    mean = torch.where((beyond & (energy == _INF)).any(-1), _INF, 0.0)
    missing = missing / torch.where(beta == 0, 1.0, beta)
    at_end = least.squeeze(-1).isinf()
    largest = torch.finfo(energy.dtype).max
    missing = torch.where(at_end, missing.clamp(max=largest), missing)  # inf - inf would be NaN
    missing = torch.where(beta == 0, mean, missing)
    value = value + torch.where(beyond.any(-1), missing, 0.0)
    # Where the minimum is infinite, so is F, and its slopes are the shares of that minimum.
    shares = reachable.detach().softmax(-1)
    ties = at_end.unsqueeze(-1) & (shares > 0)
    value = value + (shares * torch.where(ties, energy, 0.0)).sum(-1)

    steep = ((beta == 0) & beyond.any(-1)).unsqueeze(-1)
    value = value - _zero_with_infinite_slope(beta.unsqueeze(-1), steep)
    invalid = whole.logsumexp(-1, keepdim=True).isfinite().logical_not()
    invalid = invalid | (energy.isnan() & (whole > -_INF)).any(-1, keepdim=True)
    invalid = invalid | ~(beta >= 0).unsqueeze(-1)
    value = value + _nan_with_nan_slope(energy, invalid)
    value = value + _nan_with_nan_slope(beta.unsqueeze(-1), invalid)
    if log_weight is not None:
        value = value + _zero_with_infinite_slope(log_weight, steep & beyond)
        below = ~beyond & (log_weight > -_INF)
        value = value - _zero_with_infinite_slope(log_weight, steep & below)
        value = value + _nan_with_nan_slope(log_weight, invalid)
    return value


def _zero_with_infinite_slope(x: Tensor, where: Tensor) -> Tensor:
    """Zero, summed over the last dimension; its slope in x is inf there, 0 elsewhere."""
    zero = torch.where(where, x - x.detach(), 1.0).sqrt()
    return torch.where(where, zero, 0.0).sum(-1)


def _nan_with_nan_slope(x: Tensor, where: Tensor) -> Tensor:
    """NaN there, with a slope of NaN in x; 0 elsewhere. Summed over the last dimension."""
    return (torch.where(where, x, 0.0) * torch.where(where, torch.nan, 0.0).to(x)).sum(-1)


def _softargmin(energy: Tensor, beta: Tensor, log_weight: Tensor | None) -> Tensor:
    finite, reachable, _, _ = _reachable(energy, log_weight)
    return reference.softargmin(finite, beta, reachable)


def _derivatives(
    function: Callable[..., Tensor], inputs: tuple[Tensor | None, ...], needed: Any, grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients by autograd of the formulas, which can be differentiated again."""
    # Views: of a tensor that is two of the inputs, each must have a gradient of its own.
    views = [None if x is None else x.view_as(x) for x in inputs]
    wanted = [x for x, need in zip(views, needed, strict=True) if x is not None and need]
    found = iter(torch.autograd.grad(function(*views), wanted, grad, create_graph=True))
    return tuple(next(found) if need else None for need in needed)


class _Rows(NamedTuple):
    """What a pass over the latents needs of each row, ``[..., 1]``.

    Attributes:
        least: min E over the latents that are not dropped.
        beta: in (0, inf], and so large that -beta (E - min E) does not underflow.
        invalid: NaN where the result must be, else 0.
    """

    least: Tensor
    beta: Tensor
    invalid: Tensor


def _rows(energy: Tensor, beta: Tensor, log_weight: Tensor | None) -> tuple[_Rows, Tensor]:
    """The rows, and max E ``[..., 1]`` over the latents that are not dropped."""
    kept = energy if log_weight is None else torch.where(log_weight == -_INF, _INF, energy)
    least = kept.amin(-1, keepdim=True)
    largest = _filled(energy, least, log_weight).amax(-1, keepdim=True)
    finfo = torch.finfo(energy.dtype)
    beta = beta.unsqueeze(-1)
    # NaN: all energies are inf, or all are -inf.
    bound = (finfo.eps / 16 / (largest - least)).nan_to_num(nan=1.0)
    bound = bound.clamp(min=finfo.smallest_normal * finfo.eps)
    invalid = torch.where(least.isnan() | ~(beta >= 0), torch.nan, 0.0).to(energy.dtype)
    return _Rows(least, torch.maximum(beta, bound), invalid), largest


def _filled(energy: Tensor, least: Tensor, log_weight: Tensor | None) -> Tensor:
    """The energies, with the minimum for those of dropped latents, which may be anything."""
    return energy if log_weight is None else torch.where(log_weight == -_INF, least, energy)


def _exponents(energy: Tensor, rows: _Rows, log_weight: Tensor | None) -> Tensor:
    """-beta (E - min E): 0 for all latents at an infinite minimum, -inf for those beyond reach."""
    excess = _filled(energy, rows.least, log_weight) - rows.least
    # NaN stands for inf - inf and for inf * 0; a row with a NaN of its own is invalid.
    return excess.mul_(-rows.beta).nan_to_num_(nan=0.0, neginf=-_INF)


def _masses(exponent: Tensor, log_weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | float]:
    """The masses w exp(exponent) over the largest, in place; their sum, and log of the largest."""
    peak: Tensor | float = 0.0
    if log_weight is not None:
        exponent.add_(log_weight)
        peak = exponent.amax(-1, keepdim=True)
        exponent.sub_(peak)
    mass = exponent.exp_()
    return mass, mass.sum(-1, keepdim=True), peak


def _prior(log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The weights exp(l) over the largest, their sum, and log of the largest."""
    peak = log_weight.amax(-1, keepdim=True)
    weight = (log_weight - peak).exp_()
    return weight, weight.sum(-1, keepdim=True), peak


def _few_passes(
    energy: Tensor, beta: Tensor, log_weight: Tensor | None
) -> tuple[Tensor, _Rows, Tensor]:
    """The soft minimum, its rows and its gap F - min E."""
    rows, largest = _rows(energy, beta, log_weight)
    exponent = _exponents(energy, rows, log_weight)
    deficit = exponent.expm1()
    _, total, peak = _masses(exponent, log_weight)
    if log_weight is None:
        deficit = deficit.mean(-1, keepdim=True)
        log_sum = (total / energy.shape[-1]).log()
    else:
        weight, whole, highest = _prior(log_weight)
        deficit = deficit.mul_(weight).sum(-1, keepdim=True) / whole
        log_sum = peak - highest + (total / whole).log()
    # The logarithm of a sum near 1 loses digits.
    log_sum = torch.where(deficit > -0.5, deficit.log1p(), log_sum)
    gap = rows.invalid - log_sum / rows.beta
    # At beta = 0, F is the mean.
    hot = beta.unsqueeze(-1) == 0
    end = torch.where(hot, rows.least + largest, rows.least)
    infinite = rows.least.isinf() | (hot & largest.isinf())
    value = torch.where(infinite & ~gap.isnan(), end, rows.least + gap)
    return value.squeeze(-1), rows, gap


class _Softmin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, energy: Tensor, beta: Tensor, log_weight: Tensor | None) -> Tensor:
        value, rows, gap = _few_passes(energy, beta, log_weight)
        ctx.save_for_backward(energy, beta, log_weight, *rows, gap)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        energy, beta, log_weight, *of_rows, gap = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return _derivatives(_softmin, (energy, beta, log_weight), needed, grad)
        return _slopes(energy, beta, log_weight, _Rows(*of_rows), gap, needed, grad)


def _slopes(
    energy: Tensor,
    beta: Tensor,
    log_weight: Tensor | None,
    rows: _Rows,
    gap: Tensor,
    needed: Any,
    grad: Tensor,
) -> tuple[Tensor | None, ...]:
    """The first derivatives of the soft minimum that are needed, times ``grad``."""
    grad = grad.unsqueeze(-1)
    mass, total, _ = _masses(_exponents(energy, rows, log_weight), log_weight)
    grad_energy = mass * (grad / total + rows.invalid) if needed[0] else None
    if not (needed[1] or needed[2]):
        return grad_energy, None, None

    p = mass.div_(total)
    weight: Tensor | float = 1 / energy.shape[-1]
    if log_weight is not None:
        weight, whole, _ = _prior(log_weight)
        weight.div_(whole)
    excess = (_filled(energy, rows.least, log_weight) - rows.least).nan_to_num_(0.0, _INF)
    # At beta = 0, a latent infinitely far above the minimum makes these slopes infinite.
    beyond = excess == _INF
    steep = (beta.unsqueeze(-1) == 0) & beyond.any(-1, keepdim=True) & ~rows.invalid.isnan()
    u = excess.sub_(gap)
    largest = torch.finfo(energy.dtype).max
    t = (u * rows.beta).nan_to_num_(0.0, largest)  # NaN: 0 * inf
    grad_beta = grad_log_weight = None
    if needed[1]:
        far = (weight - (1 + t) * p) / rows.beta / rows.beta
        near = t.abs() <= 0.5
        u = torch.where(near, u, 0.0)
        short, series = t.clamp(-0.5, 0.5), torch.zeros_like(t)
        for coefficient in reversed(_SLOPE_SERIES):
            series.mul_(short).add_(coefficient)
        slope = torch.where(near, weight * u * series * u, far)
        slope = torch.where(steep, _INF, slope.sum(-1, keepdim=True))
        grad_beta = grad * (rows.invalid - slope)
        grad_beta = grad_beta.squeeze(-1)
    if needed[2] and log_weight is not None:
        pull = torch.where(t.abs() <= 0.5, -weight * torch.expm1(-t), weight - p)
        slope = pull / rows.beta
        infinite = torch.where(beyond, _INF, -_INF).to(slope)
        infinite = torch.where(log_weight == -_INF, 0.0, infinite)
        slope = torch.where(steep, infinite, slope)
        grad_log_weight = grad * (slope + rows.invalid)
        grad_log_weight = grad_log_weight.sum_to_size(log_weight.shape)
    return grad_energy, grad_beta, grad_log_weight


class _Softargmin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, energy: Tensor, beta: Tensor, log_weight: Tensor | None) -> Tensor:
        rows, _ = _rows(energy, beta, log_weight)
        mass, total, _ = _masses(_exponents(energy, rows, log_weight), log_weight)
        p = mass.div_(total + rows.invalid)
        ctx.save_for_backward(energy, beta, log_weight, p)
        return p

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        energy, beta, log_weight, p = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return _derivatives(_softargmin, (energy, beta, log_weight), needed, grad)
        return _slopes_of_shares(energy, beta, log_weight, p, needed, grad)


def _slopes_of_shares(
    energy: Tensor,
    beta: Tensor,
    log_weight: Tensor | None,
    p: Tensor,
    needed: Any,
    grad: Tensor,
) -> tuple[Tensor | None, ...]:
    """The first derivatives of the distribution p that are needed, times ``grad``."""
    by_exponent = softmax_backward(grad, p)
    grad_energy = grad_beta = grad_log_weight = None
    if needed[0]:
        # At beta = inf, p does not change with E, except where a tie begins or ends.
        grad_energy = by_exponent * torch.where(beta == _INF, 0.0, -beta).unsqueeze(-1)
    if needed[1]:
        kept = energy if log_weight is None else torch.where(log_weight == -_INF, _INF, energy)
        least = kept.amin(-1, keepdim=True)
        excess = (_filled(energy, least, log_weight) - least).nan_to_num_(0.0, 0.0)
        grad_beta = -(by_exponent * excess).sum(-1)
    if needed[2] and log_weight is not None:
        grad_log_weight = by_exponent.sum_to_size(log_weight.shape)
    return grad_energy, grad_beta, grad_log_weight


def differentiate_softmin(
    energy: Tensor,
    beta: Tensor,
    log_weight: Tensor | None,
    dim: int,
    sign: int,
    needed: Any,
    grad: Tensor,
) -> tuple[Tensor | None, ...]:
    """The gradients of sign softmin(sign energy) over ``dim``, differentiable under grad mode."""
    if torch.is_grad_enabled():

        def value_of(energy: Tensor, beta: Tensor, log_weight: Tensor | None) -> Tensor:
            return sign * _softmin(*_last(energy, beta, log_weight, dim, sign))

        return _derivatives(value_of, (energy, beta, log_weight), needed, grad)
    last = _last(energy, beta, log_weight, dim, sign)
    _, rows, gap = _few_passes(*last)
    slopes = _slopes(*last, rows, gap, needed, grad * sign)
    return _of_inputs(slopes, beta, dim, sign)


def differentiate_softargmin(
    energy: Tensor,
    beta: Tensor,
    log_weight: Tensor | None,
    p: Tensor,
    dim: int,
    sign: int,
    needed: Any,
    grad: Tensor,
) -> tuple[Tensor | None, ...]:
    """The gradients of p = softargmin(sign energy) over ``dim``, differentiable under grad mode."""
    if torch.is_grad_enabled():

        def shares_of(energy: Tensor, beta: Tensor, log_weight: Tensor | None) -> Tensor:
            return _softargmin(*_last(energy, beta, log_weight, dim, sign)).movedim(-1, dim)

        return _derivatives(shares_of, (energy, beta, log_weight), needed, grad)
    last = _last(energy, beta, log_weight, dim, sign)
    slopes = _slopes_of_shares(*last, p.movedim(dim, -1), needed, grad.movedim(dim, -1))
    return _of_inputs(slopes, beta, dim, sign)


def _last(
    energy: Tensor, beta: Tensor, log_weight: Tensor | None, dim: int, sign: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    energy, beta = reference.broadcast(sign * energy.movedim(dim, -1), beta, log_weight)
    return energy, beta, log_weight


def _of_inputs(
    slopes: tuple[Tensor | None, ...], beta: Tensor, dim: int, sign: int
) -> tuple[Tensor | None, ...]:
    of_energy, of_beta, of_log_weight = slopes
    if of_energy is not None:
        of_energy = (sign * of_energy).movedim(-1, dim)
    if of_beta is not None:
        of_beta = of_beta.sum_to_size(beta.shape)
    return of_energy, of_beta, of_log_weight
