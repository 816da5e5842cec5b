"""What `lebm info` says for a bug report is what the machine, the packages and the build say."""

from __future__ import annotations

import os
import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import torch

from lebm_kernels.backends import native
from lebm_kernels.diagnostics import bug_report

ROOT = Path(__file__).resolve().parents[2]


def test_versions_are_those_of_the_installed_packages() -> None:
    said = bug_report.report()["packages"].split(", ")
    assert len(said) >= 8
    for entry in said:
        name, _, version = entry.partition(" ")
        try:
            wanted = metadata.version(name)
        except metadata.PackageNotFoundError:
            wanted = "not installed"
        assert version == wanted
    required = {"numpy", "scipy", "matplotlib", "typer", "rich", "tqdm"}
    assert required <= {entry.partition(" ")[0] for entry in said}


def test_the_machine_is_described_as_the_system_does() -> None:
    facts = bug_report.report()
    assert facts["processor"].endswith(f" {len(os.sched_getaffinity(0))} usable")
    memory = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert memory is not None
    said = float(facts["memory"].removesuffix(" GiB"))
    assert said == pytest.approx(int(memory[1]) / 2**20, rel=0.01, abs=0.06)
    assert facts["threads"].startswith(f"{torch.get_num_threads()} ")
    flags = set(facts["processor has"].split(", "))
    # The kernels ask the processor itself.
    sets = native.instruction_sets()
    assert ("avx512" in sets) <= ("avx512f" in flags)
    assert ("avx2" in sets) <= ({"avx2", "fma"} <= flags)


def test_places_are_those_of_the_package_and_its_library() -> None:
    facts = bug_report.report()
    assert Path(facts["package"]) == ROOT / "lebm_kernels"
    place, _, size = facts["library"].partition(", ")
    if Path(place).exists():
        assert size == f"{Path(place).stat().st_size} bytes"
    else:
        assert facts["library"].endswith("is missing")


def test_only_variables_that_are_set_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in bug_report.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert bug_report.report()["environment"].startswith("none")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("LEBM_KERNELS_NATIVE", "auto")
    monkeypatch.setenv("SECRET_TOKEN", "of no concern")
    told = set(bug_report.report()["environment"].split(", "))
    assert told == {"OMP_NUM_THREADS=3", "LEBM_KERNELS_NATIVE=auto"}


def test_every_variable_that_the_code_or_its_build_reads_is_told() -> None:
    read = set()
    for path in [ROOT / "setup.py", *(ROOT / "lebm_kernels").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        read |= set(
            re.findall(r"(?:environ(?:\.get)?[(\[]|mode_of\(|words_of\()\"([A-Z_]+)\"", text)
        )
    for path in (ROOT / "csrc").rglob("*.cpp"):
        read |= set(re.findall(r"getenv\(\"([A-Z_]+)\"", path.read_text(encoding="utf-8")))
    assert {"LEBM_KERNELS_ISA", "LEBM_KERNELS_NATIVE", "CXX", "CXXFLAGS"} <= read
    # V changes only what the build prints.
    assert read - {"V"} <= set(bug_report.VARIABLES)


def test_the_build_is_told_from_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "record.txt"
    record.write_text("compiler: c++ 1.2.3\nflags: -O3 -DX='a: b'\n")
    monkeypatch.setattr(native, "_FAILURE", None)
    monkeypatch.setattr(native, "_NAMED", None)
    monkeypatch.setattr(native, "_RECORD", record)
    facts = bug_report.report()
    assert facts["library's compiler"] == "c++ 1.2.3"
    assert facts["library's flags"] == "-O3 -DX='a: b'"
    # It says nothing of a library that was built elsewhere, or of none.
    monkeypatch.setattr(native, "_NAMED", "/another.so")
    assert native.build_record() == {}
    monkeypatch.setattr(native, "_NAMED", None)
    monkeypatch.setattr(native, "_FAILURE", native._Failure("not built"))
    assert native.build_record() == {}


def test_a_compiler_is_told_by_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, words in (
        ("c++", "c++ (Some) 9.8.7"),
        ("nvcc", "nvcc: NVIDIA\nrelease 13.0, V13.0.88"),
    ):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho '{words}'\n")
        program.chmod(0o755)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    told = bug_report.report()["compilers here"]
    assert told == "c++: c++ (Some) 9.8.7, nvcc: release 13.0, V13.0.88"
    monkeypatch.setenv("CXX", "env c++")
    assert bug_report.report()["compilers here"].startswith("env c++: c++ (Some) 9.8.7, nvcc")


def test_a_machine_without_any_of_it_is_still_described(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "sysconf", missing)
    facts = bug_report.report()
    assert facts["compilers here"] == "none found"
    assert facts["driver"].startswith("none")
    assert facts["memory"] == "not known on this system"
    assert facts["processor"].endswith(f"{os.cpu_count()} usable")
