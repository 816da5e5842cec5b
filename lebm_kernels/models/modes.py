"""Evaluation mode for a while: Dropout is off, and BatchNorm counts no batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Put the modules and their parts in evaluation mode, and then each back in the mode it had."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        # From a module to its parts: train() changes the parts too.
        for module, training in modes:
            if module.training != training:
                module.train(training)  # not the attribute alone: a module may do more there
