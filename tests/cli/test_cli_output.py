"""What commands do where they cannot write: a full disk, a full or closed standard output."""

from __future__ import annotations

import io
import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lebm_kernels import cli
from lebm_kernels.training.curves import CsvCurves, Epoch


def lebm(*arguments: object):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@contextmanager
def _file_size(limit: int) -> Iterator[None]:
    """No file grows beyond the limit: the error is like that of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


_SMALL = {"queries": 2, "latents": 3, "rounds": 1, "threads": 1, "provider": "chunked"}
BENCH = ["bench", *(word for name, x in _SMALL.items() for word in (f"--{name}", str(x)))]
COMMANDS = {
    "train checkpoint": (["train", "ellipse", "--epochs", 1], 1000, "ellipse-cold.pt"),
    "train figure": (["train", "ellipse", "--epochs", 1], 25_000, "ellipse-cold-manifold.png"),
    "figures": (["figures", "section"], 9000, "section.png"),
    "bench": (BENCH, 500, "bench.json"),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_full_disk_is_one_line_that_names_the_file(kind: str, tmp_path: Path) -> None:
    arguments, limit, name = COMMANDS[kind]
    (tmp_path / name).write_text("before")
    with _file_size(limit):
        result = lebm(*arguments, "--output", tmp_path)
    assert result.exit_code == 1
    reason = "File too large; what was written before is kept"
    assert result.stderr == f"lebm: error: {tmp_path / name}: {reason}\n"
    assert (tmp_path / name).read_text() == "before"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_curves_keep_their_whole_lines(tmp_path: Path) -> None:
    curves = CsvCurves(tmp_path / "run.csv")
    records = [Epoch(number, 1 / 3, 2 / 3, math.inf, 0.1) for number in range(1, 100)]
    with _file_size(200), pytest.raises(OSError, match=r"File too large: .*run\.csv"):
        list(map(curves.add, records))
    head, *lines = (tmp_path / "run.csv").read_text().splitlines(keepends=True)
    assert head == "number,loss,validation,beta,learning_rate\n"
    assert lines == [f"{n},{1 / 3!r},{2 / 3!r},inf,0.1\n" for n in range(1, len(lines) + 1)]
    assert len(lines) > 1


@contextmanager
def _standard_output(path: str, buffering: int) -> Iterator[None]:
    before, stream = sys.stdout, open(path, "w", buffering=buffering)  # noqa: SIM115
    sys.stdout = stream
    try:
        yield
    finally:
        sys.stdout = before
        with suppress(OSError):
            stream.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("buffering", [1, -1], ids=["by line", "buffered"])
@pytest.mark.parametrize(
    "arguments",
    [["info"], ["--version"], ["train", "--help"], BENCH, ["train", "ellipse"]],
    ids=" ".join,
)
def test_a_full_standard_output_is_one_line(
    arguments: list[str], buffering: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = list(arguments)
    if given[0] in ("bench", "train") and "--help" not in given:
        given += ["--output", str(tmp_path)]
    if given[:2] == ["train", "ellipse"]:
        given += ["--epochs", "1"]
    with _standard_output("/dev/full", buffering), pytest.raises(SystemExit) as stop:
        cli.main(given)
    assert stop.value.code == 1
    reason = "No space left on device; what was written before is kept"
    assert capfd.readouterr().err == f"lebm: error: standard output: {reason}\n"


@pytest.mark.parametrize("arguments", [["info"], ["--version"], ["--help"]], ids=" ".join)
def test_a_closed_pipe_is_silent(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = io.TextIOWrapper(io.FileIO(writing, "w"), write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    monkeypatch.undo()
    with suppress(BrokenPipeError):
        stream.close()
    assert stop.value.code == 1
    assert capfd.readouterr().err == ""


def test_a_closed_standard_output_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # what Python makes of a closed descriptor
    with pytest.raises(SystemExit) as stop:
        cli.main(["info"])
    assert stop.value.code == 1
    assert capsys.readouterr().err == "lebm: error: standard output is closed\n"


def test_the_process_itself_ends_so_with_no_word_at_its_exit() -> None:
    code = "from lebm_kernels.cli import main; main(['--version'])"
    environment = {name: x for name, x in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "standard output" in done.stderr
