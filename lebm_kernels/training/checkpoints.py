"""Checkpoints: a file with the state of a training run, and with what identifies the run.

An interruption while writing leaves the previous file intact. A checkpoint holds only numbers,
strings and tensors, so reading an untrusted file cannot run code.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

FORMAT = 5


def write(path: Path, state: dict[str, Any]) -> None:
    """Write the state to a temporary file, then rename it to ``path``, which is atomic."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read(path: Path) -> dict[str, Any]:
    """Read the state from a checkpoint.

    Raises:
        FileNotFoundError: ``path`` does not exist.
        ValueError: the file is damaged, or not a checkpoint of this format.
    """
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist: nothing to resume from")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"checkpoint {path} is damaged or not a checkpoint") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"checkpoint {path} is not one of format {FORMAT}")
    return state
