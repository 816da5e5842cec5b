"""Which backends are tested, and the rule that says how close is close enough."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import emulated_cuda
import interpreter
import numpy as np
import numpy.typing as npt
import on_gpu
import pytest
import torch
from oracle import Array, exact, remembered, to_array
from torch import Tensor

import lebm_kernels
from lebm_kernels import reference
from lebm_kernels.backends import _TABLE, BackendStatus, native

collect_ignore = [] if torch.cuda.is_available() else ["test_gpu.py"]
"""Files that are left out, with a word in the report's header."""

KERNELS = tuple(
    row.name for row in lebm_kernels.backends() if "cpu" in row.devices and row.name != "reference"
)
"""What must run in every test: the tests' tensors are on the CPU."""

# The kernels of GPUs, as the CPU runs them; and on a GPU, where there is one. In the table of
# backends while selected.
STAND_INS: dict[str, Any] = {
    name: module
    for name, module in {"emulated_cuda": emulated_cuda, **on_gpu.STAND_INS}.items()
    if module.unavailable("cpu") is None
}
KERNELS += tuple(STAND_INS)

BETAS = (0.0, 1e-12, 1e-7, 1e-3, 0.1, 1.0, 30.0, 1e4, 1e12, float("inf"))
"""From hot to cold."""


def status(name: str) -> BackendStatus:
    """The row of the table of backends."""
    return next(row for row in lebm_kernels.backends() if row.name == name)


def kernel_parameters() -> list[tuple[str, str | None]]:
    """The backends to test, the native one with each instruction set."""
    parameters: list[tuple[str, str | None]] = []
    for name in KERNELS:
        sets = native.instruction_sets() if name == "native" else [None]
        parameters += [(name, instruction_set) for instruction_set in sets]
    return parameters


BACKENDS = [*kernel_parameters(), ("reference", None)]
"""As a test is given them, whatever it calls the parameter."""


@contextmanager
def selected(name: str, instruction_set: str | None) -> Iterator[str]:
    """The backend's name, while that instruction set is in use."""
    if name in STAND_INS:
        _TABLE[name] = STAND_INS[name]
        try:
            yield name
        finally:
            del _TABLE[name]
        return
    if instruction_set is None:
        yield name
        return
    native.force_instruction_set(instruction_set)
    try:
        yield name
    finally:
        native.force_instruction_set(None)


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


def identify(parameter: tuple[str, str | None]) -> str:
    """Such a parameter in a test's name."""
    return "-".join(filter(None, parameter))


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


def assert_accurate(
    got: Tensor, y: Tensor, decoded: Tensor, beta: Any = 1.0, **options: Any
) -> None:
    """The promise on F: ``|F - F64| <= 16 eps scale`` for F = ``got`` of these arguments.

    ``scale`` is min E + min(<E>_w - min E, (1 + log N)/beta); eps is that of F's dtype.
    """
    truth = exact(y, decoded, beta, **options)
    _assert_within(got, truth.free_energy, 16 * _eps(got) * truth.magnitude, "F")


def assert_gradients_accurate(
    got: dict[str, Tensor],
    arguments: dict[str, Tensor],
    grad: Tensor,
    of: Iterable[str] | None = None,
    beneath: dict[str, float] | None = None,
) -> None:
    """The promise on the gradients of sum(grad F) by name: ``of`` those arguments, or of all.

    ``|d - d64| <= 2 (error of the same-dtype reference) + 16 eps magnitude``. The reference's
    error is its largest in the tensor, and not less than what E, wrong by eps/2, makes of p: it
    may be small by luck. A gradient in half precision is rounded to that once more. ``beneath``
    has errors that count as none, where a problem's shares are smaller than the dtype's numbers.
    """
    names = tuple(arguments if of is None else of)
    truth = exact(**arguments, grad=grad, of=names)
    by_reference = _by_reference(arguments, grad)
    assert got.keys() == set(names)
    for name, found in got.items():
        assert found.dtype == arguments[name].dtype
        eps = torch.finfo(torch.float64 if found.dtype == torch.float64 else torch.float32).eps
        wanted = truth.gradients[name]
        slip = np.abs(to_array(by_reference[name]) - wanted).max(initial=0)
        bound = 2 * np.maximum(slip, eps / 2 * truth.gradient_noises[name])
        bound = bound + 16 * eps * truth.gradient_magnitudes[name]
        bound = bound + (beneath or {}).get(name, 0.0)
        if found.dtype in (torch.float16, torch.bfloat16):
            half = torch.finfo(found.dtype)
            bound = bound + half.eps * np.abs(wanted) + half.smallest_normal
        _assert_within(found, wanted, bound, f"gradient of {name}")


def check(backend: str, arguments: dict[str, Any]) -> Tensor:
    """F and its gradients by every argument keep the promises; returns F."""
    function = partial(lebm_kernels.free_energy, backend=backend)
    value = function(**arguments)
    assert_accurate(value, **arguments)
    grad = torch.randn_like(value)
    assert_gradients_accurate(gradients(function, arguments, grad), arguments, grad)
    return value


def gradients(function: Any, arguments: dict[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    """The gradients of sum(grad F) by every argument, F = ``function(**arguments)``."""
    leaves = {name: x.detach().requires_grad_() for name, x in arguments.items()}
    found = torch.autograd.grad(function(**leaves), list(leaves.values()), grad)
    return dict(zip(leaves, found, strict=True))


def reference_free_energy(**arguments: Tensor) -> Tensor:
    """The formulas with autograd, computed in the dtype that F has."""
    wide = torch.float64 if arguments["y"].dtype == torch.float64 else torch.float32
    return reference.free_energy(**{name: x.to(wide) for name, x in arguments.items()})


@remembered
def _by_reference(arguments: dict[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    return gradients(reference_free_energy, arguments, grad)


def _eps(x: Tensor) -> float:
    return torch.finfo(x.dtype).eps


def _assert_within(got: Tensor, wanted: Array, bound: npt.ArrayLike, what: str) -> None:
    assert got.shape == wanted.shape, f"{what} has shape {list(got.shape)}, not {wanted.shape}"
    found = to_array(got)
    error = np.abs(found - wanted)
    bad = ~(error <= bound)
    if bad.any():
        with np.errstate(all="ignore"):
            ratio = np.where(bad, np.nan_to_num(error / bound, nan=np.inf), 0)
        worst = np.unravel_index(ratio.argmax(), ratio.shape)
        raise AssertionError(
            f"{what} is wrong in {bad.sum()} of {bad.size} places; worst at "
            f"{[int(i) for i in worst]}: {float(found[worst])!r} for {float(wanted[worst])!r}, "
            f"{float(ratio[worst]):.3g} times what is allowed"
        )
