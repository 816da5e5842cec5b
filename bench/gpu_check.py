"""All checks and measurements of the GPU backends on one card: ``make gpu-check``.

Builds the extension for the local architecture; times our backends, their peers and the limit; runs
the operators' tests on the GPU kernels, and the tests that need a GPU; runs compute-sanitizer if it
is installed. Needs no network and less than ten minutes. Writes JSON and a picture, whose names
contain that of the card.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Timer
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SANITIZER_TOOLS = ("memcheck", "racecheck", "synccheck")
STEPS = ("build", "benchmark", "tests", "sanitizer")
LINES_KEPT = 30

#: The test files for which the time suffices; ``--pytest`` selects others.
TESTS = (
    "gpu",
    "second_order",
    "compile",
    "bad_numbers",
    "accuracy",
    "closed_forms",
    "gradients",
    "nan",
    "pytorch_contract",
    "posterior",
    "shapes",
)
SEARCHED = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))

#: The number of test processes; each needs memory of the card for its context and tensors.
MOST_PROCESSES = 8


def run(command: Sequence[str], timeout: float, **environment: str) -> dict[str, Any]:
    """Runs a step and prints its output. Returns its exit status, seconds and last lines.

    A step that takes longer than ``timeout`` is killed and has status 124.
    """
    start = time.perf_counter()
    lines: list[str] = []
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": SEARCHED, "PYTHONUNBUFFERED": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    timer = Timer(timeout, process.kill)
    timer.start()
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip())
    status = process.wait()
    timed_out = not timer.is_alive()
    timer.cancel()
    return {
        "status": 124 if timed_out else status,
        "seconds": round(time.perf_counter() - start, 1),
        "last": [line for line in lines if line][-LINES_KEPT:],
    }


def build() -> dict[str, Any]:
    """Builds the extension, with CUDA kernels for this card only."""
    return run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        timeout=400,
        LEBM_KERNELS_NATIVE="1",
        LEBM_KERNELS_CUDA="1",
        TORCH_CUDA_ARCH_LIST=os.environ.get("TORCH_CUDA_ARCH_LIST", "native"),
    )


def tests(timeout: float, arguments: Sequence[str]) -> dict[str, Any]:
    """Runs the operators' tests on the GPU kernels, and tests/kernels/test_gpu.py."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-k",
        "gpu",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:benchmark",
    ]
    # A test spends more time on the host than on the card.
    if find_spec("xdist") is not None:
        command += ["-n", str(max(1, min(MOST_PROCESSES, (os.cpu_count() or 1) // 2)))]
    chosen = arguments or [str(next((ROOT / "tests").rglob(f"test_{name}.py"))) for name in TESTS]
    return run([*command, *chosen], timeout, LEBM_KERNELS_EXPECT_GPU="1")


def sanitizer(timeout: float) -> dict[str, dict[str, Any]]:
    """Runs compute-sanitizer on small problems for every kernel; empty if it is not installed."""
    if (found := shutil.which("compute-sanitizer")) is None:
        return {}
    command = [sys.executable, str(HERE / "gpu_exercise.py")]
    return {
        tool: run(
            [found, "--tool", tool, "--error-exitcode", "9", *command],
            timeout=timeout / len(SANITIZER_TOOLS),
            # Each tensor then has its own allocation, and an access beyond it is an error.
            PYTORCH_NO_CUDA_MEMORY_CACHING="1",
        )
        for tool in SANITIZER_TOOLS
    }


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON and the PNG")
    parser.add_argument("--minutes", type=float, default=9.5, help="about, in total")
    parser.add_argument("--pytest", default="", help="files and options of pytest, as one argument")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the steps and write their results."""
    options = parse(arguments)
    if not torch.cuda.is_available():
        print("gpu_check.py: error: PyTorch sees no CUDA GPU here", file=sys.stderr)
        return 2
    end = time.perf_counter() + 60 * options.minutes
    card = re.sub(r"[^A-Za-z0-9]+", "-", torch.cuda.get_device_name(0)).strip("-").lower()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{card}-check.json"
    found: dict[str, Any] = {}

    def left(fraction: float) -> float:
        return max(30.0, fraction * (end - time.perf_counter()))

    def benchmark() -> dict[str, Any]:
        figures = options.out / f"{card}.json"
        seconds = left(0.3)
        command = [sys.executable, str(HERE / "gpu_benchmark.py"), "--json", str(figures)]
        return run([*command, "--seconds", str(seconds)], timeout=seconds + 60)

    for step in STEPS:
        if step not in options.steps:
            continue
        print(f"--- {step}", flush=True)
        if step == "build":
            found[step] = build()
        elif step == "benchmark":
            found[step] = benchmark()
        elif step == "tests":
            found[step] = tests(left(0.8), options.pytest.split())
        else:
            found |= sanitizer(left(0.95))
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for step, result in found.items():
        verdict = "ok" if result["status"] == 0 else f"FAILED with status {result['status']}"
        print(f"{step}: {verdict} in {result['seconds']} s")
    print(f"wrote {path}")
    return 0 if all(result["status"] == 0 for result in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
