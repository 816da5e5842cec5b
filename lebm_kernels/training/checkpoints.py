"""Checkpoints: a file with the state of a training run, and with what identifies the run.

An interruption while writing leaves the previous file intact. A checkpoint holds only numbers,
strings and tensors, so reading an untrusted file cannot run code.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Collection
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from lebm_kernels.checks import plain
from lebm_kernels.training.datasets import Dataset

FORMAT = 4


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


def identity(
    config: dict[str, Any], data: Dataset, validation: Dataset | None, loss: object
) -> dict[str, Any]:
    """What must be equal for a run to resume from a checkpoint."""
    return {
        "config": config,
        "data": _fingerprint(data),
        "validation": None if validation is None else _fingerprint(validation),
        "loss": _description(loss),
    }


def check_identity(
    path: Path, state: dict[str, Any], mine: dict[str, Any], free: Collection[str]
) -> None:
    """Compare a checkpoint's identity with ``mine``, except the ``free`` fields of the config.

    Raises:
        ValueError: they differ; the message names the argument.
    """
    for name, value in mine["config"].items():
        if name not in free and state["config"][name] != value:
            raise ValueError(
                f"{name} must be that of checkpoint {path} to resume, "
                f"{state['config'][name]!r}, got {value!r}"
            )
    for name in ("data", "validation"):
        if state[name] != mine[name]:
            raise ValueError(f"{name} must be that of checkpoint {path} to resume, got other data")
    if state["loss"] != mine["loss"]:
        raise ValueError(
            f"loss must be that of checkpoint {path} to resume, {state['loss']}, got {mine['loss']}"
        )


def generators(loss: object) -> list[torch.Generator]:
    """The generators in the fields of a loss, nested ones too: each once, in order."""
    if isinstance(loss, torch.Generator):
        return [loss]
    if not is_dataclass(loss) or isinstance(loss, type):
        return []
    found = [g for f in fields(loss) for g in generators(getattr(loss, f.name))]
    return list({id(g): g for g in found}.values())


def _description(loss: object) -> str:
    """What identifies a loss: its name and the values of its fields."""
    if isinstance(loss, torch.Generator):
        return "Generator"
    if is_dataclass(loss) and not isinstance(loss, type):
        parts = (f"{f.name}={_description(getattr(loss, f.name))}" for f in fields(loss))
        return f"{type(loss).__qualname__}({', '.join(parts)})"
    if callable(loss):
        return str(getattr(loss, "__qualname__", type(loss).__qualname__))
    # A NumPy number and the equal Python number describe the same loss.
    return repr(plain(loss))


def _fingerprint(data: Dataset) -> str:
    """A hash of dtypes, shapes and values."""
    digest = hashlib.sha256()
    for tensor in (data.y, data.x):
        if tensor is not None:
            digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
            # Viewed as bytes, because NumPy has no bfloat16.
            values = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
