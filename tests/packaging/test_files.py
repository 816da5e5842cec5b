"""Files are replaced as a whole, and claimed by one run at a time: with real processes."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lebm_kernels import files
from lebm_kernels.cli import app
from lebm_kernels.models import Ellipse
from lebm_kernels.training import TrainConfig, ellipse_data, train

# The module alone, because importing PyTorch in each process takes seconds.
ALONE = f"""
import runpy, sys, time
from pathlib import Path
globals().update(runpy.run_path({files.__file__!r}))
path = Path(sys.argv[1])
"""

# Writes one file, whose bytes are all the same, again and again.
WRITER = """
for i in range(150):
    write_bytes(path, bytes([int(sys.argv[2])]) * 50_000)
"""

# Claims a file until the end of standard input.
OWNER = """
with claimed(path):
    print("claimed", flush=True)
    sys.stdin.read()
"""

# Makes a file and removes it while it has the claim; two owners at once would find each other's.
RIVAL = """
done, end = 0, time.monotonic() + 60
while done < 60:
    assert time.monotonic() < end
    try:
        with claimed(path):
            path.open("x").close()
            path.unlink()
            done += 1
    except BlockingIOError:
        pass
"""

# The limit is lower than what is written; Python ignores the signal of the limit.
LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write, content in ((write_bytes, bytes(2000)), (append_text, "1234567890" * 200)):
    try:
        write(path, content)
    except OSError as error:
        print(error)
"""


def _python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ALONE + code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_of_two_writers_each_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    writers = [_python(WRITER, path, number) for number in (1, 2)]
    seen, reads = set(), 0
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            content = path.read_bytes()
            assert len(content) == 50_000
            assert len(set(content)) == 1
            seen.add(content[0])
            reads += 1
    for writer in writers:
        assert writer.communicate()[1] == ""
        assert writer.returncode == 0
    assert seen == {1, 2}
    assert reads > 20
    assert os.listdir(tmp_path) == ["x"]


def test_a_claim_names_its_owner_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "run.pt"
    for end in ("normal", "killed"):
        owner = _python(OWNER, path)
        assert owner.stdout is not None
        assert owner.stdout.readline() == "claimed\n"
        with (
            pytest.raises(BlockingIOError, match=f"process {owner.pid} on .*run.pt"),
            files.claimed(path),
        ):
            raise AssertionError
        with files.claimed(path.with_name("other.pt")):  # claims are of files
            pass
        if end == "killed":
            owner.kill()
        owner.communicate()
        with files.claimed(path):
            pass
        assert os.listdir(path.parent) == []


def test_of_many_that_claim_one_at_a_time_has_it(tmp_path: Path) -> None:
    for process in [_python(RIVAL, tmp_path / "x") for _ in range(3)]:
        assert process.communicate()[1] == ""
        assert process.returncode == 0
    assert os.listdir(tmp_path) == []


def test_a_file_system_without_locks_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with files.claimed(tmp_path / "x"):
        pass


def test_two_trainings_of_one_file_are_refused(tmp_path: Path) -> None:
    options: dict[str, dict[str, Path]] = {
        "checkpoint": {"checkpoint": tmp_path / "run.pt"},
        "curves": {"curves": tmp_path / "run.csv"},
    }
    for name, option in options.items():

        def again(epoch: int, loss: float, name: str = name) -> None:
            with pytest.raises(BlockingIOError, match=f"process {os.getpid()} .* is writing"):
                train(Ellipse(), ellipse_data(), TrainConfig(epochs=1), **options[name])  # type: ignore[arg-type]

        config = TrainConfig(epochs=1)
        train(Ellipse(), ellipse_data(), config, on_epoch=again, progress=False, **option)  # type: ignore[arg-type]
        train(Ellipse(), ellipse_data(), config, progress=False, **option)  # type: ignore[arg-type]
    assert sorted(os.listdir(tmp_path)) == ["run.csv", "run.pt"]


def test_a_folder_that_a_command_writes_to_is_refused(tmp_path: Path) -> None:
    owner = _python(OWNER, tmp_path / "lebm")
    assert owner.stdout is not None
    assert owner.stdout.readline() == "claimed\n"
    commands = (["train", "ellipse"], ["bench"], ["figures"], ["gtm"], ["demo"])
    for command in (*commands, ["gradcheck", "--picture"]):
        result = CliRunner().invoke(app, [*command, "--output", str(tmp_path)])
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.count("\n") == 1
        assert f"'--output': cannot write to the folder {tmp_path}" in result.stderr
        assert f": process {owner.pid} on " in result.stderr
    owner.communicate()
    for _ in range(2):  # a command gives its claim back
        result = CliRunner().invoke(
            app, ["train", "ellipse", "--epochs", "0", "--output", str(tmp_path)]
        )
        assert result.exit_code == 0, result.output


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("before\n")
    out, message = _python(LIMITED, path).communicate()
    assert message == ""
    assert out.splitlines() == [f"[Errno {errno.EFBIG}] {os.strerror(errno.EFBIG)}: '{path}'"] * 2
    assert path.read_text() == "before\n"
    assert os.listdir(tmp_path) == ["x"]


def test_permissions_links_and_devices_stay(tmp_path: Path) -> None:
    path, link = tmp_path / "x", tmp_path / "link"
    path.write_text("")
    usual = stat.S_IMODE(path.stat().st_mode)
    link.symlink_to(path)
    # More than the umask allows, less, none for the owner to write, and the usual ones.
    for mode in (0o666, 0o600, 0o400, usual):
        path.chmod(mode)
        files.write_text(link, f"text {mode}")
        assert link.is_symlink()
        assert path.read_text() == f"text {mode}"
        assert stat.S_IMODE(path.stat().st_mode) == mode
    files.write_text(tmp_path / "new", "text")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == usual
    files.write_text(Path(os.devnull), "text")
    assert Path(os.devnull).is_char_device()
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        files.write_text(Path("/dev/full"), "text")
