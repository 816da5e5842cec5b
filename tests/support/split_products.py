"""A model of free energies by products of halves on tensor cores, for float32 and D > 8.

About the centre c of a block of latents, with u = y - c and v = g - c,

    E[b, n] = |u|^2 - 2 s,  s[b, n] = u . v - |v|^2 / 2
    F[b] = -1/beta log mean_n exp(-beta E[b, n])
    dF/dy[b] = 2 (u - sum_n p v)      dF/dg[n] = -2 sum_b G p (u - v)

u and v are scaled by powers of two and split in two halves each, as is p. A product of two such
numbers is three products of halves; that of the two low ones is left out.

A tile of a query for which products are not exact enough is *lost*: its pairs are added from
differences in float32. A kernel does that in a second launch.

This module has no speed to win and makes no launches. It has the numbers that kernels take from it
(the constants below), and the arithmetic in the order in which they do it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from support import tensor_core
from support.tensor_core import Arithmetic, Array, multiply

BLOCK = 1024
"""Latents about one centre: u is made and split once for so many."""

TILE = 128
"""Latents whose energies are judged together."""

DIFFERENCES = 32
"""Dimensions whose squares of differences are added in one chain, for pairs of lost tiles.

One chain of 784 breaks the promise on dF/dg.
"""

TOP = 15
"""Halves are scaled so that the largest is in [2^(TOP - 1), 2^TOP); the least is 2^-39 of it."""

MASS_BITS = 15
"""p is multiplied by 2^MASS_BITS, so that its halves keep what is above 2^-40 of the largest.

With 2^10, the many small p of a query close to one latent are too coarse for dF/dy.
"""

ROUNDING_OF_DOT = 0.6
ROUNDING_OF_SQUARES = 0.25
"""The rounding of u . v and of |u|^2 and |v|^2, in eps of their size, as for CPUs (judge).

They are errors of independent roundings; what tensor cores cut off can be ten times as much.
"""

ENERGY_ROUNDINGS = 1.5
"""The error allowed in E, in eps of E. At 2, two groups of latents break the promise on dF/dg."""

BETA_ROUNDINGS = 3.0
"""The error allowed in E, in eps / beta. At 6, queries near a latent break the promise on dF/dg."""

COARSEST = 2.0**22
"""The largest addend of the exponent, beta (m - |u|^2) log2 e: rounded, p moves by 2^(1/4) at most.

Where it is larger, p could leave the range of halves, and what does not matter could seem to. Such
a tile is lost if it matters; if not, it adds nothing.
"""

NEGLIGIBLE = 64.0
"""A tile whose exponents are all further than this below the largest does not matter."""

EXCESS_ERRORS = 16.0
"""How many times its modelled error a least energy may be wrong by."""

EPS = 2.0**-23
LOG2E = math.log2(math.e)
HOT = -0.5  # of the logarithm of the mean exponential: above, other kernels take the query


class Card(NamedTuple):
    """A tensor core, and how much one of its accumulators sums.

    The sums of such slabs are added outside, rounded to nearest: what is cut off toward zero grows
    with a sum, and with the number of steps.
    """

    arithmetic: Arithmetic
    dimensions: int  # of s
    terms: int  # of a moment


SM_80 = Card(tensor_core.SM_80, 32, 16)
SM_90 = Card(tensor_core.SM_90, 64, 64)
NEAREST = Card(tensor_core.NEAREST, 64, 64)
CARDS = (SM_80, SM_90, NEAREST)


class Halves(NamedTuple):
    """A matrix as the sum of two of halves."""

    high: Array
    low: Array

    @property
    def value(self) -> Array:
        return self.high.astype(np.float64) + self.low

    def columns(self, start: int, stop: int) -> Halves:
        return Halves(*(x[:, start:stop] for x in self))

    @property
    def T(self) -> Halves:
        return Halves(*(x.T for x in self))


SMALL_FIRST = ((1, 0), (0, 1), (0, 0))
"""The products of (high, low) by (high, low), in the order in which they are added."""


def to_float(x: Any) -> Array:
    return np.asarray(x, dtype=np.float32)


def fma(a: Array, b: Any, c: Array) -> Array:
    """a b + c in float32, rounded once."""
    return to_float(np.float64(1) * a * b + c)


def scale_of(x: Array, axis: int | None = None) -> Array:
    """The power of two that brings the largest of ``x`` to just below 2^TOP."""
    exponent = np.frexp(np.abs(x).max(axis=axis, keepdims=True))[1]
    return np.ldexp(1.0, TOP - exponent)


def split(x: Array) -> Halves:
    high = x.astype(np.float16)
    return Halves(high, (x - high).astype(np.float16))


def product(left: Halves, right: Halves, card: Card, order: Any) -> Array:
    """left right^T, of one accumulator."""
    sums = np.zeros((len(left.high), len(right.high)), np.float32)
    for i, j in SMALL_FIRST:
        sums = multiply(left[i], right[j], sums, card.arithmetic, order)
    return sums


def slabs(size: int, most: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, most):
        yield start, min(start + most, size)


def centre_of(g: Array) -> Array:
    return to_float(g.mean(0, dtype=np.float64))


class Block:
    """A block of latents, and the queries about its centre."""

    def __init__(self, y: Array, decoded: Array, start: int, card: Card, order: Any) -> None:
        g = decoded[start : start + BLOCK]
        self.start, self.size = start, len(g)
        centre = centre_of(g)
        self.u, self.v = y - centre, g - centre
        self.u_scale, self.v_scale = scale_of(self.u, 1), scale_of(self.v)
        self.u_halves = split(self.u * self.u_scale)
        self.v_halves = split(self.v * self.v_scale)
        # Of what is multiplied: then s errs by roundings of the product alone.
        self.u_square = to_float(np.square(self.u_halves.value / self.u_scale).sum(1))
        self.v_square = to_float(np.square(self.v_halves.value / self.v_scale).sum(1))
        self.s = self._products(card, order)

    def _products(self, card: Card, order: Any) -> Array:
        dot = np.zeros((len(self.u), self.size), np.float32)
        for start, stop in slabs(self.u.shape[1], card.dimensions):
            u, v = self.u_halves.columns(start, stop), self.v_halves.columns(start, stop)
            dot = dot + product(u, v, card, order)
        return fma(dot, 1 / (self.u_scale * self.v_scale), -self.v_square / 2)

    def tiles(self) -> Iterator[slice]:
        for start, stop in slabs(self.size, TILE):
            yield slice(start, stop)


class Verdict(NamedTuple):
    """Of a tile, for each query. What is neither lost nor added does not matter."""

    lost: Array
    added: Array  # by products


def judge(block: Block, tile: slice, shift: Array, rate: Any) -> Verdict:
    """Whether a tile matters, and whether products are exact enough.

    Args:
        block: the tile's block.
        tile: its place in the block.
        shift: the least energy that each query has.
        rate: beta.
    """
    D = block.u.shape[1]
    least = least_energy(block, tile)
    low, u_square = np.maximum(least, 0), block.u_square
    u, radius = np.sqrt(u_square), np.sqrt(block.v_square[tile].max())
    # A latent near the query is about as far from the centre: |v| <= |u| + sqrt(E).
    v = np.minimum(u + np.sqrt(low), radius)
    squares = u_square + v * v
    dot = np.abs(squares - low) / 2 + u * v * to_float(1 / math.sqrt(D))
    error = np.hypot(2 * to_float(ROUNDING_OF_DOT) * dot, to_float(ROUNDING_OF_SQUARES) * squares)
    excess = least - to_float(EXCESS_ERRORS * EPS) * error - shift
    matters = ~(excess * to_float(rate) > NEGLIGIBLE)
    allowed = to_float(ENERGY_ROUNDINGS) * low + to_float(BETA_ROUNDINGS / rate)
    fine = np.abs(shift - u_square) * to_float(rate * LOG2E) <= COARSEST
    lost = matters & ~((error <= allowed) & fine)
    return Verdict(lost, fine & ~lost)


def least_energy(block: Block, tile: slice) -> Array:
    return fma(block.s[:, tile].max(1), -2.0, block.u_square)


class Sums(NamedTuple):
    """Of the pairs of each query: 2^MASS_BITS exp(-beta (E - shift)), and of that times y - g."""

    shift: Array
    total: Array  # of p
    mass: Array  # of p as it is multiplied
    pull: Array


class Rows(NamedTuple):
    """What the row pass finds."""

    free_energy: Array
    grad_y: Array  # dF/dy
    shift: Array
    total: Array
    lost: Array  # [M, tiles]
    hot: Array


class Model:
    """The arguments of a free energy; both passes, at any beta."""

    def __init__(self, y: Tensor, decoded: Tensor, card: Card, seed: int = 0) -> None:
        self.y, self.decoded, self.card = y.numpy(), decoded.numpy(), card
        self.order = np.random.default_rng(seed)
        self.blocks = [
            Block(self.y, self.decoded, start, card, self.order)
            for start in range(0, len(decoded), BLOCK)
        ]
        self.differences = self._differences()

    def arguments(self, beta: float) -> dict[str, Tensor]:
        """Those of ``lebm_kernels.free_energy``."""
        return {
            "y": torch.from_numpy(self.y),
            "decoded": torch.from_numpy(self.decoded),
            "beta": torch.tensor(beta),
        }

    def _differences(self) -> Array:
        energy = np.zeros((len(self.y), len(self.decoded)), np.float32)
        for start, stop in slabs(self.y.shape[1], DIFFERENCES):
            part = np.zeros_like(energy)
            for k in range(start, stop):
                d = self.y[:, k, None] - self.decoded[:, k]
                part = fma(d, d, part)
            energy = energy + part
        return energy

    def exp2(self, x: Array) -> Array:
        """As exact as the special function unit is said to be: to a relative error of 2^-22."""
        error = self.order.uniform(-(2.0**-22), 2.0**-22, x.shape)
        return to_float(np.exp2(x.astype(np.float64)) * (1 + error))

    def exponentials(
        self, block: Block, tile: slice, shift: Array, coldness: Array, added: Array
    ) -> Array:
        """2^MASS_BITS exp2(coldness (shift - E)): one fma and an exponential for each pair."""
        s = block.s[:, tile]
        # The shift is rounded. Where it is the least energy, p may not exceed 2^MASS_BITS for that.
        largest = np.maximum((block.u_square - shift) / 2, s.max(1))
        addend = fma(largest, -2 * coldness, np.float32(MASS_BITS))
        addend = np.where(added, addend, np.float32(-np.inf))
        return self.exp2(fma(s, 2 * coldness, addend[:, None]))

    def rows(self, beta: float) -> Rows:
        coldness = to_float(beta * LOG2E)
        by_products, lost = self._rows_by_products(coldness, to_float(beta))
        sums = self._merge(by_products, self._lost_rows(lost, coldness), coldness)
        mean = np.log(sums.total / len(self.decoded) / 2.0**MASS_BITS)
        return Rows(
            to_float(sums.shift - mean / beta),
            to_float(2 * sums.pull / sums.mass[:, None]),
            sums.shift,
            sums.total,
            lost,
            mean > HOT,
        )

    def _sample(self) -> Array:
        """The least energy of a few latents, from differences."""
        step = max(1, len(self.decoded) // 64)
        least: Array = self.differences[:, ::step].min(1)
        return least

    def _rows_by_products(self, coldness: Array, rate: Array) -> tuple[Sums, Array]:
        M, D = self.y.shape
        shift, total, mass = self._sample(), np.zeros(M, np.float32), np.zeros(M)
        pull, all_lost = np.zeros((M, D)), []
        for block in self.blocks:
            moment, block_mass = np.zeros((M, D), np.float32), np.zeros(M, np.float32)
            for tile in block.tiles():
                lost, added = judge(block, tile, shift, rate)
                lower = np.where(added, np.minimum(shift, least_energy(block, tile)), shift)
                ratio = self.exp2((lower - shift) * coldness)
                shift, mass, pull = lower, mass * ratio, pull * ratio[:, None]
                p = self.exponentials(block, tile, shift, coldness, added)
                total = fma(total, ratio, p.sum(1))
                halves = split(p)
                block_mass = fma(block_mass, ratio, to_float(halves.value.sum(1)))
                moment = self._add_moment(block, tile, halves, moment, ratio)
                all_lost.append(lost)
            mass = mass + block_mass
            pull = pull + block_mass[:, None] * block.u - moment / block.v_scale
        return Sums(shift, total, mass, pull), np.stack(all_lost, 1)

    def _add_moment(
        self, block: Block, tile: slice, p: Halves, moment: Array, ratio: Array
    ) -> Array:
        latents = Halves(*(x[tile].T for x in block.v_halves))
        for start, stop in slabs(tile.stop - tile.start, self.card.terms):
            part = product(
                p.columns(start, stop), latents.columns(start, stop), self.card, self.order
            )
            moment = fma(moment, ratio[:, None], part) if start == 0 else moment + part
        return moment

    def _pairs(self, tiles: Array) -> Array:
        """A truth value for each pair, of those for each query and tile."""
        widths = [tile.stop - tile.start for block in self.blocks for tile in block.tiles()]
        return np.repeat(tiles, widths, axis=1)

    def _lost_rows(self, lost: Array, coldness: Array) -> Sums:
        M, D = self.y.shape
        energy = np.where(self._pairs(lost), self.differences, np.float32(np.inf))
        shift = energy.min(1)
        shift = np.where(np.isfinite(shift), shift, np.float32(0))
        p = self.exp2((shift[:, None] - energy) * coldness + np.float32(MASS_BITS))
        total, pull = p.sum(1), np.zeros((M, D))
        for q in np.flatnonzero(lost.any(1)):
            kept = np.flatnonzero(p[q])
            terms = p[q, kept, None] * (self.y[q] - self.decoded[kept])
            # In float over a tile's size, then in double.
            pull[q] = np.add.reduceat(terms, range(0, len(kept), TILE)).sum(0, dtype=np.float64)
        return Sums(shift, total, total.astype(np.float64), pull)

    @staticmethod
    def _merge(first: Sums, second: Sums, coldness: Array) -> Sums:
        """The sum of two; a query without lost tiles has no second."""
        second_shift = np.where(second.total > 0, second.shift, first.shift)
        shift = np.where(first.total > 0, np.minimum(first.shift, second_shift), second_shift)
        of_first = np.exp2(np.minimum((shift - first.shift) * coldness, 0).astype(np.float64))
        of_second = np.exp2(np.minimum((shift - second_shift) * coldness, 0).astype(np.float64))

        def both(x: Array, y: Array) -> Array:
            return (x.T * of_first + y.T * of_second).T

        return Sums(
            shift,
            both(first.total, second.total),
            both(first.mass, second.mass),
            both(first.pull, second.pull),
        )

    def columns(self, beta: float, rows: Rows, grad: Array) -> Array:
        """dF/dg of sum(grad F)."""
        coldness = to_float(beta * LOG2E)
        factor = to_float(grad / rows.total)  # of p in units of 2^-MASS_BITS
        lost, found = [], []
        for block in self.blocks:
            for tile in block.tiles():
                verdict = judge(block, tile, rows.shift, to_float(beta))
                p = self.exponentials(block, tile, rows.shift, coldness, verdict.added)
                found.append(self._column_tile(block, tile, p, factor))
                lost.append(verdict.lost)
        return to_float(
            np.concatenate(found) + self._lost_columns(np.stack(lost, 1), rows, factor, coldness)
        )

    def _column_tile(self, block: Block, tile: slice, p: Array, factor: Array) -> Array:
        # A sum over queries has one scale: each query's own scale of u goes into its weight.
        unit = block.u_scale.min()
        share = to_float(unit / block.u_scale[:, 0])
        factor = to_float(factor * share)
        lift = scale_of(factor) * 2.0**-MASS_BITS
        p = p * to_float(factor * lift)[:, None]
        weights = split(p).T
        moment = np.zeros((tile.stop - tile.start, block.u.shape[1]), np.float32)
        mass = np.zeros(tile.stop - tile.start, np.float32)
        queries = block.u_halves.T
        for start, stop in slabs(len(self.y), self.card.terms):
            some = weights.columns(start, stop)
            part = product(some, queries.columns(start, stop), self.card, self.order)
            moment = moment + part
            mass = mass + to_float((some.value / share[start:stop]).sum(1))
        pull = moment / unit - block.v[tile] * mass.astype(np.float64)[:, None]
        return -2 * pull / lift

    def _lost_columns(self, lost: Array, rows: Rows, factor: Array, coldness: Array) -> Array:
        exponent = np.minimum((rows.shift[:, None] - self.differences) * coldness, np.float32(0))
        p = self.exp2(exponent)
        weights = np.where(self._pairs(lost), p * factor[:, None], np.float32(0))
        pull = np.zeros(self.decoded.shape)
        for q in np.flatnonzero(lost.any(1)):
            kept = np.flatnonzero(weights[q])
            pull[kept] += weights[q, kept, None] * (self.y[q] - self.decoded[kept])
        return -2 * pull * 2.0**MASS_BITS
