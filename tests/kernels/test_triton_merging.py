"""Triton's passes in many programs: splits are merged, hot queries are listed.

Cut as a GPU would cut small problems, and not as the interpreter does.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.accuracy import check as check_all
from support.backends import KERNELS

from lebm_kernels import posterior
from lebm_kernels.backends.contract import Problem
from lebm_kernels.diagnostics import promise

if "triton" not in KERNELS:
    pytest.skip("Triton's kernels run here only under TRITON_INTERPRET=1", allow_module_level=True)

from lebm_kernels.backends.triton import arguments, launch


@pytest.fixture(params=["triton"])
def backend(request: pytest.FixtureRequest) -> str:
    """The one backend of these tests."""
    return str(request.param)


def problem(dtype: torch.dtype, M: int, N: int, D: int) -> dict[str, Any]:
    return {
        "y": torch.randn(M, D, dtype=dtype),
        "decoded": torch.randn(N, D, dtype=dtype),
        # Hot, between and cold, in no order.
        "beta": torch.logspace(-6, 4, M, dtype=dtype)[torch.randperm(M)],
    }


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize(
    ("multiprocessors", "M", "N", "D"),
    [(132, 3, 4401, 2), (1, 21, 1300, 1), (132, 3, 2100, 6), (132, 131, 261, 70)],
)
def test_splits(
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
    multiprocessors: int,
    dtype: torch.dtype,
    M: int,
    N: int,
    D: int,
    weighted: bool,
) -> None:
    facts = arguments.Device(False, multiprocessors)
    monkeypatch.setattr(launch, "device_facts", lambda device: facts)
    given = problem(dtype, M, N, D)
    if weighted:
        given["log_weight"] = torch.randn(N, dtype=dtype)
    check_all(backend, given)
    index = posterior(**given, backend=backend).index
    energy = (given["y"][:, None] - given["decoded"]).double().square().sum(-1)
    least = energy.amin(-1)
    found = energy.gather(1, index[:, None])[:, 0]
    assert (found <= least + promise.allowed(least, dtype)).all()


def test_grids_in_several_launches(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "MOST_PACKED", 1 << 14)
    given = {"y": torch.randn(5, 7, 6), "decoded": torch.randn(5, 9, 6), "beta": torch.rand(5, 7)}
    given["log_weight"] = torch.randn(9)
    slices = arguments.grid_slices(Problem(**given, scale=None, latent_energy=None, tol=None))
    assert [x.stop - x.start for x in slices] == [2, 2, 1]
    check_all(backend, given)


@pytest.mark.parametrize("lower", [5.0, 12.0])
def test_a_query_that_only_looks_hot_is_not_listed(
    backend: str, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, lower: float
) -> None:
    # One latent, which no sample meets, has more of the sum than all others.
    y, beta = torch.zeros(4, 1, dtype=dtype), torch.tensor([1e-3, 1.0, 1.0, 1e-5], dtype=dtype)
    decoded = torch.full((4001, 1), 10.0, dtype=dtype)
    decoded[1001] = (100 - lower) ** 0.5
    listed: list[int] = []
    kernel = launch.hot_kernel

    class Watched:
        def __getitem__(self, grid: Any) -> Any:
            def call(a: Any, hot: Any, *given: Any, **options: Any) -> None:
                listed.extend(hot.query_ptr[0, : int(hot.count_ptr[0])].tolist())
                kernel[grid](a, hot, *given, **options)

            return call

    monkeypatch.setattr(launch, "hot_kernel", Watched())
    check_all(backend, {"y": y, "decoded": decoded, "beta": beta})
    assert set(listed) == {0, 3}
