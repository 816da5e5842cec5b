"""A context manager that sets the number of PyTorch's threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Set the number of PyTorch's threads inside the context, and restore it afterwards.

    For tiny tensors use one thread: on a busy machine, waiting for a second one costs far more.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
