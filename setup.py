"""Builds the optional C++ extension. Everything else about the package is in pyproject.toml.

The extension uses PyTorch's stable ABI and no Python C API. It needs PyTorch's headers and a C++
compiler to be built; one binary then serves every CPython and every PyTorch >= 2.10. It is loaded
with ``torch.ops.load_library``, never imported.

Ninja compiles: it rebuilds what changed, runs several compilers at once and shows their progress.
Neither ready-made helper does that here. ``torch.utils.cpp_extension`` needs PyTorch imported, and
pip's build isolation hides PyTorch. Setuptools' compiler classes add Python's own flags, and
rebuild every file after a change of one header.

The environment variables that this file reads are listed in docs/installing.md.

Files written beside the package's modules:
    _native.abi3.so: the extension.
    _native_compilers.txt: the compilers and flags that built it, for ``lebm info``.
    _native_build.txt: why there is no extension; the end of the compiler's output follows.
    _cuda_build.txt: the same, where only the CUDA kernels are missing.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PACKAGE = "lebm_kernels"
LIBRARY = "_native.abi3.so"
REASON = "_native_build.txt"
CUDA_REASON = "_cuda_build.txt"
RECORD = "_native_compilers.txt"
WRITTEN = (LIBRARY, REASON, CUDA_REASON, RECORD)

OLDEST_TORCH = (2, 10)
TARGET_VERSION = "0x{:02x}{:02x}000000000000".format(*OLDEST_TORCH)

# No -march: instruction sets are chosen when the kernels run, so the binary fits every machine.
# No -ffast-math and no contraction: the accuracy promises hold for the arithmetic as written.
COMPILE_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    f"-DTORCH_TARGET_VERSION={TARGET_VERSION}",
]
# -fmad=false: products and sums are fused only where a kernel says so.
CUDA_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fmad=false",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-DUSE_CUDA",
    f"-DTORCH_TARGET_VERSION={TARGET_VERSION}",
]
CUDA_ARCHITECTURES = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"
LINK_FLAGS = ["-shared"]
# -cudart=static: the library carries nvcc's runtime, since PyTorch's may be another version.
CUDA_LINK_FLAGS = ["-shared", "-cudart=static"]
if sys.platform == "linux":
    # A missing symbol is an error here rather than when the library is loaded.
    LINK_FLAGS.append("-Wl,--no-undefined")
    CUDA_LINK_FLAGS.append("-Xlinker=--no-undefined")

# Paths are relative to ROOT. A command that changed runs again, and so does one whose inputs did.
NINJA_RULES = """\
rule compile
  command = $compiler -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = $in
rule link
  command = $link $in $libraries -o $out
  description = $out"""


class Unavailable(Exception):
    """The extension cannot be built here; the message says why."""


def words_of(variable: str) -> list[str]:
    """An environment variable, split as a shell would."""
    return shlex.split(os.environ.get(variable, ""))


def mode_of(variable: str) -> str:
    """An environment variable that is auto, 0 or 1."""
    mode = os.environ.get(variable, "auto")
    if mode not in ("auto", "0", "1"):
        raise SystemExit(f"{variable} must be auto, 0 or 1, not {mode!r}")
    return mode


def find_compiler() -> list[str]:
    """The command of the C++ compiler."""
    if sys.platform == "win32":
        raise Unavailable("the extension is written for GCC and Clang; there is no Windows build")
    if command := words_of("CXX"):
        if not shutil.which(command[0]):
            raise Unavailable(f"the C++ compiler named by CXX, {command[0]!r}, was not found")
        return command
    names = ("c++", "g++", "clang++")
    for name in names:
        if found := shutil.which(name):
            return [found]
    raise Unavailable(f"no C++ compiler was found (looked for {', '.join(names)})")


def find_ninja() -> str:
    """The ninja beside this interpreter, or else the one on the PATH."""
    for folder in (sysconfig.get_path("scripts"), None):
        if found := shutil.which("ninja", path=folder):
            return found
    raise Unavailable("ninja was not found (pip install ninja)")


def find_torch() -> tuple[Path, str]:
    """The folder of the environment's PyTorch, and its version."""
    # PyTorch is not imported, since pip's build isolation hides it; and it is no build requirement,
    # since pip would then download a second PyTorch of several gigabytes. Only headers are read.
    spec = importlib.util.find_spec("torch")
    folders = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    places += [*site.getsitepackages(), site.getusersitepackages()]
    folders += [Path(place) / "torch" for place in places]
    folder = next((folder for folder in folders if (folder / "include" / "torch").is_dir()), None)
    if folder is None:
        raise Unavailable(
            "PyTorch was not installed when this package was built (install torch first, then "
            "this package again, with --no-build-isolation if your installer is not pip)"
        )
    header = folder / "include" / "torch" / "headeronly" / "version.h"
    text = header.read_text(encoding="utf-8") if header.is_file() else ""
    version = re.findall(r"define TORCH_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text)
    if tuple(map(int, version[:2])) < OLDEST_TORCH:
        raise Unavailable(
            f"PyTorch >= {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} is needed to build, and "
            f"{folder} is older or has no headers"
        )
    return folder, ".".join(version)


def find_nvcc(torch: Path) -> str:
    """The path of nvcc, where PyTorch is a CUDA build."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=str(Path(home) / "bin") if home else None)
    if not nvcc:
        where = f"in {home}" if home else "on the PATH"
        raise Unavailable(f"built without CUDA: there is no nvcc {where}")
    if not list((torch / "lib").glob("libtorch_cuda.*")):
        raise Unavailable(f"built without CUDA: PyTorch in {torch} is a build for the CPU")
    return nvcc


def architecture_flags() -> list[str]:
    """TORCH_CUDA_ARCH_LIST as flags of nvcc."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES
    if wanted == "native":
        return ["-arch=native"]
    flags = []
    for word in re.split(r"[;,\s]+", wanted.strip("; ")):
        match = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", word)
        if not match:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST has {word!r}; architectures are like 9.0+PTX")
        number = match[1] + match[2]
        for kind in ("sm", "compute") if match[3] else ("sm",):
            flags.append(f"-gencode=arch=compute_{number},code={kind}_{number}")
    return flags


def version_of(command: list[str]) -> str:
    """The line of ``--version`` that contains a version; the command itself if there is none."""
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return shlex.join(command)
    lines = (line.strip() for line in done.stdout.splitlines())
    return next((line for line in lines if re.search(r"\d\.\d", line)), shlex.join(command))


def write_ninja_file(folder: Path, cuda: bool) -> dict[str, str]:
    """Writes ``build.ninja`` into ``folder``; returns the facts for the record."""
    compiler, (torch, version) = find_compiler(), find_torch()
    include = [f"-I{ROOT / 'csrc'}", "-isystem", str(torch / "include")]
    compile_flags = [*COMPILE_FLAGS, *words_of("CXXFLAGS")]
    link_flags = [*LINK_FLAGS, *words_of("LDFLAGS")]
    commands = {
        "cpp": [*compiler, *compile_flags, *include],
        "link": [*compiler, *link_flags],
        # PyTorch's symbols are not global, so the library must name the libraries that have them.
        # `import torch` has loaded those by then: a name is enough, and no run path is written.
        "libraries": [f"-L{torch / 'lib'}", "-ltorch_cpu"],
    }
    record = {
        "compiler": version_of(compiler),
        "flags": shlex.join(compile_flags),
        "link flags": shlex.join(link_flags),
        "PyTorch's headers": version,
    }
    # The CUDA files take longest, so they start first.
    sources = sorted((ROOT / "csrc").rglob("*.cu")) if cuda else []
    sources += sorted((ROOT / "csrc").rglob("*.cpp"))
    if not sources:
        raise Unavailable(f"there are no C++ sources in {ROOT / 'csrc'}")
    if cuda:
        nvcc = [find_nvcc(torch), "-ccbin", shutil.which(compiler[0]) or compiler[0]]
        nvcc_flags = [*CUDA_FLAGS, *architecture_flags()]
        commands["cu"] = [*nvcc, *nvcc_flags, *include]
        commands["link"] = [*nvcc, *CUDA_LINK_FLAGS]
        commands["libraries"] += ["-ltorch_cuda"]
        record |= {"nvcc": version_of(nvcc[:1]), "nvcc's flags": shlex.join(nvcc_flags)}

    def path(name: Path) -> str:
        return re.sub(r"([$ :])", r"$\1", str(name))

    # -MMD omits system headers, which PyTorch's are: each version's objects have their own folder.
    objects = folder / f"torch-{version}"
    lines = [f"{name} = {shlex.join(words)}".replace("$", "$$") for name, words in commands.items()]
    lines += [f"builddir = {path(folder)}", NINJA_RULES]
    made = []
    for source in (source.relative_to(ROOT) for source in sources):
        made.append(path(objects / source.with_suffix(".o")))
        lines += [f"build {made[-1]}: compile {path(source)}", f"  compiler = ${source.suffix[1:]}"]
    lines += [f"build {path(folder / LIBRARY)}: link {' '.join(made)}", ""]
    (folder / "build.ninja").write_text("\n".join(lines), encoding="utf-8")
    return record


def run_ninja(folder: Path) -> None:
    """Runs ``build.ninja``, showing its output; a failure quotes the end of it."""
    command = [find_ninja(), "-f", str(folder / "build.ninja")]
    command += ["-j", os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)]
    command += ["-v"] if os.environ.get("V") == "1" else []
    said = ""
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    with subprocess.Popen(
        command, cwd=ROOT, stdout=pipe, stderr=both, text=True, errors="replace"
    ) as process:
        for line in process.stdout or ():
            said += line
            if "no work to do" not in line:
                print(line, end="", file=sys.stderr, flush=True)
    if process.returncode != 0:
        # Ninja shows the command that failed in the line below FAILED, then what it printed.
        failed = re.search(r"^FAILED: .*\n(.*)\n", said, re.MULTILINE)
        words = shlex.split(failed[1]) if failed else command
        what = next((word for word in words if word.endswith((".cpp", ".cu"))), "the library")
        last = "\n".join(said[failed.end() if failed else 0 :].splitlines()[-20:])
        raise Unavailable(f"{words[0]} failed on {what}\n{last}")


def build_library(folder: Path, cuda: bool) -> None:
    """Builds the library into ``folder`` and writes its record beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    record = write_ninja_file(folder, cuda)
    run_ninja(folder)
    facts = "".join(f"{title}: {fact}\n" for title, fact in record.items())
    (folder / RECORD).write_text(facts, encoding="utf-8")


def build_with_cuda_if_possible(folder: Path) -> str | None:
    """Builds the library; returns why its CUDA kernels are missing, if they are."""
    mode = mode_of("LEBM_KERNELS_CUDA")
    try:
        if mode == "0":
            raise Unavailable("built without CUDA on purpose (LEBM_KERNELS_CUDA=0)")
        build_library(folder, cuda=True)
    except Unavailable as error:
        if mode == "1":
            raise SystemExit(f"LEBM_KERNELS_CUDA=1 asks for CUDA: {error}") from error
        build_library(folder, cuda=False)
        return str(error)
    return None


class BuildNative(build_ext):
    """Builds the library, or writes down why it is missing."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")[:-1]) / LIBRARY)

    def run(self) -> None:
        super().run()
        missing = (Path(self.build_lib) / PACKAGE / REASON).exists()
        if missing and mode_of("LEBM_KERNELS_NATIVE") == "1":
            raise SystemExit("LEBM_KERNELS_NATIVE=1 asks for the native backend: giving up")

    def build_extension(self, ext: Extension) -> None:
        folder, target = Path(self.build_temp), Path(self.build_lib) / PACKAGE
        target.mkdir(parents=True, exist_ok=True)
        for name in WRITTEN:
            (target / name).unlink(missing_ok=True)
        try:
            if mode_of("LEBM_KERNELS_NATIVE") == "0":
                raise Unavailable("left out on purpose when built (LEBM_KERNELS_NATIVE=0)")
            without_cuda = build_with_cuda_if_possible(folder)
        except Unavailable as error:
            (target / REASON).write_text(f"{error}\n", encoding="utf-8")
            headline = str(error).partition("\n")[0]
            print(f"{PACKAGE}: the native backend is not built: {headline}", file=sys.stderr)
            return
        for name in (LIBRARY, RECORD):
            shutil.copy(folder / name, target / name)
        if without_cuda:
            (target / CUDA_REASON).write_text(f"{without_cuda}\n", encoding="utf-8")

    def copy_extensions_to_source(self) -> None:
        # An editable install is served from the source tree: it gets the same files.
        for name in WRITTEN:
            made, place = Path(self.build_lib) / PACKAGE / name, ROOT / PACKAGE / name
            place.unlink(missing_ok=True)
            if made.exists():
                shutil.copy(made, place)


class Wheel(bdist_wheel):
    """Tags the wheel for this platform and any CPython from 3.10 on."""

    def get_tag(self) -> tuple[str, str, str]:
        return "cp310", "abi3", super().get_tag()[2]


setup(
    # Optional: a missing library is no error to setuptools.
    ext_modules=[Extension(f"{PACKAGE}._native", sources=[], optional=True)],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
