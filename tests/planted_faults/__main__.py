"""Whether the tests find faults: ``python tests/planted_faults [PART OF A NAME]``.

Each fault is planted in a copy of the checkout, where the tests that are there for it must fail: of
the same cases that `make test` runs, or of all combinations under ``LEBM_KERNELS_TEST_ALL=1``. For
a fault in the native kernels the copy's extension is built anew, with the baseline alone.
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

ROOT = Path(__file__).resolve().parents[2]


GRADIENTS = "ops/test_gradients.py"


class Fault(NamedTuple):
    """What is replaced (a regular expression, which must match once), and who must see it."""

    backend: str
    name: str
    text: str
    instead: str
    tests: str  # files below tests/


PLACES = {
    "chunked": "lebm_kernels/backends/*.py",
    "emulated_cuda": "csrc/cuda/**/*.cuh",
    "native": "csrc/cpu/**/*.h",
}
"""The files of each backend."""

FAULTS = (
    Fault(
        "chunked",
        "the last query of several tiles is left out",
        r"min\(start \+ step, size\)",
        "min(start + step, size - (start > 0))",
        "ops/test_gradients.py ops/test_large_grids.py",
    ),
    Fault(
        "chunked",
        "only the last tile of latents counts",
        r"torch\.logaddexp\(log_sum, (torch\.logsumexp\(.*\)\.double\(\))\)",
        r"\1",
        "ops/test_accuracy.py",
    ),
    Fault(
        "chunked",
        "an index is that in its tile",
        r"index \+ latent\.start",
        "index",
        "ops/test_posterior.py ops/test_large_grids.py kernels/test_few_queries.py",
    ),
    Fault(
        "chunked",
        "uniform weights of one latent too many",
        r"-math\.log\(num_latents\)",
        "-math.log(num_latents + 1)",
        "ops/test_closed_forms.py",
    ),
    Fault(
        "chunked",
        "a dropped latent is kept",
        r"if tile\.log_weight is not None:(\s+energy = energy\.masked_fill)",
        r"if False:\1",
        "ops/test_accuracy.py",
    ),
    Fault("chunked", "dF/dy has the wrong sign", r"2 \* residual", "-2 * residual", GRADIENTS),
    Fault("chunked", "dF/dscale has the wrong sign", r"-2 \* stretch", "2 * stretch", GRADIENTS),
    Fault(
        "chunked",
        "dF/dbeta has the wrong sign",
        r"-curvature / z / z",
        "curvature / z / z",
        GRADIENTS,
    ),
    Fault(
        "chunked", "dF/ddecoded has the wrong sign", r"-= 2 \* (\w+\.sum)", r"+= 2 * \1", GRADIENTS
    ),
    Fault(
        "chunked",
        "dF/dlog_weight has the wrong sign",
        r"log_weight\[grid, latent\] \+=",
        "log_weight[grid, latent] -=",
        GRADIENTS,
    ),
    Fault(
        "chunked",
        "dF/dlatent_energy has the wrong sign",
        r"latent_energy\[grid, latent\] \+=",
        "latent_energy[grid, latent] -=",
        GRADIENTS,
    ),
    Fault(
        "chunked",
        "<E> is recovered from F and KL",
        r"energy = normaliser\.least\.double\(\) \+ above / mass\[\.\.\., 0\]",
        "energy = normaliser.least.double() + value_gap - above * 0",
        "ops/test_units.py",
    ),
    Fault(
        "chunked",
        "squares of energies without a unit",
        r"gap\.mul_\(z\[:, :, None\]\.to\(gap\.dtype\)\)",
        "gap",
        "ops/test_units.py",
    ),
    Fault(
        "chunked",
        "dF/dbeta cancels where beta is small",
        r"(spread \+= )torch\.where\(close, near, far\)",
        r"\1far",
        GRADIENTS,
    ),
    Fault(
        "chunked",
        "no special form where beta is tiny",
        r"hot = \(beta \* .*",
        "hot = beta == 0",
        "ops/test_bad_numbers.py ops/test_fuzz.py",
    ),
    Fault(
        "chunked",
        "NaN leaves its row",
        r"return torch\.where\(excess == torch\.inf, torch\.inf, t\)",
        "return t + torch.where(t.isnan().any(1, keepdim=True), torch.nan, 0.0)",
        "ops/test_nan.py",
    ),
    Fault(
        "chunked",
        "a negative beta is taken",
        r"t = torch\.where\(beta >= 0, t, torch\.nan\)",
        "pass",
        "ops/test_nan.py",
    ),
    Fault(
        "emulated_cuda",
        "dF/dy has the wrong sign",
        r"T\(2 \* residual / (\w+)\)",
        r"T(-2 * residual / \1)",
        GRADIENTS,
    ),
    Fault(
        "emulated_cuda",
        "dF/ddecoded has the wrong sign",
        r"T\(-2 \* sum\)",
        "T(2 * sum)",
        GRADIENTS,
    ),
    Fault(
        "emulated_cuda",
        "log-weights are not normalised",
        r" - normaliser\[2 \* b \+ 1\]\) \* kLog2E",
        ") * kLog2E",
        "ops/test_accuracy.py",
    ),
    Fault(
        "emulated_cuda",
        "many dimensions: the last latent is left out",
        r"(\? begin \+ task\.plan\.\w+ : p\.N);",
        r"\1 - 1;",
        "ops/test_shapes.py",
    ),
    Fault(
        "emulated_cuda",
        "the last latent has no gradient",
        r"const bool inside = n < p\.N;",
        "const bool inside = n < p.N - 1;",
        GRADIENTS,
    ),
    Fault(
        "native",
        "dF/dy has the wrong sign",
        r"T\(2 \* v\.residual\[d\]",
        "T(-2 * v.residual[d]",
        GRADIENTS,
    ),
    Fault(
        "native",
        "dF/dlatent_energy has the wrong sign",
        r"T\(unit \* sums\.r_all\[j\]\)",
        "T(-unit * sums.r_all[j])",
        GRADIENTS,
    ),
    Fault(
        "native",
        "dF/dlog_weight has the wrong sign",
        r"\(absent \? 0 : sums\.l_all\[j\]\) \+ of_weight",
        "(absent ? 0 : -sums.l_all[j]) + of_weight",
        GRADIENTS,
    ),
    Fault(
        "native",
        "posterior weights of any size count",
        r"lowest = -74\.0f",
        "lowest = -125.0f",
        "kernels/test_subnormals.py",
    ),
    Fault(
        "native",
        "soft minima: the logarithm of a sum near 1",
        r"log_sum > kSmallL \? __builtin_log1p\(deficit_of\(row, s\)\) : log_sum",
        "log_sum",
        "kernels/test_soft_minima.py",
    ),
    Fault(
        "native",
        "soft minima: dropped latents count for the minimum",
        r"if \(log2_w && log2_w\[n\] == -Exponent<T>::infinity\) continue;",
        "",
        "kernels/test_soft_minima.py",
    ),
    Fault(
        "native",
        "soft minima: the last piece of a long row is not joined",
        r"for \(int64_t i = 1; i < count; \+\+i\) join",
        "for (int64_t i = 1; i < count - 1; ++i) join",
        "kernels/test_soft_minima.py",
    ),
    Fault(
        "native",
        "soft minima: products of any size count",
        r"least / \(size > 1 \? 1 : size > 0x1p-52 \? size : 0x1p-52\)",
        "least",
        "kernels/test_subnormals.py",
    ),
)


def copy_to(to: Path) -> None:
    """Copy the files that git tracks, or would, and the extension where it is built."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in [*filter(None, listed.split("\0")), "lebm_kernels/_native.abi3.so"]:
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
        raise SystemExit(f"{fault.name}: exit status {done.returncode} of pytest\n{done.stdout}")
    found = re.search(r"(\d+) failed", done.stdout)
    return int(found[1]) if found else 0


def plant(copy: Path, fault: Fault) -> int:
    """The number of tests that fail for the fault; the copy is as before afterwards."""
    texts = {path: path.read_text(encoding="utf-8") for path in copy.glob(PLACES[fault.backend])}
    places = [path for path, text in texts.items() if re.search(fault.text, text)]
    if len(places) != 1 or len(re.findall(fault.text, texts[places[0]])) != 1:
        raise SystemExit(f"{fault.backend}: {fault.text!r} must match once, in one file: {places}")
    path, text = places[0], texts[places[0]]
    path.write_text(re.sub(fault.text, fault.instead, text), encoding="utf-8")
    try:
        if fault.backend == "native":
            build(copy)
        return failures(copy, fault)
    finally:
        path.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", default="", help="of a fault's backend and name")
    part = parser.parse_args().part
    chosen = [fault for fault in FAULTS if part in f"{fault.backend}: {fault.name}"]
    missed = 0
    with tempfile.TemporaryDirectory(prefix="lebm-planted-faults-") as folder:
        copy = Path(folder)
        copy_to(copy)
        for fault in chosen:
            began = time.monotonic()
            number = plant(copy, fault)
            missed += number == 0
            seconds = time.monotonic() - began
            print(f"{number:5} failed  {fault.backend}: {fault.name} ({seconds:.0f} s)", flush=True)
    raise SystemExit(f"{missed} missed" if missed else None)


if __name__ == "__main__":
    main()
