"""Fixtures, the order of the tests, and what the report says of what is tested."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support import emulated_cuda, interpreter
from support.backends import BACKENDS, KERNELS, STAND_INS, identify, kernel_parameters, selected

import lebm_kernels

collect_ignore = [] if torch.cuda.is_available() else ["kernels/test_gpu.py"]
"""Files that are left out, with a word in the report's header."""


def pytest_configure(config: pytest.Config) -> None:
    """One thread, so that a busy machine takes no longer; test_determinism.py sets its own."""
    config.addinivalue_line("markers", "no_cover: counts no covered lines (of pytest-cov)")
    torch.set_num_threads(1)
    if os.environ.get("LEBM_KERNELS_EXPECT_GPU") == "1" and collect_ignore:
        raise pytest.UsageError("LEBM_KERNELS_EXPECT_GPU=1, and PyTorch sees no GPU")
    if "triton" in KERNELS:
        interpreter.make_bearable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Within a test, one problem's backends follow each other: the oracle remembers it."""
    order: dict[Any, int] = {}

    def place(item: pytest.Item) -> int:
        problem = {name: x for name, x in _parameters(item).items() if not _is_backend(name, x)}
        test = (item.path, getattr(item, "originalname", item.name), repr(problem))
        return order.setdefault(test, len(order))

    items.sort(key=place)
    _leave_untraced(items)


TRACED_CASES = 2
"""Of a test and backend, how many count which lines are reached."""


def _leave_untraced(items: list[pytest.Item]) -> None:
    """Count covered lines in few cases of a test: Python runs at half its speed meanwhile."""
    cases: Counter[Any] = Counter()
    for item in items:
        backend = [repr(x) for name, x in _parameters(item).items() if _is_backend(name, x)]
        case = (item.path, getattr(item, "originalname", item.name), *backend)
        cases[case] += 1
        if cases[case] > TRACED_CASES:
            item.add_marker("no_cover")


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return getattr(getattr(item, "callspec", None), "params", {})


def _is_backend(name: str, x: Any) -> bool:
    """Whether a test's parameter says where it runs: by its name, or with one of the backends."""
    if name.endswith("backend"):
        return True
    if not isinstance(x, tuple):
        return False
    if all(part is None or isinstance(part, str) for part in x):
        return x in BACKENDS
    return any(_is_backend("", part) for part in x)


def pytest_report_header() -> list[str]:
    """Say what is tested and, of what is not, why."""
    tested = ", ".join("-".join(filter(None, parameter)) for parameter in kernel_parameters())
    lines = [f"lebm_kernels backends tested: {tested}"]
    for row in lebm_kernels.backends():
        if "cpu" not in row.devices:
            lines.append(f"lebm_kernels backend NOT tested: {row.name}: {row.reason}")
    lines += [f"{file} NOT tested: PyTorch sees no GPU" for file in collect_ignore]
    return lines


@pytest.fixture(params=kernel_parameters(), ids=identify)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every kernel backend that can run here; the native one on each instruction set."""
    with selected(*request.param) as name:
        yield name


@pytest.fixture(params=[p for p in kernel_parameters() if p[0] not in STAND_INS], ids=identify)
def installed_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """As ``backend``, but for what a new process does not know of: the emulator."""
    with selected(*request.param) as name:
        yield name


@pytest.fixture(params=[p for p in kernel_parameters() if p[0] == "native"], ids=identify)
def pruning_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The backend that can leave pairs out, on each instruction set."""
    with selected(*request.param) as name:
        yield name


@pytest.fixture(params=BACKENDS, ids=identify)
def any_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kernel backends, and the reference: for what all must do and none defines."""
    with selected(*request.param) as name:
        yield name


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The dtypes that a free energy is computed in."""
    chosen: torch.dtype = request.param
    return chosen


@pytest.fixture(scope="session", autouse=True)
def _build_the_emulator_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each of pytest-xdist's workers has its folder, side by side in that of the run."""
    folder = tmp_path_factory.getbasetemp()
    emulated_cuda.share(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
