"""A bad number, and an energy too large for the dtype, stay in their rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from support.accuracy import assert_accurate, assert_gradients_accurate, gradients
from support.oracle import exact, to_array
from support.problems import problem
from torch import Tensor

from lebm_kernels import free_energy, posterior
from lebm_kernels.diagnostics import promise

Spoiler = Callable[[dict[str, Any]], Tensor]

BAD = 5  # the query that goes wrong


def warm(dtype: torch.dtype) -> dict[str, Any]:
    names = ("y", "decoded", "beta", "scale")
    return problem(D=3, beta=torch.rand(17) + 0.5, dtype=dtype, names=names)


SPOILERS: dict[str, Spoiler] = {
    "y": lambda x: x["y"][BAD, 1].fill_(math.nan),
    "scale": lambda x: x["scale"][BAD, 2].fill_(math.nan),
    "beta": lambda x: x["beta"][BAD].fill_(math.nan),
    "negative beta": lambda x: x["beta"][BAD].fill_(-1.0),
}


@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS.keys())
@pytest.mark.parametrize("beta", [None, 0.0, 1e-7, 1e4, math.inf])
def test_stays_in_its_row(
    any_backend: str, dtype: torch.dtype, spoil: Spoiler, beta: float | None
) -> None:
    good = warm(dtype)
    if beta is not None:
        good["beta"].fill_(beta)
    spoilt = {name: x.clone() for name, x in good.items()}
    spoil(spoilt)
    others = torch.arange(17) != BAD
    function = partial(free_energy, backend=any_backend)
    value = function(**spoilt)
    assert value[BAD].isnan()
    torch.testing.assert_close(value[others], function(**good)[others])

    grad = torch.ones(17, dtype=dtype)
    found, wanted = gradients(function, spoilt, grad), gradients(function, good, grad)
    for name in ("y", "beta", "scale"):
        torch.testing.assert_close(found[name][others], wanted[name][others])
    assert found["y"][BAD].isnan().any()

    one, other = (posterior(**x, backend=any_backend) for x in (spoilt, good))
    assert one.free_energy[BAD].isnan()
    assert 0 <= one.index[BAD] < 123
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a[others], b[others])


@pytest.mark.parametrize("name", ["decoded", "latent_energy", "log_weight"])
def test_in_a_latent_shows_everywhere(any_backend: str, name: str) -> None:
    # Every query sums over every latent: none may look healthy.
    arguments = warm(torch.float32)
    arguments["latent_energy"] = torch.zeros(123)
    arguments["log_weight"] = torch.zeros(123)
    for place in (0, 60, 122):
        spoilt = {key: x.clone() for key, x in arguments.items()}
        spoilt[name][place] = math.nan
        for beta in (0.0, 1.0, math.inf):
            spoilt["beta"] = torch.tensor(beta)
            assert free_energy(**spoilt, backend=any_backend).isnan().all()


def test_no_latent_left_is_no_free_energy(any_backend: str) -> None:
    arguments = warm(torch.float32)
    arguments["log_weight"] = torch.full((123,), -math.inf)
    assert free_energy(**arguments, backend=any_backend).isnan().all()


# What squared is beyond the dtype: every energy of its query is infinite, as where it is.
BEYOND = {torch.float32: 1e20, torch.float64: 1e160}
SPOILT_ROWS = (2, 7, 11, 13, 16)


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("D", [1, 2, 6])
@pytest.mark.parametrize("N", [5, 1500])
def test_energies_beyond_the_dtype(
    backend: str, dtype: torch.dtype, N: int, D: int, scaled: bool
) -> None:
    good: dict[str, Any] = {
        "y": torch.randn(17, D, dtype=dtype),
        "decoded": torch.randn(N, D, dtype=dtype),
    }
    if scaled:
        good["scale"] = torch.rand(17, D, dtype=dtype) + 0.5
    if N > 1000:
        # Whole blocks at the start, of which no query sees anything.
        good["decoded"][:600] = BEYOND[dtype] ** 1.5
    spoilt = {name: x.clone() for name, x in good.items()}
    spoilt["y"][2, 0] = math.inf
    spoilt["y"][7, D - 1] = -math.inf
    spoilt["scale" if scaled else "y"][11, 0] = math.inf
    spoilt["y"][13] = BEYOND[dtype]
    spoilt["y"][16, D - 1] = -BEYOND[dtype]
    others = torch.tensor([row not in SPOILT_ROWS for row in range(17)])
    mixed = torch.tensor([1e-7, 0.1, 3.0, 1e4, math.inf], dtype=dtype).repeat(4)[:17]
    for beta in (*(torch.full_like(mixed, b) for b in (1e-7, 1.0, math.inf)), mixed):
        arguments, few = {**spoilt, "beta": beta}, {**good, "beta": beta}
        for name in arguments.keys() - {"decoded"}:
            few[name] = few[name][others]
        value = free_energy(**arguments, backend=backend)
        assert_accurate(value[others], **few)
        found = posterior(**arguments, backend=backend)
        for a, b in zip(found, posterior(**few, backend=backend), strict=True):
            torch.testing.assert_close(a[others], b)
        assert torch.equal(found.free_energy == math.inf, ~others)
        assert ((found.index >= 0) & (found.index < N)).all()
        assert (value[~others] == math.inf).all()
        slopes = gradients(partial(free_energy, backend=backend), arguments, torch.ones_like(beta))
        wanted_slopes = gradients(
            partial(free_energy, backend=backend), few, torch.ones_like(few["beta"])
        )
        for name in few.keys() - {"decoded"}:
            torch.testing.assert_close(slopes[name][others], wanted_slopes[name])


@pytest.mark.parametrize("beta", [0.0, 1e-7, 1.0, 1e4, math.inf])
@pytest.mark.parametrize("share", [1.0, 0.75], ids=["each square", "their sum"])
def test_a_grid_out_of_reach_has_an_infinite_free_energy(
    backend: str, dtype: torch.dtype, beta: float, share: float
) -> None:
    far = math.sqrt(torch.finfo(dtype).max) * 1.05 * share
    decoded = torch.full((5, 2), far, dtype=dtype)
    value = free_energy(torch.randn(3, 2, dtype=dtype), decoded, beta, backend=backend)
    assert (value == math.inf).all()
    huge = torch.full((3, 2), BEYOND[dtype], dtype=dtype)
    assert (free_energy(huge, decoded / far, beta, backend=backend) == math.inf).all()


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("D", [2, 8, 64])
@pytest.mark.parametrize("alike", [True, False], ids=["alike", "unlike"])
@pytest.mark.parametrize("size", [0.5, 0.65, 0.999], ids=["near", "beyond", "most"])
def test_latents_out_of_reach_have_no_share(
    installed_backend: str, dtype: torch.dtype, D: int, weighted: bool, alike: bool, size: float
) -> None:
    """Whole blocks of them, and some beside latents that are in reach."""
    near, far = 600, 700
    decoded = torch.randn(near + far, D, dtype=dtype)
    is_far = torch.zeros(near + far, dtype=torch.bool)
    is_far[near:] = True
    is_far[near - 3 :: 50] = ~is_far[near - 3 :: 50]
    largest = torch.finfo(dtype).max ** size
    spread = 0.0 if alike else 0.1
    decoded[is_far] = largest * (1 - spread * torch.rand(int(is_far.sum()), D, dtype=dtype))
    arguments = {
        "y": torch.randn(5, D, dtype=dtype),
        "decoded": decoded,
        "beta": torch.full((5,), 0.7, dtype=dtype),
        "scale": torch.rand(D, dtype=dtype) / 2 + 0.5,
    }
    if weighted:
        arguments["log_weight"] = torch.randn(near + far, dtype=dtype)
    rest = {**arguments, "decoded": decoded[~is_far]}
    if weighted:
        rest["log_weight"] = arguments["log_weight"][~is_far]
    grad = torch.randn(5, dtype=dtype)
    of = ("y", "scale")
    fixed = {name: x for name, x in arguments.items() if name not in of}
    function = partial(free_energy, backend=installed_backend)
    found = gradients(
        lambda **leaves: function(**fixed, **leaves), {name: arguments[name] for name in of}, grad
    )
    assert_gradients_accurate(found, rest, grad, of=of)
    del rest["scale"], arguments["scale"]
    truth = exact(**rest)
    mean = posterior(**arguments, backend=installed_backend).mean
    reach = rest["decoded"].abs().max().item()
    bound = promise.allowed((1 + 0.7 * truth.energy.max()) * reach, dtype)
    assert (np.abs(to_array(mean) - truth.mean) <= bound).all()
