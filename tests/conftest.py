"""Fixtures, the order of the tests, and what the report says of what is tested."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator
from typing import Any

import pytest
import torch
from support import emulated_cuda, interpreter, pairs
from support.backends import (
    BACKENDS,
    EACH_ONCE,
    KERNELS,
    STAND_INS,
    identify,
    kernel_parameters,
    selected,
)

import lebm_kernels
from lebm_kernels.backends import hindrances

collect_ignore = [] if torch.cuda.is_available() else ["kernels/test_gpu.py"]
"""Files that are left out, with a word in the report's header."""


def pytest_configure(config: pytest.Config) -> None:
    """One thread, so that a busy machine takes no longer; test_determinism.py sets its own."""
    config.addinivalue_line("markers", "no_cover: counts no covered lines (of pytest-cov)")
    torch.set_num_threads(1)
    # Where there is no extension, each process would have one test that gets the warning.
    hindrances._announced.update(("cpu", "cuda"))
    # A graph that Inductor cached in an earlier run has the shapes that our operators had then.
    os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE"] = os.environ["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "0"
    if os.environ.get("LEBM_KERNELS_EXPECT_GPU") == "1" and collect_ignore:
        raise pytest.UsageError("LEBM_KERNELS_EXPECT_GPU=1, and PyTorch sees no GPU")
    if "triton" in KERNELS:
        interpreter.make_bearable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose the cases, put them in order, choose those that count covered lines.

    Before -k and -m: they select among the chosen.
    """
    if not pairs.ALL:
        items[:], left_out = _chosen(items)
        if left_out:
            config.hook.pytest_deselected(items=left_out)
    _order(items)
    _leave_untraced(items)


def _chosen(items: list[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """The cases that have all pairs of each test's parameters, and the others."""
    tests: defaultdict[Hashable, list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        tests[_test(item)].append(place)
    chosen = set()
    for places in tests.values():
        chosen |= {places[i] for i in pairs.covering([_factors(items[i]) for i in places])}
    left_out = [item for place, item in enumerate(items) if place not in chosen]
    return [items[place] for place in sorted(chosen)], left_out


def _factors(item: pytest.Item) -> dict[str, Hashable]:
    """What a case's parameters are, by name; the ones that are parametrised together, as one.

    Values are compared by identity: cases share the objects, which may be tensors.
    """
    parameters = _parameters(item)
    factors: dict[str, Hashable] = {}
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0]
        names = [x.strip() for x in names.split(",")] if isinstance(names, str) else names
        factors[",".join(names)] = tuple(id(parameters.pop(name)) for name in names)
    return factors | {name: id(x) for name, x in parameters.items()}


def _order(items: list[pytest.Item]) -> None:
    """Within a test, one problem's backends follow each other: the oracle remembers it."""
    order: dict[Any, int] = {}

    def place(item: pytest.Item) -> int:
        problem = {name: x for name, x in _parameters(item).items() if not _is_backend(name, x)}
        return order.setdefault((_test(item), repr(problem)), len(order))

    items.sort(key=place)


TRACED_CASES = 2
"""Of a test and backend, how many count which lines are reached."""


def _leave_untraced(items: list[pytest.Item]) -> None:
    """Count covered lines in few cases of a test: Python runs at half its speed meanwhile."""
    cases: Counter[Any] = Counter()
    for item in items:
        backend = [repr(x) for name, x in _parameters(item).items() if _is_backend(name, x)]
        case = (_test(item), *backend)
        cases[case] += 1
        if cases[case] > TRACED_CASES:
            item.add_marker("no_cover")


def _test(item: pytest.Item) -> Hashable:
    """The test that a case is one of."""
    return item.path, getattr(item, "originalname", item.name)


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return dict(getattr(getattr(item, "callspec", None), "params", {}))


def _is_backend(name: str, x: Any) -> bool:
    """Whether a test's parameter says where it runs: by its name, or with one of the backends."""
    if "backend" in name:
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
    if not pairs.ALL:
        lines.append("cases: all pairs of parameters; LEBM_KERNELS_TEST_ALL=1: all combinations")
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


@pytest.fixture(params=EACH_ONCE, ids=identify)
def backend_once(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every kernel backend, the native one on its best instruction set."""
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
