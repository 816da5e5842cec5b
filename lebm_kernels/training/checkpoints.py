"""Checkpoints: a file with the state of a training run, and with what identifies the run.

An interruption while writing leaves the previous file intact. A checkpoint holds only numbers,
strings and tensors, so reading an untrusted file cannot run code.

The file is one of ``torch.save``, followed by a seal: a title and a hash of all bytes before it.
``torch.load`` ignores the seal, and does not find damage; :func:`read` does.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from lebm_kernels.files import write_bytes

FORMAT = 5

_TITLE = b"lebm_kernels checkpoint, sha256 "
_SEAL_BYTES = len(_TITLE) + hashlib.sha256().digest_size


def write(path: Path, state: dict[str, Any]) -> None:
    """Write the state to a temporary file, then rename it to ``path``, which is atomic."""
    content = io.BytesIO()
    torch.save({"format": FORMAT, **state}, content)
    write_bytes(path, content.getbuffer(), _seal(content.getbuffer()))


def read(path: Path) -> dict[str, Any]:
    """Read the state from a checkpoint.

    Raises:
        FileNotFoundError: ``path`` does not exist.
        OSError: ``path`` cannot be read.
        ValueError: the file is damaged, or not a checkpoint of this format.
    """
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist: nothing to resume from")
    state = _state(path.read_bytes())
    if state is None:
        raise ValueError(f"checkpoint {path} is damaged or not a checkpoint")
    if state["format"] != FORMAT:
        raise ValueError(
            f"checkpoint {path} must have format {FORMAT} to resume, got {state['format']!r}"
        )
    return state


def _state(whole: bytes) -> dict[str, Any] | None:
    """The state in a file's bytes, of any format; None if they are damaged or no checkpoint."""
    content, seal = memoryview(whole)[:-_SEAL_BYTES], whole[-_SEAL_BYTES:]
    sealed = seal == _seal(content)
    # Formats up to 4 had no seal. They are read as far as their number if their zip is sound.
    if not sealed and not _is_sound_zip(whole):
        return None
    try:
        state = torch.load(io.BytesIO(whole), map_location="cpu", weights_only=True)
    except Exception:  # of many types, which depend on what else the file is
        return None
    if not isinstance(state, dict) or "format" not in state:
        return None
    return None if state["format"] == FORMAT and not sealed else state


def _seal(content: memoryview) -> bytes:
    return _TITLE + hashlib.sha256(content).digest()


def _is_sound_zip(content: bytes) -> bool:
    """Whether it is a zip archive whose members all have their checksums."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.testzip() is None
    except Exception:  # of many types, which depend on the damage
        return False
