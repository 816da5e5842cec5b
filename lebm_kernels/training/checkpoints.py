"""Checkpoints: a run's state in a file that an interruption leaves whole, and whose run it is.

Only numbers, strings and tensors are written, so that a file from elsewhere can't run code.
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
    """Write the state to a file beside ``path``, then put it in its place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read(path: Path) -> dict[str, Any]:
    """The state of a checkpoint of this format.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is something else.
    """
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist: nothing to resume from")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"checkpoint {path} cannot be read: it is damaged or none") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"checkpoint {path} is not one of format {FORMAT}")
    return state


def identity(
    config: dict[str, Any], data: Dataset, validation: Dataset | None, loss: object
) -> dict[str, Any]:
    """What a run is known by."""
    return {
        "config": config,
        "data": _fingerprint(data),
        "validation": None if validation is None else _fingerprint(validation),
        "loss": _description(loss),
    }


def check_identity(
    path: Path, state: dict[str, Any], mine: dict[str, Any], free: Collection[str]
) -> None:
    """Refuse a checkpoint of another run than ``mine``, but for ``free`` fields of the config.

    Raises:
        ValueError: it is of another; the message names the argument.
    """
    for name, value in mine["config"].items():
        if name not in free and state["config"][name] != value:
            raise ValueError(
                f"{name} must be that of checkpoint {path}, "
                f"{state['config'][name]!r}, to resume, got {value!r}"
            )
    for name in ("data", "validation"):
        if state[name] != mine[name]:
            raise ValueError(f"{name} must be that of checkpoint {path} to resume, got other data")
    if state["loss"] != mine["loss"]:
        raise ValueError(
            f"loss must be that of checkpoint {path}, {state['loss']}, to resume, "
            f"got {mine['loss']}"
        )


def generators(loss: object) -> list[torch.Generator]:
    """The generators that a loss draws from by its fields, each once, in their order."""
    if isinstance(loss, torch.Generator):
        return [loss]
    if not is_dataclass(loss) or isinstance(loss, type):
        return []
    found = [g for f in fields(loss) for g in generators(getattr(loss, f.name))]
    return list({id(g): g for g in found}.values())


def _description(loss: object) -> str:
    """What tells one loss from another: its name and the fields it was made with."""
    if isinstance(loss, torch.Generator):
        return "Generator"
    if is_dataclass(loss) and not isinstance(loss, type):
        parts = (f"{f.name}={_description(getattr(loss, f.name))}" for f in fields(loss))
        return f"{type(loss).__qualname__}({', '.join(parts)})"
    if callable(loss):
        return str(getattr(loss, "__qualname__", type(loss).__qualname__))
    # NumPy's numbers as Python's: which of them a loss was made with decides nothing.
    return repr(plain(loss))


def _fingerprint(data: Dataset) -> str:
    digest = hashlib.sha256()
    for tensor in (data.y, data.x):
        if tensor is not None:
            digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
            # As bytes, for NumPy knows no bfloat16.
            values = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
