"""Calls leave nothing behind: the memory of a process after thousands of them, and after errors."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Half of them before the measure: an allocator takes some thousand calls to come to rest, and then
# a process does not grow by a page.
CALLS = 4_000

# What is kept by one call in four must show: a tensor of 24 numbers takes some 400 bytes, with its
# Python object.
BOUND_MIB = 0.04

MEASURE = """
import gc, sys
import torch
from lebm_kernels import free_energy, posterior, sample_latent

torch.set_num_threads(1)
torch.manual_seed(0)
kept = []
y = torch.randn(24, 2, requires_grad=True)
decoded = torch.randn(48, 2, requires_grad=True)
beta = torch.full((24,), 2.0, requires_grad=True)
double = torch.randn(5, 7, dtype=torch.float64)

def gradients():
    for x in (y, decoded, beta):
        x.grad = None
    free_energy(y, decoded, beta).sum().backward()

def expectations():
    posterior(y, decoded, beta)

def draws():
    sample_latent(y, decoded, num_samples=3)

def errors():
    # Before any work, in the choice of a backend, and past both: a query without a posterior.
    wrong = ((y, double, 1.0, None), (y, decoded, -1.0, None), (y, decoded, 1.0, "none"))
    for queries, latents, temperature, backend in wrong:
        try:
            free_energy(queries, latents, temperature, backend=backend)
        except (TypeError, ValueError):
            continue
        raise AssertionError("no error")
    try:
        sample_latent(y.detach() * float("nan"), decoded, num_samples=1)
    except ValueError:
        return
    raise AssertionError("no error")

def leak():
    kept.append(free_energy(y, decoded, beta).detach())

def resident():
    gc.collect()
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:")) / 1024

kinds, calls = [globals()[name] for name in sys.argv[2:]], int(sys.argv[1])

def run(calls):
    for i in range(calls):
        kinds[i % len(kinds)]()

run(calls // 2)
grown, before = [], resident()
for _ in range(2):
    run(calls // 4)
    now = resident()
    grown.append(now - before)
    before = now
# What leaks does so again and again; what is allocated once does not.
print(min(grown))
"""

KINDS = ("gradients", "expectations", "draws", "errors")


def growth(*kinds: str) -> float:
    """MiB by which a process grows in a quarter of the calls, taken of each kind in turn."""
    command = [sys.executable, "-c", MEASURE, str(CALLS), *kinds]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return float(run.stdout)


pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="resident memory is read as Linux tells it"
)


def test_calls_leave_nothing_behind() -> None:
    assert growth(*KINDS) < BOUND_MIB


def test_the_measure_sees_what_one_call_in_four_keeps() -> None:
    assert growth("leak", *3 * ["expectations"]) > 2 * BOUND_MIB
