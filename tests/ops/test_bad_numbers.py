"""What numbers give that are none, or too large or too small: the rows of docs/bad_input.md."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from support.accuracy import assert_accurate
from support.oracle import exact
from support.page import rows
from torch import Tensor

from lebm_kernels import (
    free_energy,
    posterior,
    sample_latent,
    softargmax,
    softargmin,
    softmax,
    softmin,
)
from lebm_kernels.ops.sampling import NO_POSTERIOR

Arguments = dict[str, Any]
Outcome = Callable[[str, Arguments], None]

# Where the bad number stands: a query, a latent.
BAD, LATENT = 4, 6
HUGE = 1e25  # its square is beyond float32
SMALL = 1e-40  # below float32's normal numbers
BETAS = (0.0, 1.0, math.inf)


DIMENSIONS = (3, 64)  # of few, which are sums of differences, and of many, which may be products


def good(D: int) -> Arguments:
    return {"y": torch.randn(7, D), "decoded": torch.randn(11, D)}


def of_query(arguments: Arguments, keep: Tensor) -> Arguments:
    """The same of those queries alone."""
    per_query = {"y": 2, "scale": 2, "beta": 1}

    def kept(name: str, x: Any) -> Any:
        own = isinstance(x, Tensor) and x.dim() == per_query.get(name)
        return x[keep] if own else x

    return {name: kept(name, x) for name, x in arguments.items()}


def of_draws(arguments: Arguments) -> Arguments:
    """The arguments that draws take too: nothing is pruned."""
    return {name: x for name, x in arguments.items() if name != "tol"}


def check_draws(arguments: Arguments) -> None:
    with pytest.raises(ValueError, match=r"^y must have") as caught:
        sample_latent(**of_draws(arguments), num_samples=2)
    assert str(caught.value) == NO_POSTERIOR


def in_row(value_of: Callable[[str], float]) -> Outcome:
    """F is that of the backend in the bad query's row, and accurate in the others."""

    def check(backend: str, arguments: Arguments) -> None:
        others = torch.arange(7) != BAD
        value = free_energy(**arguments, backend=backend)
        found = posterior(**arguments, backend=backend)
        wanted = torch.tensor(value_of(backend))
        for bad in (value[BAD], found.free_energy[BAD]):
            torch.testing.assert_close(bad, wanted, equal_nan=True)
        assert not found.energy[BAD].isfinite()
        assert ((found.index >= 0) & (found.index < 11)).all()
        rest = of_query(arguments, others)
        assert_accurate(value[others], **rest)
        truth = exact(**rest)
        assert found.index[others].tolist() == truth.index.tolist()
        close(found.mean[others], truth.mean)
        check_draws(arguments)

    return check


def close(found: Tensor, wanted: Any) -> None:
    torch.testing.assert_close(found, torch.tensor(wanted.astype("float32")), rtol=1e-4, atol=1e-5)


def everywhere(backend: str, arguments: Arguments) -> None:
    assert free_energy(**arguments, backend=backend).isnan().all()
    found = posterior(**arguments, backend=backend)
    assert found.free_energy.isnan().all()
    assert found.energy.isnan().all()
    assert ((found.index >= 0) & (found.index < 11)).all()
    check_draws(arguments)


def out_of_reach(backend: str, arguments: Arguments) -> None:
    """An infinite energy, which the oracle gets as a very large one."""
    value = free_energy(**arguments, backend=backend)
    found = posterior(**arguments, backend=backend)
    finite = {name: x for name, x in arguments.items() if name != "beta"}
    finite = {name: x.double().nan_to_num(posinf=1e60, neginf=-1e60) for name, x in finite.items()}
    truth = exact(**finite, beta=arguments["beta"])
    assert found.index.tolist() == truth.index.tolist()
    draws = sample_latent(**of_draws(arguments), num_samples=50)
    assert (draws != LATENT).all()
    if arguments["beta"] == 0:
        for x in (value, found.free_energy):
            assert (x == math.inf).all()
        return
    assert_accurate(value, **finite, beta=arguments["beta"])
    assert_accurate(found.free_energy, **finite, beta=arguments["beta"])
    close(found.energy, truth.energy)
    if arguments["decoded"].isfinite().all():
        close(found.mean, truth.mean)


def all_infinite(backend: str, arguments: Arguments) -> None:
    assert (free_energy(**arguments, backend=backend) == math.inf).all()
    assert (posterior(**arguments, backend=backend).free_energy == math.inf).all()
    check_draws(arguments)


def ordinary(backend: str, arguments: Arguments) -> None:
    """F keeps the promise on its accuracy; the posterior is the exact one."""
    value = free_energy(**arguments, backend=backend)
    found = posterior(**arguments, backend=backend)
    draws = sample_latent(**of_draws(arguments), num_samples=2)
    assert draws.shape == (7, 2)
    assert ((draws >= 0) & (draws < 11)).all()
    arguments = {name: x for name, x in arguments.items() if name != "tol"}
    truth = exact(**arguments)
    assert_accurate(value, **arguments)
    assert_accurate(found.free_energy, **arguments)
    assert found.index.tolist() == truth.index.tolist()
    close(found.mean, truth.mean)
    close(found.energy, truth.energy)


def empty(*shape: int) -> Outcome:
    def check(backend: str, arguments: Arguments) -> None:
        assert free_energy(**arguments, backend=backend).shape == shape
        found = posterior(**arguments, backend=backend)
        D = arguments["decoded"].shape[-1]
        assert [x.shape for x in found] == [shape, (*shape, D), shape, shape, shape]
        assert sample_latent(**of_draws(arguments), num_samples=2).shape == (*shape, 2)

    return check


def nan(backend: str) -> float:
    return math.nan


def infinite(backend: str) -> float:
    return math.inf


OUTCOMES: dict[str, Outcome] = {
    "NaN in that row": in_row(nan),
    "inf in that row": in_row(infinite),
    "NaN in every row": everywhere,
    "inf in every row": all_infinite,
    "out of reach": out_of_reach,
    "ordinary": ordinary,
    "shape [0]": empty(0),
    "shape [0, 7]": empty(0, 7),
}


class Numbers(NamedTuple):
    """A row: the argument, what is passed (in words, and beside good arguments), what it gives."""

    argument: str
    given: str
    arguments: Callable[[int], Arguments]
    outcome: str

    @property
    def row(self) -> tuple[str, str, str]:
        return f"`{self.argument}`", self.given, self.outcome


def spoilt(argument: str, given: str, number: float, outcome: str) -> Numbers:
    """The row of one number in one place, of the bad query or of the bad latent."""

    def arguments(D: int) -> Arguments:
        more = {
            "scale": torch.rand(7, D) + 0.5,
            "log_weight": torch.randn(11),
            "latent_energy": torch.rand(11),
            "beta": torch.rand(7) + 0.5,
        }
        x = good(D)
        if argument in more:
            x[argument] = more[argument]
        place = x[argument][BAD if argument in ("y", "scale", "beta") else LATENT]
        (place if place.dim() == 0 else place[1]).fill_(number)
        return x

    return Numbers(argument, given, arguments, outcome)


def whole(argument: str, given: str, value: Any, outcome: str) -> Numbers:
    """The row of a whole argument, or of what makes it for D dimensions."""

    def arguments(D: int) -> Arguments:
        return {**good(D), argument: value(D) if callable(value) else value}

    return Numbers(argument, given, arguments, outcome)


def one_bad_scale(D: int, number: float) -> Tensor:
    scale = torch.ones(D)
    scale[1] = number
    return scale


NUMBERS: list[Numbers] = [
    spoilt("y", "NaN", math.nan, "NaN in that row"),
    spoilt("y", "inf", math.inf, "inf in that row"),
    spoilt("y", "-inf", -math.inf, "inf in that row"),
    spoilt("y", "1e25", HUGE, "inf in that row"),
    spoilt("y", "1e-40", SMALL, "ordinary"),
    whole("y", "empty, [0, 3]", lambda D: torch.zeros(0, D), "shape [0]"),
    whole("y", "empty, [0, 7, 3]", lambda D: torch.zeros(0, 7, D), "shape [0, 7]"),
    spoilt("decoded", "NaN", math.nan, "NaN in every row"),
    spoilt("decoded", "inf", math.inf, "out of reach"),
    spoilt("decoded", "-inf", -math.inf, "out of reach"),
    spoilt("decoded", "1e25", HUGE, "out of reach"),
    spoilt("decoded", "3e38", 3e38, "out of reach"),
    spoilt("decoded", "1e-40", SMALL, "ordinary"),
    whole(
        "decoded", "1e25 in every latent", lambda D: torch.full((11, D), HUGE), "inf in every row"
    ),
    spoilt("beta", "NaN in a tensor", math.nan, "NaN in that row"),
    spoilt("beta", "-1 in a tensor", -1.0, "NaN in that row"),
    spoilt("beta", "-inf in a tensor", -math.inf, "NaN in that row"),
    spoilt("beta", "inf in a tensor", math.inf, "ordinary"),
    spoilt("beta", "1e25 in a tensor", HUGE, "ordinary"),
    spoilt("beta", "1e-40 in a tensor", SMALL, "ordinary"),
    whole("beta", "1e-320, which is 0 in float32", 1e-320, "ordinary"),
    whole("beta", "1e300, which is inf in float32", 1e300, "ordinary"),
    whole("beta", "empty, [0, 1]", torch.zeros(0, 1), "shape [0, 7]"),
    spoilt("scale", "NaN", math.nan, "NaN in that row"),
    spoilt("scale", "inf", math.inf, "inf in that row"),
    spoilt("scale", "-inf", -math.inf, "inf in that row"),
    spoilt("scale", "1e25", HUGE, "inf in that row"),
    spoilt("scale", "1e-40", SMALL, "ordinary"),
    whole("scale", "NaN for all queries", lambda D: one_bad_scale(D, math.nan), "NaN in every row"),
    whole("scale", "1e25 for all queries", lambda D: one_bad_scale(D, HUGE), "inf in every row"),
    spoilt("log_weight", "NaN", math.nan, "NaN in every row"),
    spoilt("log_weight", "inf", math.inf, "NaN in every row"),
    spoilt("log_weight", "-inf", -math.inf, "ordinary"),
    whole("log_weight", "-inf for all", torch.full((11,), -math.inf), "NaN in every row"),
    spoilt("log_weight", "1e25", HUGE, "ordinary"),
    spoilt("log_weight", "1e-40", SMALL, "ordinary"),
    spoilt("latent_energy", "NaN", math.nan, "NaN in every row"),
    spoilt("latent_energy", "inf", math.inf, "out of reach"),
    spoilt("latent_energy", "-inf", -math.inf, "NaN in every row"),
    whole("latent_energy", "inf for all", torch.full((11,), math.inf), "inf in every row"),
    spoilt("latent_energy", "1e25", HUGE, "ordinary"),
    spoilt("latent_energy", "1e-40", SMALL, "ordinary"),
    whole("tol", "0", 0, "ordinary"),
    whole("tol", "1e-320", 1e-320, "ordinary"),
]


@pytest.mark.parametrize("D", DIMENSIONS)
@pytest.mark.parametrize("case", NUMBERS, ids=lambda case: f"{case.argument}: {case.given}")
def test_gives_what_the_page_says(any_backend: str, case: Numbers, D: int) -> None:
    arguments = case.arguments(D)
    for beta in (None,) if "beta" in arguments else BETAS:
        given = arguments if beta is None else {**arguments, "beta": beta}
        OUTCOMES[case.outcome](any_backend, given)


def test_the_page_has_these_rows() -> None:
    assert rows("Numbers") == [case.row for case in NUMBERS]
    assert {cells[0] for cells in rows("Outcomes")} == {*OUTCOMES}


class Energies(NamedTuple):
    """One row of the page: energies and log-weights, softmin at three betas, and softargmin."""

    energy: str
    log_weight: str
    hot: str
    warm: str
    cold: str
    shares: str


def row(cells: str) -> Energies:
    return Energies(*(cell.strip() for cell in cells.split("|")))


ENERGIES = [
    row("[1, inf] | none | inf | 1 + log(2) / beta | 1 | [1, 0]"),
    row("[3, inf, 3] | none | inf | 3 + log(3 / 2) / beta | 3 | [1 / 2, 0, 1 / 2]"),
    row("[inf, inf] | none | inf | inf | inf | [1 / 2, 1 / 2]"),
    row("[1, -inf] | none | -inf | -inf | -inf | [0, 1]"),
    row("[-inf, 1, -inf] | none | -inf | -inf | -inf | [1 / 2, 0, 1 / 2]"),
    row("[-inf, inf] | none | NaN | -inf | -inf | [1, 0]"),
    row("[1, NaN] | none | NaN | NaN | NaN | [NaN, NaN]"),
    row("[inf, NaN] | none | NaN | NaN | NaN | [NaN, NaN]"),
    row("[-inf, NaN] | none | NaN | NaN | NaN | [NaN, NaN]"),
    row("[1, inf] | [0, log(3)] | inf | 1 + log(4) / beta | 1 | [1, 0]"),
    row("[inf, inf] | [0, log(3)] | inf | inf | inf | [1 / 4, 3 / 4]"),
    row("[-inf, 1, -inf] | [0, 5, log(3)] | -inf | -inf | -inf | [1 / 4, 0, 3 / 4]"),
    row("[1, inf] | [0, -inf] | 1 | 1 | 1 | [1, 0]"),
    row("[1, -inf] | [0, -inf] | 1 | 1 | 1 | [1, 0]"),
    row("[1, NaN] | [0, -inf] | 1 | 1 | 1 | [1, 0]"),
    row("[inf, 1] | [0, -inf] | inf | inf | inf | [1, 0]"),
    row("[-inf, inf] | [0, -inf] | -inf | -inf | -inf | [1, 0]"),
    row("[1, 2] | [-inf, -inf] | NaN | NaN | NaN | [NaN, NaN]"),
    row("[1, 2] | [0, inf] | NaN | NaN | NaN | [NaN, NaN]"),
    row("[1, 2] | [0, NaN] | NaN | NaN | NaN | [NaN, NaN]"),
]


def numbers(text: str, beta: float = 0.0) -> Tensor:
    names = {"log": math.log, "inf": math.inf, "NaN": math.nan, "beta": beta}
    return torch.tensor(eval(text, names), dtype=torch.float32)


def given(case: Energies) -> tuple[Tensor, Tensor | None]:
    """The energies and log-weights of a row."""
    return numbers(case.energy), None if case.log_weight == "none" else numbers(case.log_weight)


def eager(*arguments: Any) -> tuple[Tensor, ...]:
    """softmin, its gradients in energy, beta and log_weight, and softargmin."""
    return soft(softmin, softargmin, *arguments)


def mirrored(energy: Tensor, *others: Any) -> tuple[Tensor, ...]:
    value, slope, *slopes, shares = soft(softmax, softargmax, -energy, *others)
    return -value, slope, *slopes, shares


def mapped(*arguments: Any) -> tuple[Tensor, ...]:
    """In torch.func, where other formulas serve."""

    def one_of_one(function: Any) -> Any:
        def of(energy: Tensor, beta: Tensor, dim: int, *weights: Tensor) -> Tensor:
            found: Tensor = torch.vmap(lambda x: function(x, beta, dim, *weights))(energy[None])
            return found[0]

        return of

    return soft(one_of_one(softmin), one_of_one(softargmin), *arguments)


def soft(
    value_of: Any, shares_of: Any, energy: Tensor, beta: float, log_weight: Tensor | None
) -> tuple[Tensor, ...]:
    leaves = [energy.clone(), torch.tensor(beta)]
    leaves += [] if log_weight is None else [log_weight.clone()]
    energy, beta, *weights = (x.requires_grad_() for x in leaves)
    value = value_of(energy, beta, 0, *weights)
    shares = shares_of(energy, beta, 0, *weights)
    # Slopes of the shares, too.
    slopes = torch.autograd.grad(value + shares.sum(), leaves)
    return value.detach(), *slopes, shares.detach()


@pytest.mark.parametrize("mode", [eager, mirrored, mapped])
@pytest.mark.parametrize("case", ENERGIES, ids=lambda case: f"{case.energy} {case.log_weight}")
def test_soft_functions_of_infinite_energies(
    case: Energies, mode: Callable[..., tuple[Tensor, ...]]
) -> None:
    energy, log_weight = given(case)
    wanted_shares = numbers(case.shares)
    for beta, cell in ((0.0, case.hot), (2.0, case.warm), (math.inf, case.cold)):
        value, slope, *slopes, shares = mode(energy, beta, log_weight)
        wanted = numbers(cell, beta)
        torch.testing.assert_close(value, wanted, equal_nan=True)
        torch.testing.assert_close(shares, wanted_shares, equal_nan=True)
        if not wanted.isnan():
            torch.testing.assert_close(slope, wanted_shares)
        if wanted.isfinite():
            assert all(x.isfinite().all() for x in slopes)


@pytest.mark.parametrize("mode", ["plain", "create_graph", "torch.func"])
@pytest.mark.parametrize("case", ENERGIES, ids=lambda case: f"{case.energy} {case.log_weight}")
def test_slopes_of_softmin_at_infinite_energies(case: Energies, mode: str) -> None:
    """p = dF/dE, -KL(p | w) / beta^2 = dF/dbeta and (w - p) / beta = dF/dl, or their limits.

    In each row p is the same at every beta.
    """
    energy, log_weight = given(case)
    p = numbers(case.shares).double()
    w = torch.softmax((torch.zeros_like(energy) if log_weight is None else log_weight).double(), 0)
    divergence = torch.xlogy(p, p).sub(torch.xlogy(p, w)).nan_to_num(nan=0.0).sum()
    difference = w - p
    divergence[divergence.abs() < 1e-7] = 0.0
    difference[difference.abs() < 1e-7] = 0.0
    leaves = [energy, torch.tensor(0.0), *([] if log_weight is None else [log_weight])]
    for beta in (0.0, 2.0, math.inf):
        leaves[1] = torch.tensor(beta)
        if mode == "torch.func":
            found = torch.func.grad(
                lambda energy, beta, *weights: softmin(energy, beta, 0, *weights),
                argnums=tuple(range(len(leaves))),
            )(*leaves)
        else:
            inputs = [x.clone().requires_grad_() for x in leaves]
            value = softmin(inputs[0], inputs[1], 0, *inputs[2:])
            found = torch.autograd.grad(value, inputs, create_graph=mode == "create_graph")
        by_beta = -divergence / beta**2 if beta else -divergence * math.inf
        by_beta = torch.where(divergence == 0, 0.0, by_beta)
        by_weight = difference / beta if beta else difference * math.inf
        by_weight = torch.where(difference == 0, 0.0, by_weight)
        if p.isnan().any():
            by_beta, by_weight = torch.tensor(math.nan).double(), torch.full_like(p, math.nan)
        for slope, wanted in zip(found, (p, by_beta, by_weight), strict=False):
            torch.testing.assert_close(
                slope.detach().double(), wanted, equal_nan=True, rtol=1e-6, atol=1e-7
            )


def test_the_page_has_these_energies() -> None:
    assert rows("Infinite energies") == [tuple(case) for case in ENERGIES]
