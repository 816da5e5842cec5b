r"""Second derivatives of the free energy in plain PyTorch tiles, for every backend.

A direction changes every argument at a rate, written with a dot. The cotangents of a posterior's
outputs are a direction too, with G = 1: those of the mean are the rate c[b] of an energy c . g[n],
those of <E> and KL, e and k, are the rate e - beta k of log beta. With u = E - F, d = y - s g and
x = -beta u = log(p/w):

    d_dot   = y_dot - s_dot g - s g_dot
    E_dot   = 2 d . d_dot + r_dot + c . g + e u
    p_dot   = p (A - <A>_p),     A = l_dot - beta_dot u - beta E_dot
    k_j[n]  = w u^j psi_j(x),    psi_j(x) = x^-j int_0^x t^(j-1) e^t dt = sum_k x^k / (k! (k + j))

    F_dot[b] = <E_dot>_p + J - beta_dot K,     J = sum_n k_1 l_dot,  K = sum_n k_2 = -dF/dbeta

The gradients of sum_b (G F_dot + G_dot F) are the rates of the gradients of sum_b G F. With
q = G p_dot + G_dot p:

    by y[b]     2 sum_n (q d + G p d_dot)
    by s[b]    -2 sum_n (q g d + G p (g_dot d + g d_dot))
    by beta[b]  G (-Cov_p(E_dot, u) + K <l_dot>_p - sum_n k_2 l_dot
                   + beta_dot (beta K^2 + sum_n k_3)) - G_dot K
    by g[n]    -2 sum_b (q s d + G p (s_dot d + s d_dot)) + sum_b G p c
    by l[n]     sum_b G (p (E_dot - <E_dot>_p) + k_1 l_dot - p J + beta_dot (p K - k_2)) + G_dot k_1
    by r[n]     sum_b q

Here l_dot is relative to its average over w. The k_j are entire in beta, so nothing cancels
at small beta. At beta = inf, p changes with l alone: the terms with beta and k_j are zero.

The gradient of a posterior by beta would cancel when cold. It is taken along the energy
(e - beta k) u instead: <E> falls by Var(E), and KL rises by beta Var(E).

u^3 and beta^-3 may leave the range of the dtype where the result does not. So each query has its
own unit of energy, with the Z of :func:`~lebm_kernels.backends.tiles.inverse_size`: Z E, Z E_dot,
beta / Z, beta_dot / Z, G / Z and Z F_dot satisfy the same formulas. Of a posterior, G is 1 in these
units, c as it is, and the rate of log beta e / Z - (beta / Z) k.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lebm_kernels.arguments import TENSORS
from lebm_kernels.backends import tiles
from lebm_kernels.backends.contract import Problem


class Direction(NamedTuple):
    """The rate of each argument of a :class:`Problem`, in its shape; None: it does not change.

    ``mean`` is c, ``[B, M, D]``; ``energy`` and ``relative_entropy`` are e and k, ``[B, M]``: the
    cotangents of a posterior. With any of them G is 1. The gradient by beta is then asked alone.
    """

    y: Tensor | None = None
    decoded: Tensor | None = None
    beta: Tensor | None = None
    scale: Tensor | None = None
    log_weight: Tensor | None = None
    latent_energy: Tensor | None = None
    mean: Tensor | None = None
    energy: Tensor | None = None
    relative_entropy: Tensor | None = None

    @property
    def of_posterior(self) -> bool:
        """Whether they are the cotangents of a posterior."""
        return any(x is not None for x in (self.mean, self.energy, self.relative_entropy))


class SecondWants(NamedTuple):
    """Which gradients are computed in addition to F_dot; the others stay None."""

    y: bool = False
    decoded: bool = False
    beta: bool = False
    scale: bool = False
    log_weight: bool = False
    latent_energy: bool = False


class Second(NamedTuple):
    """F_dot ``[B, M]`` and the gradients, in the shapes of their arguments and F's dtype."""

    value: Tensor
    y: Tensor | None = None
    decoded: Tensor | None = None
    beta: Tensor | None = None
    scale: Tensor | None = None
    log_weight: Tensor | None = None
    latent_energy: Tensor | None = None


def _total(terms: Iterable[Tensor | None]) -> Tensor | None:
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


def _times(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else a * b


def _narrowed(direction: Direction, grid: slice, query: slice, latent: slice) -> Direction:
    of_queries = [*(row.of_queries for row in TENSORS), True, True, True]
    return Direction(
        *(
            None if x is None else x[grid, query if q else latent]
            for x, q in zip(direction, of_queries, strict=True)
        )
    )


class _Units(NamedTuple):
    """Z of a tile of queries and beta / Z with 0 in place of inf, both ``[b, m, 1]``."""

    z: Tensor
    beta: Tensor

    @classmethod
    def of(cls, beta: Tensor, state: Tensor) -> _Units:
        z = tiles.inverse_size(beta, state)
        finite = torch.where(beta == torch.inf, 0.0, beta.double())
        return cls(z.to(beta.dtype)[..., None], (finite / z).to(beta.dtype)[..., None])

    def rate(self, energy: Tensor | None, relative_entropy: Tensor | None) -> Tensor | None:
        """The rate of log beta from the cotangents of <E> and KL, ``[b, m]`` each."""
        falling = None if relative_entropy is None else -relative_entropy[..., None] * self.beta
        return _total((None if energy is None else energy[..., None] / self.z, falling))


class _Tile:
    """The pairs of one tile: each quantity ``[b, m, n]`` and its rate, in units of 1/Z."""

    def __init__(
        self,
        tile: Problem,
        dots: Direction,
        latent: slice,
        log_w: Tensor,
        state: Tensor,
        order: int,
        units: _Units,
        energy_rate: Tensor | None,
    ) -> None:
        self.tile, self.dots, self.latent, self.units = tile, dots, latent, units
        excess = tiles.energies(tile) - state[:, :, None, 0].to(tile.y.dtype)
        self.p, self.x, above = tiles.posterior_weights(tile, excess, log_w, state)
        self.u = above.mul_(units.z)
        self.w = log_w.exp()
        self.energy_dot = self._energy_dot(excess == torch.inf, energy_rate)
        self.log_weight_dot = None if dots.log_weight is None else dots.log_weight[:, None, :]
        self.k = self._moments(order) if order else []

    def difference(self, d: int) -> Tensor:
        """Dimension d of Z (y - s g)."""
        return tiles.differences(self.tile, d).mul_(self.units.z)

    def difference_dot(self, d: int) -> Tensor | None:
        """Dimension d of y_dot - s_dot g - s g_dot, broadcastable to ``[b, m, n]``."""
        dots = self.dots
        by_y = None if dots.y is None else dots.y[:, :, None, d]
        by_scale = (
            None
            if dots.scale is None
            else -dots.scale[:, :, None, d] * self.tile.decoded[:, None, :, d]
        )
        by_decoded = None
        if dots.decoded is not None:
            by_decoded = -tiles.predictions(self.tile._replace(decoded=dots.decoded), d)
        return _total((by_y, by_scale, by_decoded))

    def _energy_dot(self, unreached: Tensor, rate: Tensor | None) -> Tensor | None:
        dots, D = self.dots, self.tile.y.shape[-1]
        total = None if dots.latent_energy is None else self.units.z * dots.latent_energy[:, None]
        for d in range(D):
            change = self.difference_dot(d)
            if change is not None:
                total = _total((total, 2 * self.difference(d) * change))
            if dots.mean is not None:
                total = _total((total, dots.mean[:, :, None, d] * self.tile.decoded[:, None, :, d]))
        if rate is not None:
            total = _total((total, rate * self.u))
        # A latent out of reach has posterior weight 0: inf * 0 would be a NaN.
        return None if total is None else torch.where(unreached, 0.0, total)

    def _moments(self, order: int) -> list[Tensor]:
        """k_1 to k_order, order 1 to 3; 0 where beta = inf."""
        p, w, u = self.p, self.w, self.u
        beta = self.units.beta
        near = self.x.abs() <= 1
        cold = self.tile.beta[:, :, None] == torch.inf
        small = torch.where(near, self.x, 0.0)
        # p is 0 where x is -inf.
        x = torch.where(p > 0, self.x, torch.where(p.isnan(), p, 0.0))
        inverse = torch.where(beta == 0, 0.0, 1 / beta)
        close = [w * u * psi for psi in tiles.psis(small, order)]
        far = [w - p, p * (x - 1) + w, 2 * w - p * (x * (x - 2) + 2)]
        for j in range(order):
            for _ in range(j):
                close[j] = close[j] * u
            for _ in range(j + 1):
                far[j] = far[j] * inverse
        return [
            torch.where(cold, 0.0, torch.where(near, c, f))
            for c, f in zip(close, far, strict=False)
        ]


class _Averages:
    """The sums of each query of a tile over its latents, ``[b, m, 1]``, in the tile's dtype."""

    def __init__(self, tiles: Iterable[_Tile], state: Tensor, dtype: torch.dtype, curved: bool):
        zero = torch.zeros_like(state[..., :1])
        mass, energy_dot, log_weight_dot, above = (zero.clone() for _ in range(4))
        slope, curvature = zero.clone(), zero.clone()
        for t in tiles:
            mass += t.p.sum(-1, keepdim=True)
            if t.energy_dot is not None:
                energy_dot += (t.p * t.energy_dot).sum(-1, keepdim=True)
            if t.log_weight_dot is not None:
                log_weight_dot += (t.p * t.log_weight_dot).sum(-1, keepdim=True)
                slope += (t.k[0] * t.log_weight_dot).sum(-1, keepdim=True)
            if curved:
                above += (t.p * t.u).sum(-1, keepdim=True)
                curvature += t.k[1].sum(-1, keepdim=True)
        self.mass = mass
        self.energy_dot = (energy_dot / mass).to(dtype)
        self.log_weight_dot = (log_weight_dot / mass).to(dtype)
        self.above = (above / mass).to(dtype)
        self.slope, self.curvature = slope.to(dtype), curvature.to(dtype)

    def consistent(self) -> Tensor:
        """Whether the state's normaliser belongs to these energies; a scalar on their device."""
        close = math.sqrt(torch.finfo(self.slope.dtype).eps)
        return ~((self.mass - 1).abs() > close).any()


class _Pass:
    """A pass over the tiles of latents for one tile of queries; a single tile is kept."""

    def __init__(
        self,
        problem: Problem,
        direction: Direction,
        where: tuple[slice, slice],
        state: Tensor,
        order: int,
        units: _Units,
        energy_rate: Tensor | None,
    ) -> None:
        self.problem, self.direction, self.where, self.state = problem, direction, where, state
        self.order, self.units, self.energy_rate = order, units, energy_rate
        self.num_latents = problem.decoded.shape[1]
        whole = tiles.latents_per_tile(problem) >= self.num_latents
        self.only = self._tile(slice(0, self.num_latents)) if whole else None

    def __iter__(self) -> Iterator[_Tile]:
        if self.only is not None:
            yield self.only
            return
        for latent in tiles.latent_tiles(self.problem):
            yield self._tile(latent)

    def _tile(self, latent: slice) -> _Tile:
        tile = tiles.narrowed(self.problem, *self.where, latent)
        dots = _narrowed(self.direction, *self.where, latent)
        log_w = tiles.log_weights(tile, self.num_latents)
        return _Tile(
            tile, dots, latent, log_w, self.state, self.order, self.units, self.energy_rate
        )


def along(
    problem: Problem,
    grad: Tensor,
    grad_dot: Tensor | None,
    state: Tensor,
    direction: Direction,
    want: SecondWants,
) -> Second:
    """F_dot and the gradients of sum_b (grad F_dot + grad_dot F): the formulas above.

    Args:
        problem: the arguments, float32 or float64.
        grad: G, ``[B, M]``, the problem's dtype; not read for a posterior's cotangents.
        grad_dot: G_dot, likewise, or None for 0.
        state: what :func:`lebm_kernels.backends.contract.Rows` has of any backend.
        direction: the rates of the arguments, the problem's dtype.
        want: the gradients wanted; ignored for arguments that are None.
    """
    problem = tiles.normalised(problem)
    cold = problem.beta == torch.inf
    if direction.beta is not None:
        direction = direction._replace(beta=torch.where(cold, 0.0, direction.beta))
    if direction.log_weight is not None:
        direction = direction._replace(log_weight=_centred(direction.log_weight, problem))
    (B, M, D), N = problem.y.shape, problem.decoded.shape[1]
    sizes = {"M": M, "N": N, "D": D}
    shapes = [(B, *(sizes[dim] for dim in row.dims)) for row in TENSORS]
    out = Second(
        torch.zeros_like(problem.beta),
        *(
            torch.zeros(shape, dtype=torch.float64, device=problem.y.device) if w else None
            for shape, w in zip(shapes, want, strict=True)
        ),
    )
    of_energies = direction.energy is not None or direction.relative_entropy is not None
    cools = direction.beta is not None or (of_energies and not want.beta)
    curved = cools or want.beta
    order = 1 if direction.log_weight is not None or want.log_weight else 0
    if curved:
        order = 3 if cools and want.beta else 2

    def visit(where: tuple[slice, slice], state: Tensor, trusted: bool = False) -> Tensor:
        """Add one tile of queries to ``out`` if the state belongs to its energies; say whether."""
        units = _Units.of(problem.beta[where], state)
        e, k = (None if x is None else x[where] for x in direction[-2:])
        rate = units.rate(e, k)
        latents = _Pass(problem, direction, where, state, order, units, rate if want.beta else None)
        averages = _Averages(latents, state, grad.dtype, curved)
        consistent = averages.consistent() | trusted
        value = averages.energy_dot + averages.slope
        beta_dot = None if want.beta else _times(units.beta, rate)
        if direction.beta is not None:
            beta_dot = direction.beta[where][..., None] / units.z
        if beta_dot is not None:
            value = value - beta_dot * averages.curvature
        out.value[where] = (value / units.z)[..., 0]
        if any(want):
            ones = torch.ones_like(units.z)
            weights = _Weights(
                ones if direction.of_posterior else grad[where][..., None] / units.z,
                None if grad_dot is None else grad_dot[where][..., None] / units.z,
                beta_dot,
                units,
                consistent,
            )
            for tile in latents:
                _add(out, where, tile, averages, weights)
        return consistent

    places = list(tiles.query_tiles(problem))
    verdicts = [visit(where, state[where]) for where in places]
    # Read once, after the last tile: reading waits for the device.
    answers = torch.stack(verdicts).tolist() if verdicts else []
    for where, consistent in zip(places, answers, strict=True):
        if not consistent:
            # Another backend rounded the energies otherwise: when cold, that is another posterior.
            visit(where, tiles.Normaliser(problem, *where).state(), trusted=True)
    if out.beta is not None:
        out.beta.masked_fill_(cold, 0.0)
    return Second(out.value, *(None if x is None else x.to(grad.dtype) for x in out[1:]))


def _centred(log_weight_dot: Tensor, problem: Problem) -> Tensor:
    """The rates of log w in place of those of l; 0 for dropped latents."""
    assert problem.log_weight is not None
    kept = problem.log_weight > -torch.inf
    wide = torch.where(kept, log_weight_dot, 0.0).double()
    mean = (problem.log_weight.double().exp() * wide).sum(-1, keepdim=True)
    return torch.where(kept, wide - mean, 0.0).to(log_weight_dot.dtype)


class _Weights(NamedTuple):
    """Per query of a tile, ``[b, m, 1]``: G / Z, G_dot / Z, and the rate of beta / Z.

    Where ``consistent``, a scalar, is false, the tile adds nothing.
    """

    grad: Tensor
    grad_dot: Tensor | None
    beta_dot: Tensor | None
    units: _Units
    consistent: Tensor


def _accumulate(total: Tensor, part: Tensor, kept: Tensor) -> None:
    """Add ``part`` to a view of a sum where ``kept``; elsewhere it may be NaN."""
    total += torch.where(kept, part, 0.0)


def _add(
    out: Second, where: tuple[slice, slice], t: _Tile, mean: _Averages, weights: _Weights
) -> None:
    """Add the terms of one tile to all the gradients wanted."""
    (grid, query), latent = where, t.latent
    G, G_dot, beta_dot, (z, beta), kept = weights
    p = t.p / mean.mass.to(t.p.dtype)
    # p first: the other factors may be large where it is 0.
    energy_part = None if t.energy_dot is None else p * (t.energy_dot - mean.energy_dot)
    above_part = p * (t.u - mean.above)
    p_dot = _total(
        (
            None if t.log_weight_dot is None else p * (t.log_weight_dot - mean.log_weight_dot),
            None if beta_dot is None else -beta_dot * above_part,
            None if energy_part is None else -beta * energy_part,
        )
    )
    weight = G * p
    q = _total((_times(G, p_dot), _times(G_dot, p)))
    if out.y is not None or out.scale is not None or out.decoded is not None:
        for d in range(t.tile.y.shape[-1]):
            _add_vectors(out, where, t, d, q, weight, kept)
    if out.latent_energy is not None and q is not None:
        _accumulate(out.latent_energy[grid, latent], (z * q).sum(1), kept)
    if out.beta is not None:

        def by_beta(x: Tensor) -> Tensor:
            return x.double() / z[..., 0]

        terms = _total(
            (
                None if energy_part is None else -energy_part * (t.u - mean.above),
                _times(t.log_weight_dot, mean.curvature * p - t.k[1]),
                None if beta_dot is None else beta_dot * t.k[2],
            )
        )
        if terms is not None:
            _accumulate(out.beta[grid, query], by_beta((G * terms).sum(-1)), kept)
        if latent.start == 0:
            if beta_dot is not None:
                _accumulate(
                    out.beta[grid, query],
                    by_beta((G * beta_dot * beta * mean.curvature.square())[..., 0]),
                    kept,
                )
            if G_dot is not None:
                part = by_beta(-(G_dot * mean.curvature)[..., 0])
                _accumulate(out.beta[grid, query], part, kept)
    if out.log_weight is not None:
        terms = _total(
            (
                energy_part,
                None if t.log_weight_dot is None else t.k[0] * t.log_weight_dot - p * mean.slope,
                None if beta_dot is None else beta_dot * (p * mean.curvature - t.k[1]),
            )
        )
        terms = _total((_times(G, terms), _times(G_dot, t.k[0])))
        if terms is not None:
            _accumulate(out.log_weight[grid, latent], terms.sum(1), kept)


def _add_vectors(
    out: Second,
    where: tuple[slice, slice],
    t: _Tile,
    d: int,
    q: Tensor | None,
    weight: Tensor,
    kept: Tensor,
) -> None:
    """Add the terms of one tile to dimension d of the gradients by y, s and g."""
    grid, query = where
    scale, decoded = t.tile.scale, t.tile.decoded[:, None, :, d]
    scale_dot, decoded_dot, mean_dot = t.dots.scale, t.dots.decoded, t.dots.mean
    difference = t.difference(d)
    moving = t.difference_dot(d)
    # Not Z times the rate: that may overflow.
    moved_by = None if moving is None else (t.units.z * weight) * moving
    pull = _total((_times(q, difference), moved_by))
    if out.y is not None and pull is not None:
        _accumulate(out.y[grid, query, d], 2 * pull.sum(-1), kept)
    if out.scale is not None:
        moved = None if decoded_dot is None else weight * difference * decoded_dot[:, None, :, d]
        terms = _total((_times(pull, decoded), moved))
        if terms is not None:
            _accumulate(out.scale[grid, query, d], -2 * terms.sum(-1), kept)
    if out.decoded is not None:
        stretched = pull if scale is None else _times(pull, scale[:, :, None, d])
        moved = None if scale_dot is None else weight * difference * scale_dot[:, :, None, d]
        terms = _total((stretched, moved))
        if terms is not None:
            _accumulate(out.decoded[grid, t.latent, d], -2 * terms.sum(1), kept)
        if mean_dot is not None:
            _accumulate(
                out.decoded[grid, t.latent, d], (weight * mean_dot[:, :, None, d]).sum(1), kept
            )
