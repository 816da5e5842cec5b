"""A checkpoint is read as it was written, or refused: damage, other files, other formats."""

from __future__ import annotations

import pickle
import random
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lebm_kernels.models import Ellipse
from lebm_kernels.training import TrainConfig, ellipse_data, train
from lebm_kernels.training.checkpoints import FORMAT, read, write

STATE: dict[str, Any] = {
    "config": {"beta": float("inf"), "optimizer_options": {"betas": (0.9, 0.999)}},
    "model": {"radii": torch.tensor([2.0, 1.5]), "weight": torch.arange(600.0).view(20, 30)},
    "generator": torch.Generator().manual_seed(3).get_state()[:200],
    "best": None,
}


def _plain(value: Any) -> Any:
    """The value with lists for tensors, which ``==`` compares."""
    if isinstance(value, Tensor):
        return value.dtype, value.tolist()
    return {name: _plain(x) for name, x in value.items()} if isinstance(value, dict) else value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "run.pt", STATE)
    return tmp_path / "run.pt"


def _is_refused(path: Path) -> bool:
    """Whether reading raises the error that names the file; else the content must be equal."""
    try:
        found = read(path)
    except ValueError as error:
        message = str(error)
    else:
        assert _plain(found) == _plain({"format": FORMAT, **STATE})
        return False
    assert message == f"checkpoint {path} is damaged or not a checkpoint"
    return True


def test_it_is_read_as_it_was_written_also_by_torch(path: Path) -> None:
    assert not _is_refused(path)
    found = torch.load(path, weights_only=True)
    assert _plain(found) == _plain({"format": FORMAT, **STATE})


def test_a_flipped_bit_is_found(path: Path) -> None:
    whole = path.read_bytes()
    positions = [*random.Random(0).sample(range(len(whole)), 400), 0, len(whole) - 1]
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        assert _is_refused(path), position


def test_a_shorter_or_longer_file_is_found(path: Path) -> None:
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 37), *range(len(whole) - 70, len(whole))]:
        path.write_bytes(whole[:length])
        assert _is_refused(path), length
    for more in (b"\0", b"more" * 100, whole):
        path.write_bytes(whole + more)
        assert _is_refused(path), len(more)


def test_zeroed_bytes_are_found(path: Path) -> None:
    whole = path.read_bytes()
    for start in range(0, len(whole), 101):
        for length in (16, 512):
            damaged = whole[:start] + bytes(len(whole[start : start + length]))
            damaged += whole[start + length :]
            path.write_bytes(damaged)
            assert _is_refused(path) or damaged == whole, (start, length)


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"cos\nsystem\n(S'false'\ntR.")


FOREIGN = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("epoch,loss\n" * 50),
    "not utf-8": lambda path: path.write_bytes(bytes(range(256)) * 4),
    "picture": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500)),
    "pickle": lambda path: path.write_bytes(pickle.dumps(STATE["config"])),
    "old torch.save": lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False),
    "zip": _zip,
    "weights": lambda path: torch.save(Ellipse().state_dict(), path),
    "tensor": lambda path: torch.save(torch.ones(3), path),
    "model": lambda path: torch.save(Ellipse(), path),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_another_file_is_refused(path: Path, kind: str) -> None:
    FOREIGN[kind](path)
    assert _is_refused(path)


@pytest.mark.parametrize("number", [0, 4, FORMAT + 1, "x"])
def test_another_format_is_refused_by_its_number(path: Path, number: Any) -> None:
    torch.save({"format": number, **STATE}, path)
    expected = f"checkpoint {path} must have format {FORMAT} to resume, got {number!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        read(path)


def test_a_damaged_file_of_an_earlier_format_is_refused(path: Path) -> None:
    torch.save({"format": 4, **STATE}, path)
    whole = path.read_bytes()
    for position in range(0, len(whole), 23):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"^checkpoint {re.escape(str(path))} "):
            read(path)


def test_a_run_does_not_resume_from_a_damaged_checkpoint(tmp_path: Path) -> None:
    path, config = tmp_path / "run.pt", TrainConfig(epochs=2)
    train(Ellipse(), ellipse_data(), config, checkpoint=path, progress=False)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="is damaged or not a checkpoint"):
        train(Ellipse(), ellipse_data(), config, checkpoint=path, resume=True, progress=False)
