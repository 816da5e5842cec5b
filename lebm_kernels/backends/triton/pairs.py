"""Arithmetic on a pair (query, latent), or on a tile of pairs.

    difference   d = y - s g                     s = 1 where there is no scale
    energy       E = sum_d d^2 + r
    mass         p = exp2(l - k - c (E - m))     c = beta log2 e, l = log2 w; m and k of the query

A program keeps one of queries and latents and sums over the other; the tile of pairs of tile_energy
is that of packed.py. Operands have size 1 in the dimensions of the other, so that the same code
works for row and column passes. Products that are added use an explicit ``fma``,
and the compiler may fuse no others: two kernels that compute one quantity then get the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lebm_kernels.backends import contract
from lebm_kernels.backends.triton.packed import STEP, step_of, whole_steps

# Which arguments a problem has, as bits of HAS.
SCALE = tl.constexpr(1)
LOG_WEIGHT = tl.constexpr(2)
LATENT_ENERGY = tl.constexpr(4)

# Products summed at once. A sum of partial sums rounds less than one long sum.
SLAB = tl.constexpr(32)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# A query's state, see backends/contract.py: how many numbers it has, and their places.
STATE_SIZE = tl.constexpr(contract.STATE_SIZE)
SHIFT = tl.constexpr(contract.StateField.SHIFT.value)
LOG_NORMALISER = tl.constexpr(contract.StateField.LOG_NORMALISER.value)
GAP = tl.constexpr(contract.StateField.GAP.value)
REST = tl.constexpr(contract.StateField.REST.value)
# As cold as infinity: a latent above the minimum, by the last bit, has posterior weight 0.
COLDEST = tl.constexpr(2.0**100)
# Larger energies count as infinite. Also the shift of a query before any energy is known.
LARGEST32 = tl.constexpr(3.0e38)
LARGEST64 = tl.constexpr(1.5e308)


@triton.jit
def largest(dtype: tl.constexpr):
    """The number beyond which energies count as infinite."""
    return LARGEST64 if dtype == tl.float64 else LARGEST32


@triton.jit
def rounding(dtype: tl.constexpr):
    """The spacing of numbers near 1."""
    return 2.220446049250313e-16 if dtype == tl.float64 else 1.1920928955078125e-07


@triton.jit
def coldness(beta):
    """The coldness c = beta log2 e, at most COLDEST; NaN where beta is NaN."""
    c = beta.to(tl.float64) * LOG2_E
    return tl.where(c > COLDEST, COLDEST, c).to(beta.dtype)


@triton.jit
def difference(y, s, g, HAS: tl.constexpr):
    """One dimension of y - s g."""
    # Triton would compute -s as 0 - s. A product with -1 is a sign, and two are nothing.
    return tl.fma(s * -1.0, g, y) if SCALE & HAS else y - g


@triton.jit
def differences(y, s, g, D: tl.constexpr, HAS: tl.constexpr):
    """Every dimension of y - s g, as a tuple."""
    d = ()
    for i in tl.static_range(D):
        d = d + (difference(y[i], s[i], g[i], HAS),)
    return d


@triton.jit
def energy_from(start, d, D: tl.constexpr):
    """Start + sum_d d^2. A shift -m in ``start`` costs no instruction."""
    energy = tl.fma(d[0], d[0], start)
    for i in tl.static_range(1, D):
        energy = tl.fma(d[i], d[i], energy)
    return energy


@triton.jit
def split_shift(c, m, HAS: tl.constexpr, NARROW: tl.constexpr = True):
    """The shift m in two parts: one that E starts from, one that is subtracted from the complete E.

    Starting from -m costs no instruction, but leaves the minimum an excess E - m of one rounding of
    its largest term. Where beta times that rounding is not small, and at infinity, the rounding
    would decide the result. There m is subtracted from the complete E, so that the minimum's excess
    is exactly 0. So it is always at D > 4 (not NARROW), and with latent energies, beside which m
    may be the small difference of large terms. Kernels that must agree on p must agree on this
    choice.
    """
    least: tl.constexpr = 0.5 if NARROW and not (LATENT_ENERGY & HAS) else -1.0
    strict = c * tl.abs(m) * rounding(m.dtype) > least
    return tl.where(strict, 0.0, m), tl.where(strict, m, 0.0), strict


@triton.jit
def tile_energy(y_at, scale_at, decoded_at, start, D, HAS: tl.constexpr, NARROW: tl.constexpr):
    """Start + sum_d d^2 of a tile of pairs, see packed.py. Pointers are to dimension 0.

    For D <= 4 the bits are those of :func:`energy_from`. For D > 4 the start is added last: a large
    start would make each of the many sums round more.
    """
    dtype: tl.constexpr = decoded_at.dtype.element_ty
    NEXT: tl.constexpr = step_of(NARROW)
    AT_ONCE: tl.constexpr = 1 if NARROW else STEP
    S0: tl.constexpr = y_at.shape[0] * decoded_at.shape[0]
    S1: tl.constexpr = y_at.shape[1] * decoded_at.shape[1]
    S2: tl.constexpr = y_at.shape[2] * decoded_at.shape[2]
    S3: tl.constexpr = y_at.shape[3] * decoded_at.shape[3]
    energy = tl.zeros((S0, S1, S2, S3), dtype)
    part = energy
    if NARROW:
        part += start
    # Places of dimensions, in memory.
    end = (D if NARROW else whole_steps(D)) * NEXT
    for first in range(0, end, SLAB * NEXT):
        for i in range(first, tl.minimum(first + SLAB * NEXT, end), AT_ONCE * NEXT):
            for j in tl.static_range(AT_ONCE):
                s = 1.0
                if SCALE & HAS:
                    s = tl.load(scale_at + (i + j * NEXT)) * (1.0 if NARROW else -1.0)
                y, g = tl.load(y_at + (i + j * NEXT)), tl.load(decoded_at + (i + j * NEXT))
                # As in `difference`: Triton's interpreter takes long to call a function.
                d = tl.fma(s * -1.0, g, y) if SCALE & HAS else y - g
                part = tl.fma(d, d, part)
        energy += part
        part = tl.zeros((S0, S1, S2, S3), dtype)
    return energy if NARROW else energy + start


@triton.jit
def expm1_ratio(x):
    """psi_1(x) = (e^x - 1)/x, which is 1 at 0, and e^x - 1; both for x <= 0 or small x."""
    near = tl.abs(x) <= 0.5
    u = tl.where(near, x, 0.0)
    TERMS: tl.constexpr = 15 if x.dtype == tl.float64 else 9
    series = u * 0.0 + 1.0
    for i in tl.static_range(TERMS):
        series = tl.fma(series, u * (1.0 / (TERMS + 1 - i)), 1.0)
    far = tl.exp2(x * LOG2_E) - 1.0
    away = tl.where(near, 1.0, x)
    return tl.where(near, series, far / away), tl.where(near, u * series, far)


@triton.jit
def entropy_series(x):
    """psi_2(x) = (e^x (x - 1) + 1)/x^2 for ``|x| <= 1/2``."""
    TERMS: tl.constexpr = 15 if x.dtype == tl.float64 else 9
    series = x * 0.0 + 1.0
    for i in tl.static_range(TERMS):
        # With k = TERMS + 1 - i: the coefficient (k - 1)/k! times k / ((k - 1)(k + 1)) is the next.
        ratio = x * ((TERMS + 1 - i) / ((TERMS - i) * (TERMS + 2.0 - i)))
        series = tl.fma(series, ratio, 1.0)
    return 0.5 * series


@triton.jit
def any_of(flags):
    """Whether any flag of a vector is set, as a scalar."""
    return tl.max(flags.to(tl.int32), axis=0) > 0
