"""Test a built wheel in another environment: ``python tests/packaging/wheel.py dist/*.whl``.

    python tests/packaging/wheel.py WHEEL [--python OTHER/bin/python] [--tests shapes nan ...]

Checks the wheel's contents, then installs it into an empty folder with that interpreter's pip. A
program checks that nothing is loaded from the source tree; then the operators' tests run on the
installed wheel, from a copy of ``tests/``. The interpreter needs PyTorch and the packages that the
tests import; nothing is installed into it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from email import message_from_bytes
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

TESTS = (
    "accuracy",
    "closed_forms",
    "gradients",
    "nan",
    "pytorch_contract",
    "posterior",
    "shapes",
    "compile",
    "second_order",
)

# Prints the library, or fails an assertion. argv: the folder of the installed wheel, and the source
# tree, from which no file may come.
PROBE = """
import os, pathlib, sys

site, tree = map(pathlib.Path, sys.argv[1:])
opened = set()
sys.addaudithook(
    lambda event, arguments: event == "open"
    and isinstance(arguments[0], (str, bytes))
    and opened.add(os.path.abspath(os.fsdecode(arguments[0])))
)
import torch

import lebm_kernels

assert site in pathlib.Path(lebm_kernels.__file__).parents, lebm_kernels.__file__
row = {row.name: row for row in lebm_kernels.backends()}["native"]
assert "cpu" in row.devices, row
y = torch.randn(300, 2, requires_grad=True)
lebm_kernels.free_energy(y, torch.randn(200, 2), backend="native").sum().backward()
assert y.grad.isfinite().all()
with open("/proc/self/maps") as maps:
    mapped = {line.split(None, 5)[5].strip() for line in maps if len(line.split(None, 5)) == 6}
(library,) = (name for name in mapped if name.endswith("/_native.abi3.so"))
assert site in pathlib.Path(library).parents, library
strange = [name for name in opened | mapped if tree in pathlib.Path(name).parents]
strange = [name for name in strange if pathlib.Path(sys.prefix) not in pathlib.Path(name).parents]
assert not strange, strange
print(f"{library} under Python {sys.version.split()[0]}, PyTorch {torch.__version__}: {row.reason}")
"""


def check_contents(wheel: Path) -> None:
    """The wheel's tags, and that it holds the package, its library and nothing else.

    Raises:
        SystemExit: otherwise; the message says what is wrong.
    """

    def require(true: bool, what: str) -> None:
        if not true:
            raise SystemExit(f"{wheel.name}: {what}")

    name, version, python, abi, platform = wheel.stem.split("-")
    require((name, python, abi) == ("lebm_kernels", "cp310", "abi3"), "must be tagged cp310-abi3")
    require(platform != "any", "must be of one platform")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        about = f"{name}-{version}.dist-info"
        metadata = message_from_bytes(archive.read(f"{about}/METADATA"))
        described = message_from_bytes(archive.read(f"{about}/WHEEL"))
        require(archive.testzip() is None, "is damaged")
    require(metadata["Requires-Python"] == ">=3.10", "must ask for Python >= 3.10")
    require(described.get_all("Tag") == [f"cp310-abi3-{platform}"], "must have that tag inside")
    require({path.partition("/")[0] for path in names} == {name, about}, "must hold the package")
    for path in ("_native.abi3.so", "py.typed", "__init__.py", "cli/__init__.py"):
        require(f"{name}/{path}" in names, f"must hold {path}")
    require(any(path.endswith("/peak.cpp") for path in names), "must hold peak.cpp")
    kinds = {Path(path).suffix for path in names if path.startswith(f"{name}/")}
    allowed = {".py", ".so", ".typed", ".txt", ".cpp"}
    require(kinds <= allowed, f"must hold no {sorted(kinds - allowed)}")
    mine = {f"{name}/{path.relative_to(ROOT / name)}" for path in (ROOT / name).rglob("*.py")}
    held = {path for path in names if path.endswith(".py")}
    require(held == mine, f"must hold the sources: {sorted(held ^ mine)}")
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1e6:.1f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--python", default=sys.executable, help="the interpreter to run it with")
    parser.add_argument("--tests", nargs="*", default=TESTS, help="tests/ops/test_NAME.py each")
    chosen = parser.parse_args()
    wheel = chosen.wheel.resolve()
    check_contents(wheel)
    with tempfile.TemporaryDirectory(prefix="lebm-wheel-") as name:
        folder = Path(name).resolve()
        site, away = folder / "site", folder / "elsewhere"
        install = [chosen.python, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
        subprocess.run([*install, "--target", str(site), str(wheel)], check=True)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(HERE.parent, away / "tests", ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", away)  # what pytest is to take for errors
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("LEBM_KERNELS_", "PYTHON", "LD_"))
        }
        environment |= {"PYTHONPATH": str(site), "LEBM_KERNELS_EXPECT_NATIVE": "1"}

        def run(*arguments: str) -> None:
            command = [chosen.python, *arguments]
            done = subprocess.run(command, cwd=away, env=environment)
            if done.returncode:
                raise SystemExit(f"{wheel.name}: exit status {done.returncode}")

        run("-c", PROBE, str(site), str(ROOT))
        files = [f"tests/ops/test_{test}.py" for test in chosen.tests]
        # The emulator's kernels are no part of the wheel.
        pytest = ["-m", "pytest", "-q", "-p", "no:benchmark", "-p", "no:cacheprovider"]
        run(*pytest, "-k", "not emulated_cuda", *files)
    print(f"{wheel.name}: all checks passed")


if __name__ == "__main__":
    main()
