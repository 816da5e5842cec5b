"""Products of halves on tensor cores against the promise on accuracy: the model, before kernels.

Faults that a kernel could have are planted in the model; each must break the promise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from support import point_clouds, split_products
from support.accuracy import assert_accurate, assert_gradients_accurate
from support.point_clouds import Cloud
from support.product_shares import results
from support.split_products import CARDS, SM_80, SM_90, Block, Card, Halves, Model, Verdict
from support.tensor_core import Array
from torch import Tensor


class Case(NamedTuple):
    """Random queries and latents, betas, and how many of the tiles may be lost."""

    cloud: Cloud
    M: int
    N: int
    D: int
    betas: tuple[float, ...]
    lost: float
    seed: int = 0

    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        """And the gradient that arrives at F."""
        generator = torch.Generator().manual_seed(self.seed)
        y, decoded = self.cloud(self.M, self.N, self.D, generator)
        return y, decoded, torch.randn(self.M, generator=generator)


CASES = {
    "unstructured": Case(point_clouds.normal, 12, 300, 64, (0.1, 1e4), 0),
    "few dimensions": Case(point_clouds.normal, 12, 300, 16, (0.1, 0.3), 0.99),
    "many dimensions": Case(point_clouds.normal, 6, 150, 784, (0.1,), 0),
    "many queries": Case(point_clouds.normal, 150, 192, 32, (0.3,), 0.2),
    "near": Case(point_clouds.near, 12, 300, 16, (0.1, 0.3, 1.0), 0.99),
    "near one of many": Case(point_clouds.near, 12, 576, 128, (0.1,), 0.25, seed=3),
    "far": Case(point_clouds.far, 12, 150, 64, (1.0, 1e3), 0),
    "offset": Case(point_clouds.offset, 12, 150, 64, (0.3, 1e4), 0),
    "blocks apart": Case(point_clouds.islands, 8, 1300, 32, (0.3,), 0.3),
    "two groups": Case(point_clouds.two_groups, 6, 160, 64, (0.3, 1.0), 0.95),
    "manifold, few dimensions": Case(point_clouds.manifold, 12, 576, 16, (0.3,), 0.7),
    "manifold": Case(point_clouds.manifold, 12, 576, 64, (0.1, 100.0), 0.5),
    "manifold, many dimensions": Case(point_clouds.manifold, 6, 150, 784, (1.0,), 0.9),
    "digits, few dimensions": Case(point_clouds.digits, 12, 576, 9, (10.0,), 0.9, seed=3),
    "digits": Case(point_clouds.digits, 12, 300, 64, (0.3, 1e4), 0.7),
    "digits, many dimensions": Case(point_clouds.digits, 6, 150, 784, (0.1,), 0.7),
}


def check(model: Model, beta: float, grad: Tensor) -> float:
    """F and its gradients keep the promise; returns the share of the tiles that are lost."""
    rows, found = results(model, beta, grad)
    arguments = model.arguments(beta)
    assert_accurate(torch.from_numpy(rows.free_energy), **arguments)
    assert_gradients_accurate(found, arguments, grad, of=tuple(found))
    assert not rows.hot.any()  # others' task: it would test nothing
    return float(rows.lost.mean())


def check_case(case: Case, card: Card) -> None:
    y, decoded, grad = case.arguments()
    model = Model(y, decoded, card)
    for beta in case.betas:
        assert check(model, beta, grad) <= case.lost


by_card = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.arithmetic.name)


@by_card
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_promise(case: Case, card: Card) -> None:
    check_case(case, card)


@by_card
def test_at_any_beta_however_cold(card: Card) -> None:
    y, decoded, grad = CASES["far"].arguments()
    model = Model(y, decoded, card)
    for beta in (1e6, 1e12):
        check(model, beta, grad)


def test_the_unit_of_length_does_not_matter() -> None:
    y, decoded, _ = CASES["manifold"].arguments()
    found = Model(y, decoded, SM_90).rows(10.0)
    for unit in (2.0**-30, 2.0**30):
        scaled = Model(unit * y, unit * decoded, SM_90).rows(10.0 / unit**2)
        assert np.array_equal(scaled.lost, found.lost)
        assert np.array_equal(scaled.free_energy, np.float32(unit**2) * found.free_energy)
        assert np.array_equal(scaled.grad_y, np.float32(unit) * found.grad_y)


@by_card
def test_equal_latents(card: Card) -> None:
    y = torch.tensor([[0.0] * 16, [3.0] * 16, [1.0] * 16])
    found = Model(y, torch.ones(130, 16), card).rows(1.0)
    np.testing.assert_allclose(found.free_energy, [16, 64, 0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.grad_y, [[-2] * 16, [4] * 16, [0] * 16], rtol=1e-6)


def test_halves_keep_22_bits() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((40, 50)).astype(np.float32)
    x *= np.float32(2) ** generator.integers(-20, 20, (40, 1))
    scale = split_products.scale_of(x, 1)
    top = np.abs(x * scale).max(1)
    assert ((top >= 2.0**14) & (top < 2.0**15)).all()
    error = np.abs(split_products.split(x * scale).value - x * scale)
    assert (error <= np.maximum(2.0**-22 * np.abs(x * scale), 2.0**-25)).all()


def test_a_centre_for_each_block_loses_fewer_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    y, decoded, _ = CASES["blocks apart"].arguments()
    with_centres = Model(y, decoded, SM_90).rows(1.0)
    centre = split_products.to_float(decoded.mean(0))
    monkeypatch.setattr(split_products, "centre_of", lambda g: centre)
    with_one = Model(y, decoded, SM_90).rows(1.0)
    assert with_one.lost.mean() > 2 * with_centres.lost.mean()


def low_halves_are_zero(plant: pytest.MonkeyPatch) -> None:
    split = split_products.split
    plant.setattr(split_products, "split", lambda x: Halves(split(x).high, 0 * split(x).low))


def low_halves_are_subtracted(plant: pytest.MonkeyPatch) -> None:
    split = split_products.split
    plant.setattr(split_products, "split", lambda x: Halves(split(x).high, -split(x).low))


def small_products_last_into_one_accumulator(plant: pytest.MonkeyPatch) -> None:
    plant.setattr(split_products, "SMALL_FIRST", split_products.SMALL_FIRST[::-1])
    plant.setattr(split_products, "slabs", lambda size, most: [(0, size)])


def no_tile_is_lost(plant: pytest.MonkeyPatch) -> None:
    def judge(block: Block, tile: slice, shift: Array, rate: float) -> Verdict:
        every = np.ones(len(shift), bool)
        return Verdict(~every, every)

    plant.setattr(split_products, "judge", judge)


def lost_tiles_are_added_twice(plant: pytest.MonkeyPatch) -> None:
    judge = split_products.judge

    def twice(*arguments: Any) -> Verdict:
        lost, added = judge(*arguments)
        return Verdict(lost, lost | added)

    plant.setattr(split_products, "judge", twice)


def one_centre_and_no_verdict(plant: pytest.MonkeyPatch) -> None:
    no_tile_is_lost(plant)
    plant.setattr(split_products, "centre_of", lambda g: np.full(g.shape[1], 15, np.float32))


def any_addend_of_an_exponent(plant: pytest.MonkeyPatch) -> None:
    plant.setattr(split_products, "COARSEST", np.inf)


def small_p_are_subnormal(plant: pytest.MonkeyPatch) -> None:
    plant.setattr(split_products, "MASS_BITS", 0)


LONG_MOMENTS = SM_80._replace(terms=split_products.TILE)
MANY = Case(point_clouds.two_groups, 6, 128, 784, (1.0,), 0.8)
APART = CASES["blocks apart"]
COLD = CASES["far"]._replace(betas=(1e6,), lost=1)

FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Case, Card]] = {
    f"{fault.__name__}, {case.cloud.__name__}".replace("_", " "): (fault, case, card)
    for fault, case, card in (
        (low_halves_are_zero, CASES["unstructured"], SM_90),
        (low_halves_are_subtracted, CASES["unstructured"], SM_90),
        (small_products_last_into_one_accumulator, MANY, SM_80),
        (no_tile_is_lost, CASES["near"], SM_90),
        (no_tile_is_lost, CASES["manifold"], SM_90),
        (lost_tiles_are_added_twice, CASES["near"], SM_90),
        (one_centre_and_no_verdict, APART, SM_90),
        (any_addend_of_an_exponent, COLD, SM_90),
        (small_p_are_subnormal, CASES["near one of many"], SM_90),
    )
}


@pytest.mark.parametrize(("fault", "case", "card"), FAULTS.values(), ids=FAULTS)
def test_a_fault_breaks_the_promise(
    fault: Callable[[pytest.MonkeyPatch], None],
    case: Case,
    card: Card,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_case(case, card)
    fault(monkeypatch)
    with pytest.raises(AssertionError, match="times what is allowed"), np.errstate(all="ignore"):
        check_case(case, card)


def test_a_long_accumulator_breaks_the_promise_on_moments() -> None:
    case = CASES["manifold"]
    check_case(case, SM_80)
    with pytest.raises(AssertionError, match=r"gradient of y .* times what is allowed"):
        check_case(case, LONG_MOMENTS)


def test_blocks_apart_need_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is the one centre that breaks the promise there."""
    no_tile_is_lost(monkeypatch)
    check_case(APART._replace(lost=0), SM_90)
