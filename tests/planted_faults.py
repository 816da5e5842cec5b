"""Whether the tests find faults: ``python tests/planted_faults.py [PART OF A NAME]``.

Each fault is planted in a copy of the checkout, where the tests that are there for it must fail.
The copy's extension has the baseline kernels alone; the emulator compiles the CUDA kernels anew.
Like every run of the tests this one takes cases with all pairs of parameters, and all combinations
under ``LEBM_KERNELS_TEST_ALL=1``.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Fault(NamedTuple):
    """What is replaced (a regular expression, which must match once), and who must see it."""

    name: str
    file: str
    text: str
    instead: str
    tests: str  # files below tests/
    backend: str


def chunked(name: str, text: str, instead: str, tests: str) -> Fault:
    """A fault of the chunked backend."""
    return Fault(
        f"chunked: {name}", "lebm_kernels/backends/chunked.py", text, instead, tests, "chunked"
    )


FAULTS = (
    chunked(
        "the last query of several tiles is left out",
        r"min\(start \+ step, size\)",
        "min(start + step, size - (start > 0))",
        "ops/test_gradients.py ops/test_large_grids.py",
    ),
    chunked(
        "only the last tile of latents counts",
        r"torch\.logaddexp\(log_sum, (torch\.logsumexp\(.*\)\.double\(\))\)",
        r"\1",
        "ops/test_accuracy.py",
    ),
    chunked(
        "an index is that in its tile",
        r"index \+ latent\.start",
        "index",
        "ops/test_posterior.py ops/test_large_grids.py kernels/test_few_queries.py",
    ),
    chunked(
        "uniform weights of one latent too many",
        r"-math\.log\(num_latents\)",
        "-math.log(num_latents + 1)",
        "ops/test_closed_forms.py ops/test_accuracy.py",
    ),
    chunked(
        "a dropped latent is kept",
        r"if tile\.log_weight is not None:(\s+energy = energy\.masked_fill)",
        r"if False:\1",
        "ops/test_accuracy.py ops/test_nan.py",
    ),
    chunked(
        "the gradient of y has the wrong sign",
        r"2 \* residual",
        "-2 * residual",
        "ops/test_gradients.py",
    ),
    chunked(
        "the gradient of scale has the wrong sign",
        r"-2 \* stretch",
        "2 * stretch",
        "ops/test_gradients.py",
    ),
    chunked(
        "the gradient of beta has the wrong sign",
        r"-\(beta \* delta\)\.exp\(\)",
        "(beta * delta).exp()",
        "ops/test_gradients.py",
    ),
    chunked(
        "the gradient of decoded has the wrong sign",
        r"-= 2 \* pull\.sum",
        "+= 2 * pull.sum",
        "ops/test_gradients.py",
    ),
    chunked(
        "the gradient of log_weight has the wrong sign",
        r"log_weight\[grid, latent\] \+=",
        "log_weight[grid, latent] -=",
        "ops/test_gradients.py",
    ),
    chunked(
        "the gradient of latent_energy has the wrong sign",
        r"latent_energy\[grid, latent\] \+=",
        "latent_energy[grid, latent] -=",
        "ops/test_gradients.py",
    ),
    chunked(
        "a gradient of beta that cancels where beta is small",
        r"(spread \+= )torch\.where\(tau\.abs\(\) <= 0\.5, near, far\)",
        r"\1far",
        "ops/test_gradients.py",
    ),
    chunked(
        "no special form where beta is tiny",
        r"hot = \(beta \* .*",
        "hot = beta == 0",
        "ops/test_accuracy.py",
    ),
    chunked(
        "NaN leaves its row",
        r"return torch\.where\(excess == torch\.inf, torch\.inf, t\)",
        "return t + torch.where(t.isnan().any(1, keepdim=True), torch.nan, 0.0)",
        "ops/test_nan.py ops/test_bad_numbers.py",
    ),
    chunked(
        "a negative beta is taken",
        r"t = torch\.where\(beta >= 0, t, torch\.nan\)",
        "pass",
        "ops/test_nan.py ops/test_bad_numbers.py",
    ),
)


def copied(to: Path) -> None:
    """The files of the checkout that git tracks, or would."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def build(copy: Path) -> None:
    """The extension with the kernels of the baseline alone; unoptimised, it compiles sooner."""
    environment = os.environ | {
        "LEBM_KERNELS_NATIVE": "1",
        "LEBM_KERNELS_CUDA": "0",
        "CXXFLAGS": "-DLEBM_BASELINE_ALONE -O1",
    }
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=copy, env=environment, check=True)


def failures(copy: Path, fault: Fault) -> int:
    """How many of the fault's tests fail in the copy."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:benchmark", "-p", "no:cacheprovider"]
    command += ["--tb=no", "-k", f"[{fault.backend}", *(f"tests/{x}" for x in fault.tests.split())]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{fault.name}: pytest's exit status is {done.returncode}\n{done.stdout}")
    found = re.search(r"(\d+) failed", done.stdout)
    return int(found[1]) if found else 0


def plant(copy: Path, fault: Fault) -> int:
    """The number of tests that fail for the fault; the copy is as before afterwards."""
    path = copy / fault.file
    right = path.read_text(encoding="utf-8")
    wrong, count = re.subn(fault.text, fault.instead, right)
    if count != 1:
        raise SystemExit(f"{fault.name}: {fault.file} has {count} matches of {fault.text!r}")
    path.write_text(wrong, encoding="utf-8")
    try:
        if fault.backend == "native":
            build(copy)
        return failures(copy, fault)
    finally:
        path.write_text(right, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", default="", help="of the faults' names")
    chosen = [fault for fault in FAULTS if parser.parse_args().part in fault.name]
    with tempfile.TemporaryDirectory(prefix="lebm-planted-faults-") as folder:
        copy = Path(folder)
        copied(copy)
        if any(fault.backend == "native" for fault in chosen):
            build(copy)
        missed = []
        for fault in chosen:
            began = time.monotonic()
            number = plant(copy, fault)
            print(f"{number:5} failed  {fault.name} ({time.monotonic() - began:.0f} s)", flush=True)
            if not number:
                missed.append(fault.name)
    raise SystemExit("\n".join(f"MISSED: {name}" for name in missed) or None)


if __name__ == "__main__":
    main()
