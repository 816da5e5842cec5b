"""Memory grows with queries plus latents: measured, in a process of its own for each backend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lebm_kernels import free_energy
from lebm_kernels.backends import native

MEASURE = """
import resource, sys
from pathlib import Path
import torch
from lebm_kernels import free_energy, posterior, sample_latent
from lebm_kernels.backends import native

backend, instruction_set, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
if backend == "native":
    native.force_instruction_set(instruction_set)
if backend == "triton":
    sys.path.append(sys.argv[4])
    from support import interpreter
    interpreter.make_bearable()

def run(M, N):
    y = torch.randn(M, 2, requires_grad=True)
    decoded = torch.randn(N, 2, requires_grad=True)
    log_weight = torch.randn(N, requires_grad=True)
    beta = torch.full((M,), 2.0, requires_grad=True)
    arguments = dict(log_weight=log_weight, backend=backend)
    free_energy(y, decoded, beta, **arguments).sum().backward()
    posterior(y, decoded, beta, **arguments)
    if backend == "chunked" and M == N:
        # The second derivative has the same tiles for all. It is slow: of half the queries, one
        # matrix of which is as large as the bound.
        value = free_energy(y[: M // 2], decoded, beta[: M // 2], backend=backend).sum()
        (slope,) = torch.autograd.grad(value, y, create_graph=True)
        slope.square().sum().backward()
    sample_latent(y[:100], decoded, beta[:100], num_samples=1, log_weight=log_weight)

def peak():
    status = Path("/proc/self/status")
    if status.exists():
        # A process's ru_maxrss begins with what the one that started it had.
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

run(200, 200)
before = peak()
run(size, size)
run(10, 20 * size)
run(20 * size, 10)
print(peak() - before)
"""

# Queries and latents, such that one M x N matrix of float32 holds many times the bound, and the
# slow take no longer than the fast.
SIZE = 5_000
LARGER = {"native": 12_000}
BOUND_MIB = 48


def test_peak_of_forward_and_backward(installed_backend: str) -> None:
    backend = installed_backend
    size = LARGER.get(backend, SIZE)
    assert size**2 * 4 / 2**20 > 1.9 * BOUND_MIB
    isa = native.instruction_set() if backend == "native" else ""
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", MEASURE, backend, isa, str(size), tests]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < BOUND_MIB


def test_the_measure_sees_a_matrix() -> None:
    size = str(SIZE // 4)
    command = [sys.executable, "-c", MEASURE, "reference", "", size]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(run.stdout) > BOUND_MIB


STREAM = """
import sys
from pathlib import Path
import torch
from lebm_kernels import free_energy
from lebm_kernels.backends import native

native.force_instruction_set(sys.argv[1])
torch.set_num_threads(2)

def step(N, backward):
    sizes = {"y": 3, "decoded": N}
    given = {name: torch.randn(n, 2, requires_grad=name in backward) for name, n in sizes.items()}
    # The peak begins anew: what came before took more memory than it keeps.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    value = free_energy(**given)
    wanted = [given[name] for name in backward]
    outputs = torch.autograd.grad(value.sum(), wanted) if wanted else ()
    return peak() - before - sum(x.nbytes for x in outputs) / 2**20

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024

step(5000, ["y", "decoded"])
print(max(step(int(sys.argv[2]), backward) for backward in ([], ["y"], ["y", "decoded"])))
"""

# Latents whose copy alone would hold several times the bound.
STREAMED = 4_000_000
STREAM_BOUND_MIB = 4


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read as Linux tells it")
@pytest.mark.parametrize("isa", native.instruction_sets())
def test_few_queries_keep_no_copy_of_the_latents(isa: str) -> None:
    assert STREAMED * 2 * 4 / 2**20 > 3 * STREAM_BOUND_MIB
    command = [sys.executable, "-c", STREAM, isa, str(STREAMED)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < STREAM_BOUND_MIB


def test_what_is_kept_for_the_backward_is_small(backend: str, dtype: torch.dtype) -> None:
    y = torch.randn(300, 2, dtype=dtype, requires_grad=True)
    decoded = torch.randn(400, 2, dtype=y.dtype, requires_grad=True)
    kept: list[int] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        free_energy(y, decoded, 1.0, backend=backend)
    assert 0 < sum(kept) < 20 * (300 + 400)
