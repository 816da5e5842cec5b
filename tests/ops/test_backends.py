"""The table of backends, the choice among them, and the native one's instruction sets."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.backends import status

import lebm_kernels
from lebm_kernels import backends, free_energy, posterior
from lebm_kernels.backends import native, triton

NAMES = ["native", "triton", "chunked", "reference"]
CAN_RUN_NATIVE = native.unavailable("cpu") is None
NEEDS_NATIVE = pytest.mark.skipif(not CAN_RUN_NATIVE, reason="the extension is not built")


def test_the_native_backend_is_here_where_it_is_expected() -> None:
    if os.environ.get("LEBM_KERNELS_EXPECT_NATIVE") == "1":
        assert CAN_RUN_NATIVE, native.unavailable("cpu")


def test_the_table_names_every_backend_in_order_of_preference() -> None:
    table = backends()
    assert [row.name for row in table] == NAMES
    for row in table:
        assert row.available == bool(row.devices)
        assert row.reason
    assert status("chunked").available
    assert status("reference").available


def test_the_table_prints_one_line_for_each_backend() -> None:
    table = backends()
    header, *lines = str(table).splitlines()
    assert header.split() == ["backend", "runs", "on"]
    assert [line.split()[0] for line in lines] == NAMES
    for line, row in zip(lines, table, strict=True):
        assert row.reason in line
        assert ("cpu" in line.split()[1]) == ("cpu" in row.devices)


def test_a_named_backend_that_cannot_run_says_why() -> None:
    y, decoded = torch.zeros(2, 2), torch.zeros(3, 2)
    unable = [row for row in backends() if "cpu" not in row.devices]
    for row in unable:
        for call in (
            lambda name: free_energy(y, decoded, backend=name),
            lambda name: posterior(y, decoded, backend=name),
        ):
            with pytest.raises(RuntimeError) as caught:
                call(row.name)
            assert row.name in str(caught.value)
            assert row.available or row.reason in str(caught.value)


def test_the_default_is_the_first_that_can_run() -> None:
    first = "native" if CAN_RUN_NATIVE else "chunked"
    y, decoded = torch.randn(37, 2), torch.randn(101, 2)
    assert torch.equal(free_energy(y, decoded, 3.0), free_energy(y, decoded, 3.0, backend=first))


def test_backends_agree(any_backend: str) -> None:
    y, decoded = torch.randn(37, 2).double(), torch.randn(101, 2).double()
    for beta in (0.0, 1.0, 1e3, float("inf")):
        found = posterior(y, decoded, beta, backend=any_backend)
        wanted = posterior(y, decoded, beta, backend="chunked")
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", native.instruction_sets())
def test_an_instruction_set_can_be_forced_and_freed(name: str) -> None:
    default = native.instruction_set()
    native.force_instruction_set(name)
    try:
        assert native.instruction_set() == name
        assert name in status("native").reason
    finally:
        native.force_instruction_set(None)
    assert native.instruction_set() == default


def _in_use(isa: str, backend: str | None = "native") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LEBM_KERNELS_ISA": isa}
    code = (
        "import torch, lebm_kernels\n"
        "from lebm_kernels.backends import native\n"
        f"F = lebm_kernels.free_energy(torch.ones(1, 1), torch.zeros(1, 1), backend={backend!r})\n"
        "print(native.instruction_set(), F.item())\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", native.instruction_sets())
def test_the_environment_forces_an_instruction_set(name: str) -> None:
    assert _in_use(name).stdout.split() == [name, "1.0"]


def test_the_baseline_is_among_the_instruction_sets() -> None:
    assert ("baseline" in native.instruction_sets()) == CAN_RUN_NATIVE
    assert CAN_RUN_NATIVE or native.instruction_sets() == []


@NEEDS_NATIVE
def test_an_instruction_set_that_is_not_here_is_refused() -> None:
    with pytest.raises(RuntimeError, match="sse9"):
        native.force_instruction_set("sse9")


@NEEDS_NATIVE
def test_a_slip_in_the_environment_is_refused_where_native_is_named() -> None:
    refused = _in_use("axv2", "native")
    assert refused.returncode != 0
    for word in ("RuntimeError", "'native'", "LEBM_KERNELS_ISA", "axv2", "baseline"):
        assert word in refused.stderr.splitlines()[-1]


@NEEDS_NATIVE
def test_a_slip_in_the_environment_is_announced_and_imports_stay_possible() -> None:
    code = (
        "import torch, lebm_kernels\n"
        "print([row.reason for row in lebm_kernels.backends() if row.name == 'native'])\n"
        "print(lebm_kernels.free_energy(torch.ones(1, 1), torch.zeros(1, 1)).item())\n"
    )
    environment = os.environ | {"LEBM_KERNELS_ISA": "axv2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    reason, value = done.stdout.splitlines()
    assert "LEBM_KERNELS_ISA must be one of" in reason
    assert "got 'axv2'" in reason
    assert value == "1.0"
    assert "Warning" in done.stderr
    assert "got 'axv2'" in done.stderr


def test_public_names() -> None:
    for name in lebm_kernels.__all__:
        assert getattr(lebm_kernels, name).__doc__


def test_triton_judges_each_gpu_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    majors = [7, 9]

    def properties(device: Any) -> SimpleNamespace:
        return SimpleNamespace(name="card", major=majors[torch.device(device).index], minor=0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(majors))
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(triton, "_FAILURE", None)
    assert triton.unavailable("cuda") is None  # one of them can
    on_the_old: Any = SimpleNamespace(y=SimpleNamespace(device=torch.device("cuda", 0)))
    for call in (
        lambda: triton.rows(on_the_old, None),
        lambda: triton.columns(on_the_old, *[None] * 3),
    ):
        with pytest.raises(RuntimeError, match=r"cuda:0.*card.*sm_80"):
            call()
    majors[1] = 7
    assert "sm_80" in str(triton.unavailable("cuda"))
