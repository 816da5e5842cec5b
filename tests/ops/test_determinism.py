"""The same bits every time, and the promise kept with any number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from support.accuracy import assert_accurate, assert_gradients_accurate, gradients
from support.problems import problem

from lebm_kernels import free_energy, posterior

# Many queries and few, over a small grid and a large one: work is shared out differently.
SIZES = [(1, 1), (1, 5001), (2, 3001), (517, 33), (257, 513), (5, 1)]


@pytest.fixture
def threads() -> Iterator[None]:
    """Whatever number a test sets, as before afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize(("M", "N"), SIZES)
@pytest.mark.usefixtures("threads")
def test_any_number_of_threads(backend: str, number: int, M: int, N: int) -> None:
    torch.set_num_threads(number)
    arguments = problem(M, N, beta=5 * torch.rand(M))
    function = partial(free_energy, backend=backend)
    value = function(**arguments)
    assert_accurate(value, **arguments)
    grad = torch.randn(M)
    found = gradients(function, arguments, grad)
    assert_gradients_accurate(found, arguments, grad)
    # Not a bit changes, neither in the value nor in a gradient, nor in the posterior.
    assert torch.equal(function(**arguments), value)
    for name, again in gradients(function, arguments, grad).items():
        assert torch.equal(again, found[name])
    one, other = posterior(**arguments, backend=backend), posterior(**arguments, backend=backend)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


def test_what_is_wanted_does_not_change_the_value(backend: str) -> None:
    arguments = problem(33, 301, beta=5 * torch.rand(33))
    plain = free_energy(**arguments, backend=backend)
    assert torch.equal(posterior(**arguments, backend=backend).free_energy, plain)
    arguments["y"].requires_grad_()
    assert torch.equal(free_energy(**arguments, backend=backend), plain)


def test_calls_from_several_threads_at_once(backend: str) -> None:
    problems = [problem(17 + i, 101 + i) for i in range(8)]
    wanted = [free_energy(**one, backend=backend) for one in problems]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda one: free_energy(**one, backend=backend), problems * 5)
        for a, b in zip(found, wanted * 5, strict=True):
            torch.testing.assert_close(a, b)
