"""Builds the optional C++ extension; everything else about the package stands in pyproject.toml.

The extension speaks PyTorch's stable ABI and no Python C API, so it needs PyTorch's headers and a
C++ compiler to be built, and one binary then serves every CPython and every PyTorch >= 2.10. It is
loaded with ``torch.ops.load_library``, never imported.

The compiler is called directly rather than through setuptools' compiler classes: Python's own
build flags stay out, what the compiler says can be kept, and its dependency files tell exactly
what has to be compiled again.

Environment variables:
    LEBM_KERNELS_NATIVE: ``auto`` (default) builds the extension if it can, and otherwise installs
        without it; ``1`` makes a failure fatal; ``0`` leaves the extension out.
    LEBM_KERNELS_CUDA: the same for its CUDA kernels, which are built where nvcc and a CUDA build of
        PyTorch are, whether or not a GPU is visible.
    TORCH_CUDA_ARCH_LIST: the architectures, as PyTorch takes them ("8.0;9.0+PTX"), or "native" for
        the GPU of this machine (default: all from sm_80 on).
    CUDA_HOME: where CUDA is (default: where the nvcc on the PATH is).
    CXX: the C++ compiler (default: the first of c++, g++, clang++ on the PATH).
    CXXFLAGS, LDFLAGS: further flags for compiling C++ and for linking; the last one counts.
    MAX_JOBS: how many files are compiled at once (default: one a core).

When the extension is left out, ``lebm_kernels/_native_build.txt`` is installed in its place: the
reason in its first line, the compiler's last words below. ``_cuda_build.txt`` says the same of the
CUDA kernels alone. Beside a library stands ``_native_compilers.txt``: what made it, with which
flags, for ``lebm info`` to tell.
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
from concurrent.futures import ThreadPoolExecutor
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
# fmad: products and sums are fused where a kernel says so, and nowhere else. -Xcudafe: what the
# kernels pass over on purpose, as a plain C++ compiler does.
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
if sys.platform == "linux":
    # A missing symbol shows here, and not on the day the library is loaded.
    LINK_FLAGS.append("-Wl,--no-undefined")


def flags_of(variable: str) -> list[str]:
    """The flags in an environment variable, as a shell would take them apart."""
    return shlex.split(os.environ.get(variable, ""))


class Unavailable(Exception):
    """The extension cannot be built here; the message says why."""


class Torch:
    """The PyTorch of the environment that is installed into: its folder and version."""

    def __init__(self) -> None:
        self.folder = self._find()
        self.include = self.folder / "include"
        self.lib = self.folder / "lib"
        header = self.include / "torch" / "headeronly" / "version.h"
        text = header.read_text(encoding="utf-8") if header.is_file() else ""
        numbers = re.findall(r"define TORCH_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text)
        self.version = tuple(int(number) for number in numbers)
        if self.version[:2] < OLDEST_TORCH:
            raise Unavailable(
                f"PyTorch >= {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} is needed to build, and "
                f"{self.folder} is older or has no headers"
            )

    @staticmethod
    def _find() -> Path:
        # Under pip's build isolation the environment's packages cannot be imported, but they lie
        # where this interpreter keeps them. Only headers are read, so torch is never imported,
        # and it is no build requirement: that would bring a second PyTorch of several gigabytes.
        spec = importlib.util.find_spec("torch")
        folders = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
        places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
        places += [*site.getsitepackages(), site.getusersitepackages()]
        folders += [Path(place) / "torch" for place in places]
        for folder in folders:
            if (folder / "include" / "torch").is_dir():
                return folder
        raise Unavailable(
            "PyTorch was not installed when this package was built (install torch first, then "
            "this package again, with --no-build-isolation if your installer is not pip)"
        )


def find_compiler() -> list[str]:
    """The C++ compiler's command."""
    if sys.platform == "win32":
        raise Unavailable("the extension is written for GCC and Clang; there is no Windows build")
    if command := shlex.split(os.environ.get("CXX", "")):
        if not shutil.which(command[0]):
            raise Unavailable(f"the C++ compiler named by CXX, {command[0]!r}, was not found")
        return command
    names = ("c++", "g++", "clang++")
    for name in names:
        if found := shutil.which(name):
            return [found]
    raise Unavailable(f"no C++ compiler was found (looked for {', '.join(names)})")


def version_of(command: list[str]) -> str:
    """What a compiler calls itself in the line that has a version; its name if none has."""
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return shlex.join(command)
    lines = (line.strip() for line in done.stdout.splitlines())
    return next((line for line in lines if re.search(r"\d\.\d", line)), shlex.join(command))


def execute(command: list[str]) -> None:
    """Runs a compiler's command; prints what it says, and keeps the end of it if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    said = (done.stdout + done.stderr).strip()
    # Written at once, so that files compiled at the same time do not mix their lines.
    sys.stderr.write(f"{shlex.join(command)}\n{said}\n" if said else f"{shlex.join(command)}\n")
    if done.returncode != 0:
        what = next((word for word in command if word.endswith((".cpp", ".cu"))), "the library")
        last = "\n".join(said.splitlines()[-20:])
        raise Unavailable(
            f"{command[0]} failed on {what} with exit status {done.returncode}\n{last}"
        )


class Step:
    """One command and the file that it makes; runs only if something that it depends on changed."""

    def __init__(self, output: Path, command: list[str], inputs: list[Path], torch: Torch) -> None:
        self.output = output
        self.inputs = inputs
        self.dependencies = output.with_suffix(".d")
        self.stamp = output.with_suffix(output.suffix + ".command")
        self.command = command
        # System headers are left out of the dependency files; PyTorch's version stands for them.
        self.recipe = f"{shlex.join(command)}\ntorch {torch.version}\n"

    def run(self) -> None:
        if self._is_done():
            return
        self.stamp.unlink(missing_ok=True)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        execute(self.command)
        self.stamp.write_text(self.recipe, encoding="utf-8")

    def _is_done(self) -> bool:
        if not (self.stamp.is_file() and self.output.is_file()):
            return False
        if self.stamp.read_text(encoding="utf-8") != self.recipe:
            return False
        read = list(self.inputs)
        if self.dependencies.is_file():
            text = self.dependencies.read_text(encoding="utf-8").replace("\\\n", " ")
            read += [Path(word) for word in shlex.split(text.partition(": ")[2])]
        made = self.output.stat().st_mtime_ns
        return all(path.is_file() and path.stat().st_mtime_ns <= made for path in read)


def architecture_flags() -> list[str]:
    """What TORCH_CUDA_ARCH_LIST says, in nvcc's words."""
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


class Toolchain:
    """The compilers, their flags, and the PyTorch to build for."""

    def __init__(self) -> None:
        self.compiler = find_compiler()
        self.torch = Torch()

    def with_cuda(self) -> Toolchain:
        """The same with nvcc, or ``Unavailable``."""
        home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        self.nvcc = shutil.which("nvcc", path=str(Path(home) / "bin") if home else None)
        if not self.nvcc:
            where = f"in {home}" if home else "on the PATH"
            raise Unavailable(f"built without CUDA: there is no nvcc {where}")
        if not list(self.torch.lib.glob("libtorch_cuda.*")):
            raise Unavailable(
                f"built without CUDA: PyTorch in {self.torch.folder} is a build for the CPU"
            )
        return self

    def describe(self, cuda: bool) -> str:
        """What compiles, with which flags and for which PyTorch; one fact a line."""
        facts = {
            "compiler": version_of(self.compiler),
            "flags": shlex.join([*COMPILE_FLAGS, *flags_of("CXXFLAGS")]),
            "link flags": shlex.join([*LINK_FLAGS, *flags_of("LDFLAGS")]),
            "PyTorch's headers": ".".join(map(str, self.torch.version)),
        }
        if cuda:
            facts["nvcc"] = version_of([str(self.nvcc)])
            facts["nvcc's flags"] = shlex.join([*CUDA_FLAGS, *architecture_flags()])
        return "".join(f"{title}: {fact}\n" for title, fact in facts.items())

    def compile(self, source: Path, objects: Path) -> Path:
        output = (objects / source.relative_to(ROOT)).with_suffix(".o")
        if source.suffix == ".cu":
            command = [str(self.nvcc), *CUDA_FLAGS, *architecture_flags()]
            command += ["-ccbin", shutil.which(self.compiler[0]) or self.compiler[0]]
        else:
            command = [*self.compiler, *COMPILE_FLAGS, *flags_of("CXXFLAGS")]
        command += [f"-I{ROOT / 'csrc'}", "-isystem", str(self.torch.include)]
        command += ["-MMD", "-MF", str(output.with_suffix(".d")), "-c", str(source)]
        Step(output, [*command, "-o", str(output)], [source], self.torch).run()
        return output

    def link(self, compiled: list[Path], library: Path, cuda: bool) -> None:
        # A library that is loaded needs to name libtorch_cpu: PyTorch's own symbols are not global.
        # By then `import torch` has loaded it, so its name is enough and no run path is written.
        libraries = [f"-L{self.torch.lib}", "-ltorch_cpu"]
        if cuda:
            # nvcc knows where its runtime is, of which there is then a copy in the library: it
            # needs no file of that name, and PyTorch's may be another version.
            command = [str(self.nvcc), "-cudart=static", "-shared"]
            command += ["-ccbin", shutil.which(self.compiler[0]) or self.compiler[0]]
            command += [f"-Xlinker={flag[4:]}" for flag in LINK_FLAGS if flag.startswith("-Wl,")]
            libraries += ["-ltorch_cuda"]
        else:
            command = [*self.compiler, *LINK_FLAGS, *flags_of("LDFLAGS")]
        command += [*map(str, compiled), *libraries, "-o", str(library)]
        Step(library, command, compiled, self.torch).run()


def build_library(sources: list[Path], objects: Path, cuda: bool) -> Path:
    """Compiles and links ``sources`` below ``objects``; returns the library's path."""
    sources = [source for source in sources if cuda or source.suffix != ".cu"]
    if not sources:
        raise Unavailable(f"there are no C++ sources in {ROOT / 'csrc'}")
    tools = Toolchain().with_cuda() if cuda else Toolchain()
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        # The CUDA files take longest.
        sources = sorted(sources, key=lambda source: source.suffix != ".cu")
        compiled = list(pool.map(lambda source: tools.compile(source, objects), sources))
    library = objects / LIBRARY
    tools.link(compiled, library, cuda)
    library.with_name(RECORD).write_text(tools.describe(cuda), encoding="utf-8")
    return library


def asked_for(variable: str) -> str:
    """What an environment variable says: auto, 0 or 1."""
    mode = os.environ.get(variable, "auto")
    if mode not in ("auto", "0", "1"):
        raise SystemExit(f"{variable} must be auto, 0 or 1, not {mode!r}")
    return mode


def build(sources: list[Path], objects: Path) -> tuple[Path, str | None]:
    """The library, with the CUDA kernels or with why they are left out."""
    mode = asked_for("LEBM_KERNELS_CUDA")
    try:
        if mode == "0":
            raise Unavailable("built without CUDA on purpose (LEBM_KERNELS_CUDA=0)")
        return build_library(sources, objects, cuda=True), None
    except Unavailable as error:
        if mode == "1":
            raise SystemExit(f"LEBM_KERNELS_CUDA=1 asks for CUDA: {error}") from error
        return build_library(sources, objects, cuda=False), str(error)


class BuildNative(build_ext):
    """Builds the library, or writes down why it is left out."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")[:-1]) / LIBRARY)

    def run(self) -> None:
        super().run()
        reason = Path(self.build_lib) / PACKAGE / REASON
        if self.inplace:
            # An editable install is served from the sources: what holds for the build holds there.
            if reason.exists():
                (ROOT / PACKAGE / LIBRARY).unlink(missing_ok=True)
            for name in (REASON, CUDA_REASON, RECORD):
                (ROOT / PACKAGE / name).unlink(missing_ok=True)
                if (said := reason.with_name(name)).exists():
                    shutil.copyfile(said, ROOT / PACKAGE / name)
        if reason.exists() and os.environ.get("LEBM_KERNELS_NATIVE") == "1":
            raise SystemExit("LEBM_KERNELS_NATIVE=1 asks for the native backend: giving up")

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        reason, cuda_reason = target.with_name(REASON), target.with_name(CUDA_REASON)
        record = target.with_name(RECORD)
        target.parent.mkdir(parents=True, exist_ok=True)
        for old in (cuda_reason, record):
            old.unlink(missing_ok=True)
        try:
            if asked_for("LEBM_KERNELS_NATIVE") == "0":
                raise Unavailable("left out on purpose when built (LEBM_KERNELS_NATIVE=0)")
            sources = [ROOT / name for name in ext.sources]
            library, without_cuda = build(sources, Path(self.build_temp))
        except Unavailable as error:
            target.unlink(missing_ok=True)
            reason.write_text(f"{error}\n", encoding="utf-8")
            headline = str(error).partition("\n")[0]
            print(f"{PACKAGE}: the native backend is not built: {headline}", file=sys.stderr)
        else:
            reason.unlink(missing_ok=True)
            if without_cuda:
                cuda_reason.write_text(f"{without_cuda}\n", encoding="utf-8")
            for made, place in ((library, target), (library.with_name(RECORD), record)):
                self.copy_file(str(made), str(place))


class Wheel(bdist_wheel):
    """Tags the wheel for this platform and any CPython from 3.10 on."""

    def get_tag(self) -> tuple[str, str, str]:
        return "cp310", "abi3", super().get_tag()[2]


PLACES = ("*.cpp", "cpu/*.cpp", "cuda/**/*.cu")
sources = [path for place in PLACES for path in sorted((ROOT / "csrc").glob(place))]
setup(
    ext_modules=[
        # Optional: setuptools goes on when the library is not there.
        Extension(
            f"{PACKAGE}._native",
            [path.relative_to(ROOT).as_posix() for path in sources],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
