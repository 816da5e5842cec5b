"""What cannot run says what would: too little memory, a GPU without kernels, a missing build."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

from lebm_kernels import free_energy, posterior
from lebm_kernels.backends import choose, chunked, hindrances, module, native, triton
from lebm_kernels.backends.contract import ColumnWants, Problem, RowWants

MANY = 1 << 26  # so many queries and latents: no machine has the memory, or the addresses


def expanded(*shape: int) -> Tensor:
    return torch.zeros(1).expand(shape)


def test_pairs_that_do_not_fit_name_the_backends_that_hold_none() -> None:
    y, decoded = expanded(MANY, 2), expanded(MANY, 2)
    for call in (
        lambda: free_energy(y, decoded, backend="reference"),
        lambda: posterior(y, decoded, backend="reference"),
    ):
        with pytest.raises(torch.OutOfMemoryError) as caught:
            call()
        message = str(caught.value)
        # 2^26 squared times 2 numbers of 4 bytes
        assert message.startswith("backend 'reference' ran out of memory on cpu: ")
        assert "67108864 x 67108864 x 2, 3.6e+04 TB each" in message
        assert "backend='chunked'" in message
        assert "fewer queries" in message
        assert isinstance(caught.value.__cause__, RuntimeError)


def test_the_size_that_is_told_counts_what_broadcasts() -> None:
    one = torch.zeros(1, dtype=torch.float64)
    y, decoded = one.expand(MANY, 3), one.expand(5, MANY, 3)
    with pytest.raises(torch.OutOfMemoryError, match=f"{5 * MANY} x {MANY} x 3, 5.4e\\+05 TB"):
        free_energy(y, decoded, backend="reference")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("require, tensors.h:67, lebm_kernels: allocating memory failed"),
        RuntimeError("CUDA error: out of memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError("std::bad_alloc"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["native", "chunked"])
def test_a_backend_out_of_memory_tells_what_it_holds(
    monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    def fail(*_: Any) -> NoReturn:
        raise error

    backend = {"native": native, "chunked": chunked}[name]
    for inner in {"native": ("call_rows", "call_columns"), "chunked": ("normalised",)}[name]:
        monkeypatch.setattr(backend, inner, fail)
    problem = Problem(
        torch.zeros(2, 1000, 3), torch.zeros(2, 50, 3), torch.ones(2, 1000), None, None, None, None
    )
    for call in (
        lambda: backend.rows(problem, RowWants()),
        lambda: backend.columns(problem, problem.beta, problem.beta, ColumnWants()),
    ):
        with pytest.raises(torch.OutOfMemoryError) as caught:
            call()
        message = str(caught.value)
        assert message.startswith(f"backend '{name}' ran out of memory on cpu: ")
        assert "2 x 1000 queries and 2 x 50 latents, 24 kB and 1.2 kB" in message
        assert "fewer queries" in message
        assert caught.value.__cause__ is error


@pytest.mark.skipif(native.unavailable("cpu") is not None, reason="the extension is not built")
@pytest.mark.parametrize("tracked", [False, True], ids=["value", "gradient"])
def test_a_call_that_goes_past_the_operator_tells_what_it_holds(tracked: bool) -> None:
    y = expanded(1 << 50, 2).requires_grad_(tracked)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        free_energy(y, torch.zeros(3, 2))
    words = f"1 x {1 << 50} queries and 1 x 3 latents, 9.01e+03 TB and 24 bytes each time"
    assert words in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.skipif(native.unavailable("cpu") is not None, reason="the extension is not built")
def test_its_backward_tells_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    error: Exception = MemoryError("std::bad_alloc")

    def fail(*_: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(native, "call_columns", fail)
    decoded = torch.zeros(3, 2, requires_grad=True)
    with pytest.raises(torch.OutOfMemoryError, match="1 x 5 queries and 1 x 3 latents") as caught:
        free_energy(torch.zeros(5, 2), decoded).sum().backward()
    assert caught.value.__cause__ is error
    error = RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else") as left:
        free_energy(torch.zeros(5, 2), decoded).sum().backward()
    assert left.value is error


def test_another_failure_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("something else")

    def fail(*_: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(chunked, "normalised", fail)
    with pytest.raises(RuntimeError) as caught:
        free_energy(torch.zeros(2, 2), torch.zeros(3, 2), backend="chunked")
    assert caught.value is error


@pytest.fixture(autouse=True)
def _nothing_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hindrances, "_announced", set())


def test_a_fallback_is_announced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_FAILURE", native._Failure("the extension was not built"))
    monkeypatch.setattr(native, "call_rows", None)
    monkeypatch.setattr(triton, "unavailable", lambda device: "it is not installed")
    y, decoded = torch.randn(3, 2), torch.randn(5, 2)
    words = r"cpu are computed by the slow backend 'chunked': native: the extension was not built; "
    with pytest.warns(UserWarning, match=words) as warned:
        free_energy(y, decoded)
    assert warned[0].filename == __file__
    # Warnings are errors here: the second call gives none, nor does one that names the backend.
    free_energy(y, decoded)
    hindrances._announced.clear()
    free_energy(y, decoded, backend="chunked")


def cards(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int]) -> None:
    """Let PyTorch see GPUs of these capabilities, and the extension have kernels for GPUs."""

    def properties(device: Any) -> SimpleNamespace:
        major, minor = capabilities[torch.device(device).index]
        return SimpleNamespace(name="card", major=major, minor=minor)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(native, "_FAILURE", None)
    monkeypatch.setattr(native, "_CUDA_FAILURE", None)
    monkeypatch.setattr(triton, "_FAILURE", None)


@pytest.mark.parametrize("name", ["native", "triton"])
def test_a_gpu_that_is_too_old(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    cards(monkeypatch, (7, 5), (9, 0))
    assert module(name).unavailable("cuda") is None  # one of them can
    on_the_old: Any = SimpleNamespace(y=SimpleNamespace(device=torch.device("cuda", 0)))
    with pytest.raises(RuntimeError) as caught:
        module(name).rows(on_the_old, RowWants())
    for words in (f"backend '{name}' cannot run on cuda:0", "card (sm_75)", "sm_80", "'chunked'"):
        assert words in str(caught.value)
    cards(monkeypatch, (7, 5))
    with pytest.raises(RuntimeError, match=r"cannot run on cuda: card \(sm_75\).*'chunked'"):
        choose(name, "cuda")
    with pytest.warns(
        UserWarning, match="cuda are computed by the slow backend 'chunked': native: card"
    ):
        assert choose(None, "cuda") == "chunked"


def test_a_gpu_that_the_extension_was_not_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cards(monkeypatch, (12, 0))

    def fail(*_: Any) -> NoReturn:
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(native, "call_rows", fail)
    device = torch.device("cuda", 0)
    y: Any = SimpleNamespace(device=device)
    problem: Any = Problem(y, *[None] * 6)
    with pytest.raises(RuntimeError) as caught:
        native.rows(problem, RowWants())
    for words in (
        "backend 'native'",
        "cuda:0",
        "sm_120",
        "TORCH_CUDA_ARCH_LIST=native",
        "'triton'",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize("report", ["no C++ compiler was found\n", None], ids=["report", "none"])
def test_an_extension_that_was_not_built_says_how_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, report: str | None
) -> None:
    monkeypatch.setattr(native, "_LIBRARY", tmp_path / "none.so")
    monkeypatch.setattr(native, "_BUILD_REPORT", tmp_path / "report.txt")
    if report:
        (tmp_path / "report.txt").write_text(f"{report}the compiler's last words\n")
    monkeypatch.setattr(native, "_FAILURE", native._load())
    with pytest.raises(RuntimeError) as caught:
        choose("native", "cpu")
    words = ("backend 'native' cannot run on cpu", "pip install .", "C++17 compiler")
    for word in (*words, (report or "not built").strip()):
        assert word in str(caught.value)
    assert "last words" not in str(caught.value)


def test_an_extension_built_without_cuda_says_how_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cards(monkeypatch, (9, 0))
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: False)
    (tmp_path / "report.txt").write_text("built without CUDA: there is no nvcc\n")
    for path in (tmp_path / "report.txt", tmp_path / "none.txt"):
        monkeypatch.setattr(native, "_CUDA_REPORT", path)
        monkeypatch.setattr(native, "_CUDA_FAILURE", native._without_cuda())
        with pytest.raises(RuntimeError, match=r"built without CUDA.*pip install \.") as caught:
            choose("native", "cuda")
        assert "nvcc" in str(caught.value)
