"""How the package is built, installed, and imported without its optional dependencies.

A small script replaces the compiler, so these tests take seconds and give the same result on every
machine. Every test of the native backend shows that the real sources compile.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable, Sequence
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
import setuptools
import torch

import lebm_kernels
from lebm_kernels import extras
from lebm_kernels.extras import PACKAGES, MissingExtraError, needs
from lebm_kernels.figures import overview_figure
from lebm_kernels.models import Ellipse, infer
from lebm_kernels.training import TrainConfig, digits, ellipse_data, train

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path("lebm_kernels", "_native.abi3.so")
REASON = Path("lebm_kernels", "_native_build.txt")
CUDA_REASON = Path("lebm_kernels", "_cuda_build.txt")
RECORD = Path("lebm_kernels", "_native_compilers.txt")

# Writes the file after -o and appends its name to calls.txt. Reports an error in a source that
# contains BROKEN. Writes the headers that a source includes to the dependency file after -MF.
FAKE_COMPILER = """#!{python}
import pathlib, re, sys
arguments = sys.argv[1:]
if arguments == ["--version"]:
    print("Copyright 2026\\n  fakecc (made up) 7.8.9\\nfor 3.2.1")
    sys.exit()
output = pathlib.Path(arguments[arguments.index("-o") + 1])
with open({calls!r}, "a") as calls:
    print(output.name, file=calls)
if "-c" in arguments:
    source = pathlib.Path(arguments[arguments.index("-c") + 1])
    text = source.read_text()
    if "BROKEN" in text:
        print(*[f"note {{number}}" for number in range(40)], sep="\\n", file=sys.stderr)
        sys.exit(f"{{source}}:1: error: BROKEN was not declared")
    headers = [source.parent / name for name in re.findall('#include "(.*?)"', text)]
    rule = f"{{output}}: {{source}} " + " ".join(map(str, headers))
    pathlib.Path(arguments[arguments.index("-MF") + 1]).write_text(rule)
output.write_text("built")
"""

Build = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources, with a small csrc/ in place of the real one."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    ignored = shutil.ignore_patterns(
        "__pycache__", "*.so", *(path.name for path in (REASON, CUDA_REASON, RECORD))
    )
    shutil.copytree(ROOT / "lebm_kernels", tree / "lebm_kernels", ignore=ignored)
    kernels = tree / "csrc" / "cpu"
    kernels.mkdir(parents=True)
    (tree / "csrc" / "bindings.cpp").write_text("// no header\n")
    (kernels / "rows.h").write_text("// a header\n")
    (kernels / "rows.cpp").write_text('#include "rows.h"\n')
    compiler = tree / "compiler"
    calls = str(tree / "calls.txt")
    compiler.write_text(FAKE_COMPILER.format(python=sys.executable, calls=calls))
    compiler.chmod(0o755)
    return tree


@pytest.fixture
def build(tree: Path) -> Build:
    """Runs setup.py in the tree, with the fake compiler by default."""

    def build(
        *arguments: str,
        compiler: str | None = None,
        native: str = "auto",
        cuda: str = "0",
        cuda_home: str = "/nonexistent/cuda",
        python: str = sys.executable,
        **variables: str,
    ) -> subprocess.CompletedProcess[str]:
        arguments = arguments or ("build_ext", "--inplace")
        environment = os.environ | {
            "CXX": compiler or str(tree / "compiler"),
            "LEBM_KERNELS_NATIVE": native,
            "LEBM_KERNELS_CUDA": cuda,
            "CUDA_HOME": cuda_home,
            **variables,
        }
        return subprocess.run(
            [python, "setup.py", "-q", *arguments],
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
        )

    return build


def compiled(tree: Path) -> set[str]:
    """The files that the fake compiler made since the last call."""
    calls = tree / "calls.txt"
    names = set(calls.read_text().split()) if calls.exists() else set()
    calls.unlink(missing_ok=True)
    return names


def make_newer(path: Path) -> None:
    """Set a file's time later than everything just built, whatever the clock's resolution."""
    later = path.stat().st_mtime + 100
    os.utime(path, (later, later))


def test_version_is_the_same_everywhere() -> None:
    assert metadata.version("lebm-kernels") == lebm_kernels.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\d+\.\d+\.\d+)", changelog, flags=re.MULTILINE)
    assert headings[0] == lebm_kernels.__version__


def test_what_is_heavy_is_imported_where_it_is_used() -> None:
    # PyTorch itself may import some of them.
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "for name in ('lebm_kernels', 'lebm_kernels.cli'):\n"
        "    __import__(name)\n"
        "    print(*set(sys.modules) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    package, command_line = (set(line.split()) for line in done.stdout.splitlines())
    unwanted = {"matplotlib", "scipy", "sklearn", "tqdm", "triton"}
    assert "lebm_kernels" in package
    assert not {name.partition(".")[0] for name in package} & {*unwanted, "click", "rich", "typer"}
    # --help and a mistyped option wait for no model, figure or benchmark either.
    assert "lebm_kernels.cli.bench" in command_line
    assert not {name.partition(".")[0] for name in command_line} & unwanted
    ours = ("models", "training", "figures", "practicum", "benchmarks.compare", "diagnostics")
    assert all(find_spec(f"lebm_kernels.{name}") for name in ours)
    assert not command_line & {f"lebm_kernels.{name}" for name in ours}


def test_builds_the_library_beside_the_sources(tree: Path, build: Build) -> None:
    done = build()
    assert done.returncode == 0, done.stderr
    assert (tree / LIBRARY).read_text() == "built"
    assert not (tree / REASON).exists()


def test_the_compiler_and_its_flags_are_written_down(
    tree: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXXFLAGS", "-march=fake -DNAME='two words'")
    assert build().returncode == 0
    lines = (tree / RECORD).read_text().splitlines()
    facts = dict(line.split(": ", 1) for line in lines)
    assert facts["compiler"] == "fakecc (made up) 7.8.9"
    assert facts["flags"].startswith("-std=c++17 ")
    assert facts["flags"].endswith("-march=fake '-DNAME=two words'")
    assert facts["PyTorch's headers"].split(".") == torch.__version__.split("+")[0].split(".")
    # A library that is gone leaves no record behind.
    assert build(native="0").returncode == 0
    assert not (tree / RECORD).exists()


def test_builds_again_only_what_changed(tree: Path, build: Build) -> None:
    build()
    assert compiled(tree) == {"bindings.o", "rows.o", "_native.abi3.so"}
    build()
    assert compiled(tree) == set()
    make_newer(tree / "csrc" / "cpu" / "rows.h")
    build()
    assert compiled(tree) == {"rows.o", "_native.abi3.so"}


def test_without_a_compiler_the_build_succeeds_and_says_why(tree: Path, build: Build) -> None:
    assert build().returncode == 0
    done = build(compiler="/nonexistent/c++")
    assert done.returncode == 0
    assert "/nonexistent/c++" in done.stderr
    assert "/nonexistent/c++" in (tree / REASON).read_text()
    assert not (tree / LIBRARY).exists(), "the library of an earlier build must not stay"


def test_progress_is_one_line_per_file(tree: Path, build: Build) -> None:
    lines = build(MAX_JOBS="1").stderr.splitlines()
    steps = [line.split("] ")[1] for line in lines if line.startswith("[")]
    assert steps[:2] == ["csrc/bindings.cpp", "csrc/cpu/rows.cpp"]
    assert steps[2].endswith(LIBRARY.name)
    assert len(steps) == 3
    assert not any("-std=c++17" in line for line in lines)
    assert "no work to do" not in build().stderr


def test_v_1_shows_the_commands(build: Build) -> None:
    assert build(V="1").stderr.count("-std=c++17") == 2


def test_a_failure_shows_the_command_and_all_that_the_compiler_printed(
    tree: Path, build: Build
) -> None:
    (tree / "csrc" / "cpu" / "rows.cpp").write_text("BROKEN")
    lines = build(V="").stderr.splitlines()
    (command,) = (line for line in lines if "-std=c++17" in line)
    assert "csrc/cpu/rows.cpp" in command
    after = lines[lines.index(command) + 1 :]
    assert after[:41] == [
        *(f"note {number}" for number in range(40)),
        "csrc/cpu/rows.cpp:1: error: BROKEN was not declared",
    ]


def test_without_ninja_the_build_succeeds_and_says_why(
    tree: Path, build: Build, tmp_path: Path
) -> None:
    # An environment whose scripts folder has no ninja, with the packages of this one.
    venv.create(tmp_path / "bare", symlinks=True)
    done = build(
        python=str(tmp_path / "bare" / "bin" / "python"),
        PATH="",
        PYTHONPATH=str(Path(setuptools.__file__).parent.parent),
    )
    assert done.returncode == 0, done.stderr
    assert "ninja was not found (pip install ninja)" in (tree / REASON).read_text()


def test_a_failing_compiler_is_quoted(tree: Path, build: Build) -> None:
    source = tree / "csrc" / "cpu" / "rows.cpp"
    source.write_text("BROKEN")
    done = build()
    assert done.returncode == 0
    assert "error: BROKEN was not declared" in done.stderr
    headline, *quoted = (tree / REASON).read_text().splitlines()
    assert "csrc/cpu/rows.cpp" in headline
    assert any("error: BROKEN was not declared" in line for line in quoted)

    source.write_text("// mended")
    assert build().returncode == 0
    assert (tree / LIBRARY).exists()
    assert not (tree / REASON).exists(), "the reason of an earlier build must not stay"


def test_native_1_makes_a_failure_fatal(tree: Path, build: Build) -> None:
    done = build(compiler="/nonexistent/c++", native="1")
    assert done.returncode != 0
    assert "/nonexistent/c++" in done.stderr
    assert "LEBM_KERNELS_NATIVE=1" in done.stderr


def test_native_0_leaves_the_extension_out(tree: Path, build: Build) -> None:
    assert build(native="0").returncode == 0
    assert "LEBM_KERNELS_NATIVE=0" in (tree / REASON).read_text()
    assert compiled(tree) == set()


def test_native_takes_no_other_value(build: Build) -> None:
    done = build(native="yes")
    assert done.returncode != 0
    assert "'yes'" in done.stderr


def test_without_nvcc_the_library_is_built_and_says_why(tree: Path, build: Build) -> None:
    assert build(cuda="auto").returncode == 0
    assert (tree / LIBRARY).exists()
    assert not (tree / REASON).exists()
    assert "no nvcc in /nonexistent/cuda" in (tree / CUDA_REASON).read_text()


def test_cuda_files_are_compiled_by_nvcc_and_linked_in(
    tree: Path, build: Build, tmp_path: Path
) -> None:
    (tree / "csrc" / "cuda").mkdir()
    (tree / "csrc" / "cuda" / "wide.cu").write_text("// kernels")
    home = tmp_path / "cuda"
    (home / "bin").mkdir(parents=True)
    shutil.copy(tree / "compiler", home / "bin" / "nvcc")
    # A folder that looks like a CUDA build of PyTorch.
    header = Path("include", "torch", "headeronly", "version.h")
    fake_torch = tmp_path / "site" / "torch"
    (fake_torch / header).parent.mkdir(parents=True)
    shutil.copy(Path(torch.__file__).parent / header, fake_torch / header)
    (fake_torch / "__init__.py").touch()
    (fake_torch / "lib").mkdir()
    (fake_torch / "lib" / "libtorch_cuda.so").touch()

    def build_with_cuda() -> str:
        done = build(
            cuda="1",
            cuda_home=str(home),
            PYTHONPATH=str(fake_torch.parent),
            TORCH_CUDA_ARCH_LIST="9.0+PTX",
            V="1",
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    commands = build_with_cuda().splitlines()
    (cuda,) = (line for line in commands if "wide.cu" in line)
    assert "code=sm_90 " in cuda
    assert "code=compute_90 " in cuda
    assert "-ltorch_cuda" in commands[-1]
    assert compiled(tree) == {"bindings.o", "rows.o", "wide.o", "_native.abi3.so"}
    assert not (tree / CUDA_REASON).exists()
    assert "nvcc: fakecc (made up) 7.8.9" in (tree / RECORD).read_text().splitlines()
    make_newer(tree / "csrc" / "cuda" / "wide.cu")
    build_with_cuda()
    assert compiled(tree) == {"wide.o", "_native.abi3.so"}


def test_cuda_0_leaves_the_kernels_out(tree: Path, build: Build) -> None:
    assert build(cuda="0").returncode == 0
    assert "LEBM_KERNELS_CUDA=0" in (tree / CUDA_REASON).read_text()


def test_cuda_1_makes_a_failure_fatal(build: Build) -> None:
    done = build(cuda="1")
    assert done.returncode != 0
    assert "LEBM_KERNELS_CUDA=1" in done.stderr
    assert "no nvcc" in done.stderr


def test_cuda_takes_no_other_value(build: Build) -> None:
    done = build(cuda="yes")
    assert done.returncode != 0
    assert "LEBM_KERNELS_CUDA" in done.stderr
    assert "'yes'" in done.stderr


def test_wheel_serves_every_cpython_and_holds_what_is_needed(tree: Path, build: Build) -> None:
    done = build("bdist_wheel", "--dist-dir", "dist")
    assert done.returncode == 0, done.stderr
    (wheel,) = (tree / "dist").glob("*.whl")
    assert wheel.name.startswith(f"lebm_kernels-{lebm_kernels.__version__}-cp310-abi3-")
    assert not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "lebm = lebm_kernels.__main__:main" in archive.read(entry_points).decode()
    assert {
        LIBRARY.as_posix(),
        RECORD.as_posix(),
        "lebm_kernels/py.typed",
        "lebm_kernels/cli/info.py",
    } <= names
    assert any(name.endswith("/peak.cpp") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"lebm_kernels"}


def test_wheel_without_a_compiler_carries_the_reason(tree: Path, build: Build) -> None:
    assert build("bdist_wheel", "-d", "dist", compiler="/nonexistent/c++").returncode == 0
    (wheel,) = (tree / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert LIBRARY.as_posix() not in archive.namelist()
        assert "/nonexistent/c++" in archive.read(REASON.as_posix()).decode()


def test_source_distribution_holds_all_sources(tree: Path, build: Build) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.rmtree(tree / "csrc")
    for name in ("csrc", "tests", "bench", "docs", ".ci"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    single = ("MANIFEST.in", "Makefile", "constraints.txt", "CHANGELOG.md", "CONTRIBUTING.md")
    for name in single:
        shutil.copy(ROOT / name, tree)
    folders = ("csrc", "tests", "bench", "docs", ".ci", "lebm_kernels")
    files = {path for name in folders for path in (tree / name).rglob("*") if path.is_file()}
    wanted = {path.relative_to(tree).as_posix() for path in files} | {"setup.py", *single}
    done = build("sdist", "--dist-dir", "dist")
    assert done.returncode == 0, done.stderr
    (archive,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {member.name.partition("/")[2] for member in opened if member.isfile()}
    assert wanted <= names, wanted - names


def test_a_library_that_is_named_and_missing_is_the_reason(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.so")
    environment = os.environ | {"LEBM_KERNELS_LIBRARY": missing}
    code = "import lebm_kernels; print(lebm_kernels.backends()[0].reason)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout == f"LEBM_KERNELS_LIBRARY names no file: {missing}\n"


def test_a_library_that_is_named_and_does_not_load_is_a_wrong_setting(tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_text("no library")
    environment = os.environ | {"LEBM_KERNELS_LIBRARY": str(broken)}
    command = [sys.executable, "-m", "lebm_kernels", "show"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "environment: LEBM_KERNELS_LIBRARY names a file that does not load: " in done.stderr
    assert str(broken) in done.stderr


OPTIONAL = ("matplotlib", "rich", "scipy", "tqdm", "typer")

# Trains without a progress bar after importing every module except the command line.
WITHOUT_EXTRAS = """
import importlib, pkgutil
import lebm_kernels
for module in pkgutil.walk_packages(lebm_kernels.__path__, "lebm_kernels.", onerror=lambda _: None):
    name = module.name.removeprefix("lebm_kernels.")
    if "triton" not in name and not name.startswith(("cli", "_native")):
        importlib.import_module(module.name)
from lebm_kernels.models import Ellipse, infer
from lebm_kernels.training import TrainConfig, ellipse_data, train
train(Ellipse(), ellipse_data(), TrainConfig(epochs=3))
"""


def run_without(
    missing: Sequence[str], code: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Runs code in a process where those packages cannot be imported."""
    block = f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"
    command = [sys.executable, "-c", block + code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_all_but_the_command_line_needs_torch_and_numpy_alone() -> None:
    done = run_without(OPTIONAL, WITHOUT_EXTRAS)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no progress bar without tqdm"


@pytest.mark.parametrize(
    ("missing", "project", "extra", "command"),
    [
        ("typer", "typer", "cli", ["train", "ellipse", "--epochs", "1"]),
        ("matplotlib", "matplotlib", "figures", ["train", "ellipse", "--epochs", "1"]),
        ("sklearn", "scikit-learn", "models", ["gtm"]),
    ],
)
def test_the_command_line_says_in_one_line_which_extra_is_missing(
    missing: str, project: str, extra: str, command: list[str], tmp_path: Path
) -> None:
    code = "import runpy; runpy.run_module('lebm_kernels', run_name='__main__')"
    done = run_without([missing], code, *command, "--output", str(tmp_path))
    assert done.returncode == 1
    message = f"{project} is not installed: pip install 'lebm_kernels[{extra}]'"
    assert done.stderr == f"lebm: error: {message}\n"


def import_command_line() -> None:
    import_module("lebm_kernels.cli")


def train_with_progress_bar() -> None:
    train(Ellipse(), ellipse_data(), TrainConfig(epochs=1), progress=True)


def draw() -> None:
    overview_figure(Ellipse(), ellipse_data())


def minimise_with_scipy() -> None:
    infer(Ellipse(), ellipse_data().y, method="cg")


@pytest.mark.parametrize(
    ("package", "extra", "use"),
    [
        ("typer", "cli", import_command_line),
        ("rich", "cli", import_command_line),
        ("tqdm", "cli", train_with_progress_bar),
        ("matplotlib", "figures", draw),
        ("scipy", "models", minimise_with_scipy),
        ("sklearn", "models", digits),
    ],
)
def test_an_import_names_the_extra_that_is_missing(
    package: str, extra: str, use: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.startswith("lebm_kernels.cli"):
            monkeypatch.delitem(sys.modules, name)
        if name.startswith(f"{package}."):
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    project = {"sklearn": "scikit-learn"}.get(package, package)
    message = re.escape(f"{project} is not installed: pip install 'lebm_kernels[{extra}]'")
    with pytest.raises(MissingExtraError, match=f"^{message}$"):
        use()


def test_a_broken_installation_is_not_taken_for_a_missing_extra() -> None:
    for installed in PACKAGES:
        for name in ("numpy", "rich._broken", "lebm_kernels.broken"):
            error = ModuleNotFoundError(f"No module named {name!r}", name=name)
            with pytest.raises(ModuleNotFoundError) as found, needs(installed):
                raise error
            assert found.value is error


def extra(name: str) -> list[str]:
    """What an extra of pyproject.toml installs; an array of strings of TOML is a list of Python."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(rf"^{name} = (\[.*?\]$)", text, flags=re.MULTILINE | re.DOTALL)
    assert found is not None
    return list(ast.literal_eval(found[1]))


def test_the_packages_of_an_extra_are_those_that_it_installs() -> None:
    for name, packages in PACKAGES.items():
        names = {re.split(r"[>=;\[]", x)[0] for x in extra(name)}
        projects = {extras._PROJECTS.get(package, package) for package in packages}
        assert names - {"lebm-kernels"} == projects
    # What times and tests the package needs the command line, the figures and SciPy.
    assert "lebm-kernels[cli,models]" in extra("bench")
    assert "lebm-kernels[figures]" in extra("cli")


def test_every_extra_that_an_error_can_name_exists() -> None:
    sources = (ROOT / "lebm_kernels").rglob("*.py")
    named = {x for path in sources for x in re.findall(r'needs\("(\w+)"\)', path.read_text())}
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = text.split("[project.optional-dependencies]\n")[1].partition("\n[")[0]
    assert named == {"cli", "figures", "models"}
    assert named <= set(re.findall(r"^(\w+) = ", extras, flags=re.MULTILINE))
