"""What a tensor core adds up when it multiplies halves into a float32 accumulator.

    d[m, n] = c[m, n] + sum_k a[m, k] b[n, k]        a, b: float16; c, d: float32

A tensor core takes the products in groups, in the order of k. The products of a group are exact.
They and the accumulator are aligned to the largest exponent among them and cut toward zero some
bits below a float32's last; their sum is exact, and is cut toward zero to float32. The exponent of
a product is the sum of its operands' exponents: 1.5 * 1.5 counts as 2^0. Subnormal halves are kept.

The model and its parameters are those of F. A. Khattak and M. Mikaitis, "Accurate Models of NVIDIA
Tensor Cores" (arXiv 2512.07004). They compared theirs with cards bit by bit. This one gives the
bits that they recorded on an A100, an A2, an Ada, an H100, an H200 and a B200, 5000 sums of halves
on each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_FLOAT_BITS = 23  # of a float32, below its first
_LEAST_EXPONENT = {np.dtype(np.float16): -14, np.dtype(np.float32): -126}  # of a subnormal number
_CUT_BITS = np.int64(2**29 - 1)  # what a float64 has beyond a float32
_LEAST_NORMAL, _LEAST = 2.0**-126, 2.0**-149  # of float32


class Arithmetic(NamedTuple):
    """How many products are added at a time, and the bits that they have beyond a float32's.

    Without ``extra``, products are added one by one, in random order, and rounded to nearest. No
    tensor core does that: what holds there and in the others does not hang on the order.
    """

    name: str
    group: int
    extra: int | None


SM_80 = Arithmetic("sm_80", 8, 1)  # and sm_86, sm_89
SM_90 = Arithmetic("sm_90", 16, 2)  # and sm_100
NEAREST = Arithmetic("nearest", 1, None)


def multiply(a: Array, b: Array, c: Array, arithmetic: Arithmetic, order: Any = None) -> Array:
    """c + a b^T: ``[M, N]`` of ``[M, K]``, ``[N, K]`` and ``[M, N]``.

    Args:
        a: float16.
        b: float16.
        c: float32.
        arithmetic: how the sums are made.
        order: a generator of random numbers, for the order of a sum that is rounded to nearest.
    """
    assert a.dtype == b.dtype == np.float16
    assert c.dtype == np.float32
    with np.errstate(all="ignore"):
        if arithmetic.extra is None:
            sums = _add_one_by_one(a, b, c, order or np.random.default_rng(0))
        else:
            sums = _add_groups(a, b, c, arithmetic.group, arithmetic.extra)
        return _with_what_is_not_finite(a, b, c, sums)


def cut(x: Array) -> Array:
    """float64 to float32, toward zero."""
    kept = (x.view(np.int64) & ~_CUT_BITS).view(np.float64)
    small = np.abs(x) < _LEAST_NORMAL
    if small.any():
        kept = np.where(small, np.trunc(x / _LEAST) * _LEAST, kept)
    result: Array = kept.astype(np.float32)
    return result


def _add_groups(a: Array, b: Array, c: Array, group: int, extra: int) -> Array:
    left, right = _columns(a), _columns(b)
    left_power, right_power = _columns(_power(a)), _columns(_power(b))
    sums = c
    for start in range(0, a.shape[1], group):
        places = range(start, min(start + group, a.shape[1]))
        top = _power(sums)
        for k in places:
            np.maximum(top, left_power[k][:, None] * right_power[k], out=top)
        unit = np.where(top > 0, top, 1) * 2.0 ** -(_FLOAT_BITS + extra)
        in_units = 1 / unit
        count = np.trunc(sums * in_units)
        for k in places:
            product = left[k][:, None] * right[k]
            product *= in_units
            count += np.trunc(product, out=product)
        sums = cut((count + 0.0) * unit)  # + 0.0: a sum of zero is +0
    return sums


def _add_one_by_one(a: Array, b: Array, c: Array, order: Any) -> Array:
    left, right = _columns(a), _columns(b)
    sums = c
    for k in order.permutation(a.shape[1]):
        sums = (sums + left[k][:, None] * right[k]).astype(np.float32)
    return sums


def _columns(x: Array) -> Array:
    return np.ascontiguousarray(x.T, dtype=np.float64)


def _power(x: Array) -> Array:
    """The power of two of the exponent of each number; 0 of 0."""
    exponent = np.maximum(np.frexp(x)[1] - 1, _LEAST_EXPONENT[x.dtype])
    return np.where(x == 0, 0.0, np.ldexp(1.0, exponent))


def _with_what_is_not_finite(a: Array, b: Array, c: Array, sums: Array) -> Array:
    """A NaN or an infinity among the terms of an element decides that element alone."""
    if all(np.isfinite(x).all() for x in (a, b, c)):
        return sums
    left, right = a.astype(np.float64), b.astype(np.float64)
    plain = c + (left[:, None] * right).sum(-1)
    return np.where(np.isfinite(plain), sums, plain.astype(np.float32))
