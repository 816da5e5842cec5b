"""The oracle's line in the table of backends.

Only its availability lives here: ``reference`` is plain autograd, to any order, and so never
reaches the operator. :mod:`lebm_kernels.functional` calls :mod:`lebm_kernels.reference` itself.
"""

from __future__ import annotations


def unavailable(device: str) -> str | None:
    """None: it runs wherever PyTorch does."""
    return None


def describe() -> str:
    """One line for the table of backends."""
    return "the formulas, literally; holds queries x latents x dimensions"
