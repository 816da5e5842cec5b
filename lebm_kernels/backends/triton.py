"""The Triton backend's place in the table: its kernels are not written yet."""

from __future__ import annotations


def unavailable(device: str) -> str | None:
    """Why it cannot run on tensors of that device type."""
    return "its kernels are not part of this version"
