"""Imports within the package run one way, and importing it is cheap and can be repeated."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lebm_kernels"
IMPORTED_AGAIN = ROOT / "tests" / "support" / "imported_again.py"

# Rooms are the modules and folders directly in the package. A room may import itself, the rooms on
# its line, the rooms on the right, and all that those may import.
ORDER = {
    "reference arguments checks extras files torch_internals": "",
    "backends": "reference",
    "ops": "backends",
    "soft_minimum": "reference",
    "soft_eager": "backends soft_minimum",
    "functional __init__": "ops soft_eager",
    "models": "functional",
    "training": "models",
    "benchmarks": "functional",
    "diagnostics": "benchmarks",
    "figures": "training diagnostics",
    "practicum": "figures",
    "cli __main__": "practicum",
}

# Importing the package must not import these: each is slow, and few users need it.
HEAVY = ("matplotlib", "rich", "scipy", "sympy", "tqdm", "triton", "typer")

# Prints the CPU seconds of the import and which of HEAVY came with it.
MEASURE = f"""
import sys, time, torch
before = set(sys.modules)
start = time.process_time()
import lebm_kernels
seconds = time.process_time() - start
print(seconds, *sorted((set(sys.modules) - before) & set({HEAVY!r})))
"""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below this one, without those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from run_time_nodes(child)


def imports(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """The package's modules that are imported, each with the name that is taken from it, if any."""
    for node in run_time_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in MODULES:
                    yield alias.name, None
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            if node.module not in MODULES:
                continue
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield (submodule, None) if submodule in MODULES else (node.module, alias.name)


TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
IMPORTS = {name: list(imports(tree)) for name, tree in TREES.items()}


def allowed_rooms() -> dict[str, set[str]]:
    """For each room the rooms that it may import."""
    allowed: dict[str, set[str]] = {}
    for line, below in ORDER.items():
        reachable = set(line.split()).union(*(allowed[name] for name in below.split()))
        allowed |= dict.fromkeys(line.split(), reachable)
    return allowed


def test_each_room_has_a_place_in_the_order() -> None:
    assert {room(name) for name in MODULES} <= allowed_rooms().keys()


def test_imports_follow_the_order_of_the_rooms() -> None:
    allowed = allowed_rooms()
    wrong = [
        f"{name} imports {imported}"
        for name, found in IMPORTS.items()
        for imported, _ in found
        if room(imported) not in allowed[room(name)]
    ]
    assert not wrong


def test_no_circle_of_imports() -> None:
    graph = {name: {imported for imported, _ in found} for name, found in IMPORTS.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_imports_name_the_defining_module() -> None:
    # A name taken from a package that only passes it on would hide where the import leads.
    passed_on = {
        module: {alias for _, alias in IMPORTS[module]}
        for module, path in MODULES.items()
        if path.name == "__init__.py"
    }
    wrong = [
        f"{name} takes {alias} from {imported}"
        for name, found in IMPORTS.items()
        for imported, alias in found
        if alias is not None and alias in passed_on.get(imported, ())
    ]
    assert not wrong


def test_the_import_is_cheap() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", MEASURE], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(3)
    ]
    assert runs[0][1:] == []
    # CPU time, and the least of three: other programs on the machine slow the import too.
    assert min(float(seconds) for seconds, *_ in runs) < 0.2


def test_the_package_can_be_imported_again() -> None:
    # Not in pytest's own process: the other tests hold the modules of the first import. Warnings of
    # PyTorch's own modules, as in pyproject.toml.
    ignored = ["-W", "ignore::DeprecationWarning", "-W", "ignore::FutureWarning"]
    command = [sys.executable, "-W", "error", *ignored, str(IMPORTED_AGAIN)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split() == ["works"], done.stderr
