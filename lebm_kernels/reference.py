r"""The formulas, literally: the definition of what every backend computes, and the tests' oracle.

    E[b,n] = sum_d (y[b,d] - s[b,d] g[n,d])^2 + r[n]
    F[b]   = -1/beta log sum_n w[n] exp(-beta E[b,n]),      w = softmax(l), 1/N where l is absent
    p[b,n] = w[n] exp(-beta E[b,n]) / sum_n (same)

All pairs are materialised (queries x latents x dimensions), and autograd differentiates them to any
order. The formulas are rearranged in one respect: no beta in [0, inf] costs accuracy, in the value
or in a derivative (see :func:`softmin`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Posterior(NamedTuple):
    """Expectations over the latents, given the query: see :func:`lebm_kernels.posterior`.

    Attributes:
        free_energy: F, ``[..., M]``.
        mean: posterior mean of the decoded latents, sum_n p g, ``[..., M, D]``.
        energy: posterior mean of the energy, sum_n p E, ``[..., M]``.
        relative_entropy: KL(p | w) in nats, ``[..., M]``.
        index: the latent of least energy (the first of equals), ``[..., M]``, int64.
    """

    free_energy: Tensor
    mean: Tensor
    energy: Tensor
    relative_entropy: Tensor
    index: Tensor  # type: ignore[assignment]


def energies(
    y: Tensor, decoded: Tensor, scale: Tensor | None = None, latent_energy: Tensor | None = None
) -> Tensor:
    """The energy E of every query with every latent, ``[..., M, N]``."""
    prediction = decoded.unsqueeze(-3)
    if scale is not None:
        prediction = scale.unsqueeze(-2) * prediction
    energy = (y.unsqueeze(-2) - prediction).square().sum(-1)
    if latent_energy is not None:
        energy = energy + latent_energy.unsqueeze(-2)
    return energy


def broadcast(energy: Tensor, beta: Tensor, log_weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Energies and beta with the leading dimensions of the energies, beta and the weights."""
    leading = [energy.shape[:-1], beta.shape]
    if log_weight is not None:
        leading.append(log_weight.shape[:-1])
    shape = torch.broadcast_shapes(*leading)
    return energy.expand((*shape, energy.shape[-1])), beta.expand(shape)


def log_weights(log_weight: Tensor | None, energy: Tensor) -> Tensor:
    """The normalised log-weights log w, broadcastable to ``energy[..., N]``."""
    if log_weight is None:
        size = energy.shape[-1]
        return torch.full((size,), 1.0 / size, dtype=energy.dtype, device=energy.device).log()
    return torch.log_softmax(log_weight, dim=-1)


def power_series(x: Tensor, closed_form: Tensor, coefficients: list[float]) -> Tensor:
    """The power series where ``|x| <= 1/2``, the closed form elsewhere."""
    near = x.abs() <= 0.5
    x = torch.where(near, x, 0.0)
    total = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        total = total * x + coefficient
    return torch.where(near, total, closed_form)


def _away_from_zero(x: Tensor) -> Tensor:
    return torch.where(x.abs() <= 0.5, 1.0, x)


def _exp_remainder(x: Tensor) -> Tensor:
    """(exp(x) - 1 - x) / x^2, smooth at 0."""
    safe = _away_from_zero(x)
    factorial, coefficients = 1.0, []
    for k in range(2, 20):
        factorial *= k
        coefficients.append(1.0 / factorial)
    return power_series(x, (torch.expm1(safe) - safe) / safe.square(), coefficients)


def _log1p_ratio(x: Tensor) -> Tensor:
    """log(1 + x) / x, smooth at 0."""
    safe = _away_from_zero(x)
    coefficients = [(-1.0) ** k / (k + 1) for k in range(54)]
    return power_series(x, torch.log1p(safe) / safe, coefficients)


def softmin(energy: Tensor, beta: Tensor, log_weight: Tensor | None = None) -> Tensor:
    r"""softmin_beta[E] = -1/beta log sum_n w exp(-beta E) over the last dimension.

    beta lies in [0, inf]. The same function is written in three ways, each used where it is exact.
    With m = min E and c = E - <E>_w:

    * beta = inf: sum_n p E, where p spreads over the exact minima as the weights do (the limit);
    * beta max |c| > 1/2: m - 1/beta log sum_n w exp(-beta (E - m));
    * otherwise: <E>_w - beta Q log1p(beta^2 Q) / (beta^2 Q), with
      Q = sum_n w c^2 (exp(-beta c) - 1 + beta c) / (beta c)^2, which follows from sum_n w c = 0
      and stays exact down to beta = 0, in its derivatives too.
    """
    energy, beta = broadcast(energy, beta, log_weight)
    log_w = log_weights(log_weight, energy)
    kept = (log_w > -torch.inf).expand(energy.shape)
    weight = log_w.exp()
    # The energy of a dropped latent, or an infinite one, must not enter a product: 0 * inf is NaN.
    least = torch.where(kept, energy, torch.inf).amin(-1).detach()
    reached = kept & (energy != torch.inf)
    out_of_reach = (least == torch.inf) & kept.any(-1)
    coldest_shares = softargmin(energy.detach(), torch.full_like(least, torch.inf), log_weight)
    coldest_shares = torch.where(out_of_reach.unsqueeze(-1), 0.0, coldest_shares)
    energy = torch.where(reached, energy, 0.0)

    cold = beta == torch.inf
    finite = torch.where(beta == torch.inf, 0.0, beta)
    mean = (weight * energy).sum(-1)
    centred = energy - mean.unsqueeze(-1)
    spread = torch.where(kept, centred, 0.0).abs().amax(-1)
    hot = ~cold & (finite * spread <= 0.5) & (reached | ~kept).all(-1)

    coldest = torch.where(out_of_reach, torch.inf, (coldest_shares * energy).sum(-1))

    beta_warm = torch.where(cold | hot, 1.0, finite).unsqueeze(-1)
    cooled = torch.where(reached, -beta_warm * (energy - least.unsqueeze(-1)), -torch.inf)
    cooled = torch.where(kept, cooled, 0.0)
    # The logarithm of a sum near 1 would cancel. There, sum_n w (exp - 1) is exact.
    deficit = (weight * torch.expm1(cooled)).sum(-1)
    shallow = deficit > -0.5
    log_sum = torch.where(
        shallow,
        torch.log1p(torch.where(shallow, deficit, 0.0)),
        torch.logsumexp(log_w + cooled, -1),
    )
    warm = least - log_sum / beta_warm.squeeze(-1)

    beta_hot = torch.where(hot, finite, 0.0)
    centred_hot = torch.where(hot.unsqueeze(-1) & kept, centred, 0.0)
    # beta c before the square: c^2 alone overflows in float32 where energies exceed 1e19.
    exponent = beta_hot.unsqueeze(-1) * centred_hot
    remainder = weight * _exp_remainder(-exponent)
    beta_q = (remainder * exponent * centred_hot).sum(-1)
    beta_beta_q = (remainder * exponent.square()).sum(-1)
    hottest = mean - beta_q * _log1p_ratio(beta_beta_q)

    value = torch.where(cold, coldest, torch.where(hot, hottest, warm))
    # A factor, not torch.where: where beta is invalid, the derivatives are NaN as well.
    return value * torch.where(beta >= 0, torch.ones_like(value), torch.nan)


def softargmin(energy: Tensor, beta: Tensor, log_weight: Tensor | None = None) -> Tensor:
    """softargmin_beta[E] = w exp(-beta E) / sum (same) over the last dimension; sums to one."""
    energy, beta = broadcast(energy, beta, log_weight)
    log_w = log_weights(log_weight, energy)
    least = torch.where(log_w > -torch.inf, energy, torch.inf).amin(-1, keepdim=True)
    beta = beta.unsqueeze(-1)
    excess = energy - least.detach()
    # A latent infinitely far above the minimum is out of reach at every beta, 0 included.
    far = excess == torch.inf
    excess = torch.where(far, 0.0, excess)
    # At beta = inf, 0 * inf would be NaN: write exp(-inf) off the minimum and exp(0) on it.
    cooled = torch.where(
        beta == torch.inf,
        torch.where(excess > 0, -torch.inf, excess),
        -torch.where(beta == torch.inf, 0.0, beta) * excess,
    )
    cooled = torch.where(far, -torch.inf, cooled)
    cooled = torch.where(beta >= 0, cooled, torch.nan)
    return torch.softmax(torch.where(log_w > -torch.inf, log_w + cooled, -torch.inf), -1)


def free_energy(
    y: Tensor,
    decoded: Tensor,
    beta: Tensor,
    scale: Tensor | None = None,
    log_weight: Tensor | None = None,
    latent_energy: Tensor | None = None,
) -> Tensor:
    """F[..., M]: the softmin of the energies."""
    energy = energies(y, decoded, scale, latent_energy)
    return softmin(energy, beta, _beside_queries(log_weight))


# Of (e^x (x - 1) + 1) / x^2.
_ENTROPY_SERIES = [(k + 1) / math.factorial(k + 2) for k in range(18)]


def posterior(
    y: Tensor,
    decoded: Tensor,
    beta: Tensor,
    scale: Tensor | None = None,
    log_weight: Tensor | None = None,
    latent_energy: Tensor | None = None,
) -> Posterior:
    """The expectations under p that :class:`Posterior` names."""
    energy = energies(y, decoded, scale, latent_energy)
    log_weight = _beside_queries(log_weight)
    energy, beta = broadcast(energy, beta, log_weight)
    p = softargmin(energy, beta, log_weight)
    log_w = log_weights(log_weight, energy)
    kept = (log_w > -torch.inf).expand(energy.shape)
    some = p > 0
    ratio = torch.where(some, torch.where(some, p, 1.0).log() - log_w, 0.0)
    value = softmin(energy, beta, log_weight)
    # KL is the sum of p log(p/w) - p + w, none of which is negative. Where p is near w, log(p/w)
    # would be only rounding: there, it is w (e^x (x - 1) + 1) with x = -beta (E - F).
    warm = (beta < torch.inf).unsqueeze(-1) & kept & value.isfinite().unsqueeze(-1)
    above = torch.where(warm, energy - value.unsqueeze(-1), 0.0)
    x = -torch.where(beta < torch.inf, beta, 0.0).unsqueeze(-1) * above
    near = warm & (x.abs() <= 0.5)
    x = torch.where(near, x, 0.0)
    squares = log_w.exp() * x.square() * power_series(x, x, _ENTROPY_SERIES)
    return Posterior(
        free_energy=value,
        mean=(p.unsqueeze(-1) * decoded.unsqueeze(-3)).sum(-2),
        energy=(p * torch.where(p > 0, energy, torch.where(p.isnan(), p, 0.0))).sum(-1),
        relative_entropy=torch.where(near, squares, p * ratio - p + log_w.exp()).sum(-1),
        index=torch.where(kept, energy, torch.inf).argmin(-1),
    )


def _beside_queries(log_weight: Tensor | None) -> Tensor | None:
    """Insert the query dimension: ``[..., N]`` to ``[..., 1, N]``."""
    return None if log_weight is None else log_weight.unsqueeze(-2)
