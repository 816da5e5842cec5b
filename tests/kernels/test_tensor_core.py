"""The model of a tensor core against cases worked by hand and against exact rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from support.tensor_core import NEAREST, SM_80, SM_90, Arithmetic, Array, multiply

CUT = pytest.mark.parametrize("arithmetic", [SM_80, SM_90], ids=lambda a: a.name)
TINY = 2.0**-24  # the least half


def dot(arithmetic: Arithmetic, c: float, *products: tuple[float, float]) -> float:
    """c + sum a b, of one element."""
    a, b = (np.array([x], np.float16) for x in zip(*products, strict=True))
    return float(multiply(a, b, np.array([[c]], np.float32), arithmetic)[0, 0])


def exactly(a: Array, b: Array, c: np.float32, arithmetic: Arithmetic) -> Fraction:
    """The same element, by the words of the model's docstring."""
    total = Fraction(float(c))
    for start in range(0, len(a), arithmetic.group):
        group = slice(start, start + arithmetic.group)
        total = add_group(total, a[group].tolist(), b[group].tolist(), arithmetic.extra or 0)
    return total


def add_group(c: Fraction, a: list[float], b: list[float], extra: int) -> Fraction:
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x != 0 and y != 0]
    terms = [Fraction(x) * Fraction(y) for x, y in pairs]
    exponents = [exponent(x, -14) + exponent(y, -14) for x, y in pairs]
    if c != 0:
        terms.append(c)
        exponents.append(exponent(float(c), -126))
    if not terms:
        return c
    total = cut(terms, max(exponents) - 23 - extra)
    return cut([total], exponent(float(total), -126) - 23)


def cut(terms: list[Fraction], exponent: int) -> Fraction:
    """The sum of the terms, of each the whole multiples of 2^exponent."""
    unit = Fraction(2) ** exponent
    return sum((math.trunc(x / unit) * unit for x in terms), Fraction(0))


def exponent(x: float, least: int) -> int:
    return max(math.frexp(x)[1] - 1, least)


def random_halves(generator: np.random.Generator, *shape: int) -> Array:
    """Of every exponent, subnormal ones and zeros too."""
    bits = generator.integers(0, 2**16, shape).astype(np.uint16)
    halves = bits.view(np.float16)
    return np.where(np.isfinite(halves), halves, np.float16(0))


@CUT
@pytest.mark.parametrize("spread", [None, 4], ids=["any exponent", "alike"])
def test_is_what_rational_numbers_give(arithmetic: Arithmetic, spread: int | None) -> None:
    generator = np.random.default_rng(0)
    group = arithmetic.group
    for K in (1, 3, group - 1, group, group + 1, 2 * group + 5):
        if spread is None:
            a, b = random_halves(generator, 6, K), random_halves(generator, 7, K)
        else:
            a, b = (generator.standard_normal((n, K)).astype(np.float16) for n in (6, 7))
        sizes = 2.0 ** generator.integers(-30, 30 if spread is None else spread, (6, 7))
        c = (generator.standard_normal((6, 7)) * sizes).astype(np.float32)
        c[0] = 0
        found = multiply(a, b, c, arithmetic)
        assert found.dtype == np.float32
        for m, n in np.ndindex(6, 7):
            assert Fraction(float(found[m, n])) == exactly(a[m], b[n], c[m, n], arithmetic)


def test_a_product_is_cut_below_the_extra_bits() -> None:
    ones = [(2.0**-12, 2.0**-12)] * 8  # 2^-24 each
    halves = [(2.0**-12, 2.0**-13)] * 8
    assert dot(SM_80, 1, *ones) == dot(SM_90, 1, *ones) == 1 + 2.0**-21
    assert dot(SM_80, 1, *halves) == 1
    assert dot(SM_90, 1, *halves) == 1 + 2.0**-22


@CUT
def test_the_sum_is_cut_toward_zero(arithmetic: Arithmetic) -> None:
    bit = (2.0**-12, 2.0**-12)
    assert dot(arithmetic, 1, bit) == 1
    assert dot(arithmetic, 1, bit, bit, bit) == 1 + 2.0**-23
    assert dot(arithmetic, -1, (-(2.0**-12), 2.0**-12)) == -1
    assert dot(arithmetic, 1, (-(2.0**-12), 2.0**-12)) == 1 - 2.0**-24


@CUT
def test_what_cancels_has_cut_the_others(arithmetic: Arithmetic) -> None:
    small = (2.0**-15, 2.0**-15)
    assert dot(arithmetic, 1, (1, -1), small) == 0
    assert dot(arithmetic, 0, (1, 1), (1, -1), small) == 0
    assert dot(arithmetic, 0, (2.0**-4, 2.0**-4), (2.0**-8, -1), small) == 2.0**-30


def test_an_exponent_is_the_sum_of_the_operands() -> None:
    # Were 2.25 normalised, to 2^1, then 2^-25 would be cut.
    assert dot(SM_90, 0, (1.5, 1.5), (1.5, -1.5), (2.0**-12, 2.0**-13)) == 2.0**-25
    assert dot(SM_80, 0, (1.5, 1.5), (1.5, -1.5), (2.0**-12, 2.0**-12)) == 2.0**-24


def test_groups_follow_each_other() -> None:
    small, nothing = (2.0**-15, 2.0**-15), (0, 0)
    apart = [(1, 1), (1, -1), *[nothing] * 14, small]
    assert dot(SM_90, 0, *apart) == 2.0**-30
    assert dot(SM_80, 0, *apart) == 2.0**-30
    together = [(1, 1), (1, -1), *[nothing] * 8, small]
    assert dot(SM_90, 0, *together) == 0
    assert dot(SM_80, 0, *together) == 2.0**-30


@CUT
def test_subnormal_numbers_are_kept(arithmetic: Arithmetic) -> None:
    assert dot(arithmetic, 0, (TINY, TINY)) == TINY * TINY
    assert dot(arithmetic, 0, (1023 * TINY, 1023 * TINY)) == 1023**2 * TINY * TINY
    # Their exponent is that of the least normal half, however small they are.
    assert dot(arithmetic, 0, (TINY, 1), (TINY, -1), (TINY, 2.0**-14)) == 2.0**-38
    assert dot(arithmetic, 0, (TINY, 1), (TINY, -1), (TINY, TINY)) == 0
    assert dot(arithmetic, 2.0**-149, (0, 1)) == 2.0**-149
    assert dot(arithmetic, 2.0**-149, (TINY, TINY)) == 2.0**-48


@CUT
def test_a_sum_of_zero_is_positive(arithmetic: Arithmetic) -> None:
    for c, product in ((-0.0, (0.0, 1.0)), (-0.0, (-0.0, 1.0)), (-1.0, (1.0, 1.0))):
        assert math.copysign(1, dot(arithmetic, c, product)) == 1


@pytest.mark.parametrize("arithmetic", [SM_80, SM_90, NEAREST], ids=lambda a: a.name)
def test_what_is_not_finite_stays_in_its_element(arithmetic: Arithmetic) -> None:
    a, b = np.ones((3, 20), np.float16), np.ones((4, 20), np.float16)
    c = np.ones((3, 4), np.float32)
    c[1, 2], c[2, 3] = np.nan, np.inf
    wanted = c + 20
    assert np.array_equal(multiply(a, b, c, arithmetic), wanted, equal_nan=True)
    a[0, 18], wanted[0] = np.nan, np.nan
    assert np.array_equal(multiply(a, b, c, arithmetic), wanted, equal_nan=True)
    b[3, 0], wanted[1:, 3] = -np.inf, [-np.inf, np.nan]
    assert np.array_equal(multiply(a, b, c, arithmetic), wanted, equal_nan=True)
    a[1, 0], wanted[1, 3] = 0, np.nan
    wanted[1, :2] -= 1
    assert np.array_equal(multiply(a, b, c, arithmetic), wanted, equal_nan=True)


def test_rounded_to_nearest_in_any_order() -> None:
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal((9, 100)).astype(np.float16) for _ in range(2))
    c = generator.standard_normal((9, 9)).astype(np.float32)
    found = [multiply(a, b, c, NEAREST, np.random.default_rng(seed)) for seed in range(9)]
    terms = a[:, None].astype(np.float64) * b
    allowed = 100 * 2.0**-24 * (np.abs(c) + np.abs(terms).sum(-1))
    assert all((np.abs(x - (c + terms.sum(-1))) <= allowed).all() for x in found)
    assert len({x.tobytes() for x in found}) == len(found)


def test_one_sum_is_rounded_to_nearest() -> None:
    assert dot(NEAREST, 1, (3 * 2.0**-13, 2.0**-12)) == 1 + 2.0**-23
    assert dot(NEAREST, 1, (2.0**-12, 2.0**-12)) == 1
