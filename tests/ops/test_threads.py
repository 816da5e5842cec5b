"""Many Python threads at once, and the threads that a call itself takes."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.accuracy import assert_accurate, gradients
from support.problems import problem
from torch import Tensor

from lebm_kernels import free_energy, posterior
from lebm_kernels.backends import native
from lebm_kernels.backends.contract import RowWants

NATIVE = pytest.mark.skipif(
    native.unavailable("cpu") is not None, reason="the extension is not built"
)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    number, interval = torch.get_num_threads(), sys.getswitchinterval()
    yield
    torch.set_num_threads(number)
    sys.setswitchinterval(interval)


def mixed(M: int, N: int, D: int = 2) -> dict[str, Any]:
    """Every argument, and a temperature of its own for each query."""
    return problem(M, N, D, beta=5 * torch.rand(M))


def results(given: dict[str, Tensor], **options: Any) -> list[Tensor]:
    """F, all its gradients and the posterior."""
    grad = torch.linspace(-1, 1, len(given["y"]))
    slopes = gradients(lambda **x: free_energy(**x, **options), given, grad)
    return [free_energy(**given, **options), *slopes.values(), *posterior(**given, **options)]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def at_once(functions: list[Callable[[], Any]]) -> list[Any]:
    """Each in a thread of its own, started together; an error if they do not end in a minute."""
    found: list[Any] = [None] * len(functions)
    barrier = threading.Barrier(len(functions))

    def run(i: int) -> None:
        barrier.wait(60)
        found[i] = functions[i]()

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "threads wait for each other"
    return found


@pytest.mark.parametrize("number", [1, 2])
def test_threads_give_the_bits_of_one(backend: str, number: int) -> None:
    torch.set_num_threads(number)
    problems = [mixed(*size) for size in ((17, 101), (1, 5001), (257, 513, 3), (33, 65, 8))]
    wanted = [results(given, backend=backend) for given in problems]

    def twice(given: dict[str, Tensor]) -> list[list[Tensor]]:
        torch.set_num_threads(number)  # OpenMP keeps the number a thread
        return [results(given, backend=backend) for _ in range(2)]

    found = at_once([lambda given=given: twice(given) for given in problems])
    for runs, expected in zip(found, wanted, strict=True):
        assert all(same(run, expected) for run in runs)


def test_the_number_of_threads_may_change_between_calls(backend: str) -> None:
    given = mixed(20, 1001)
    by_number: dict[int, list[Tensor]] = {}
    for number in (1, 3, 2, 1, 2, 3):
        torch.set_num_threads(number)
        found = results(given, backend=backend)
        assert_accurate(found[0], **given)
        assert same(found, by_number.setdefault(number, found))


def test_each_thread_has_its_own_number(backend: str) -> None:
    given = mixed(3, 5001)

    def with_number(number: int) -> list[Tensor]:
        torch.set_num_threads(number)
        return results(given, backend=backend)

    wanted = [with_number(number) for number in (1, 2, 3)]
    found = at_once([lambda number=number: with_number(number) for number in (1, 2, 3)])
    # set_num_threads sets the caller's; a thread that has begun keeps the one that it has.
    for a, b in zip(found, wanted, strict=True):
        assert same(a, b)


@NATIVE
def test_the_interpreter_is_free_during_a_call() -> None:
    given = mixed(1500, 20_000, 8)
    y, decoded, *others = given.values()
    gate, ran = threading.Semaphore(0), threading.Event()
    helper = threading.Thread(target=lambda: (gate.acquire(), ran.set()), daemon=True)
    helper.start()
    # No thread is made to let go of the interpreter: the helper runs if the one call below does.
    sys.setswitchinterval(1000)
    gate.release()
    before = ran.is_set()
    native.call_rows(y, decoded, *others, None, *RowWants(True, True, True))
    during = ran.is_set()
    sys.setswitchinterval(0.005)
    helper.join(60)
    assert not before
    assert during


@pytest.mark.parametrize("number", [1, 2])
def test_inside_a_parallel_region(backend: str, number: int) -> None:
    # What PyTorch's own kernels run in: a call in there must neither wait for the pool that it
    # belongs to nor change in a bit.
    torch.set_num_threads(number)
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    body_type = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    problems = [mixed(17, 101), mixed(2, 5001), mixed(300, 300)]
    wanted = [results(given, backend=backend) for given in problems]
    found: list[Any] = [None] * len(problems)

    @body_type
    def body(begin: int, end: int, _: Any) -> None:
        for i in range(begin, end):
            found[i] = results(problems[i], backend=backend)

    def run() -> int:
        torch.set_num_threads(number)
        span = (ctypes.c_int64(0), ctypes.c_int64(len(problems)), ctypes.c_int64(1))
        return int(library.torch_parallel_for(*span, body, None))

    assert at_once([run]) == [0]
    for got, expected in zip(found, wanted, strict=True):
        assert got is not None
        assert same(got, expected)
