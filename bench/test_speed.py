"""The speed of our backends from one change to the next: see bench/README.md.

Run this file by name: the run of all tests does not collect it.
"""

from __future__ import annotations

import pytest

import lebm_kernels
from lebm_kernels.benchmarks.cases import Case
from lebm_kernels.benchmarks.providers import providers

CASES = {
    "practicum": Case(24, 48, 2),
    "practicum, backward": Case(24, 48, 2, backward=("y", "scale")),
    "narrow": Case(1024, 16384, 2),
    "narrow, cold": Case(1024, 16384, 2, beta=float("inf")),
    "narrow, backward of y": Case(1024, 16384, 2, backward=("y",)),
    "narrow, backward of decoded": Case(1024, 16384, 2, backward=("decoded",)),
    "few queries": Case(4, 1 << 20, 2),
    "wide": Case(512, 4096, 64),
    "wide, backward of both": Case(512, 4096, 64, backward=("y", "decoded")),
}

#: Our backends that can run here, and a peer, whose time shows the drift of the machine's speed.
NAMES = [
    row.name for row in lebm_kernels.backends() if "cpu" in row.devices and row.name != "reference"
] + ["eager, expansion (mm)"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("title", CASES)
def test_speed(benchmark, title, name):
    case = CASES[title]
    benchmark.group = f"{title}: {case}"
    step = providers()[name](case)
    benchmark(step, case.cotangent())
