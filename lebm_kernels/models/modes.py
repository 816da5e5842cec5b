"""Evaluation mode for a while: Dropout is off, and BatchNorm counts no batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(*parts: object) -> Iterator[None]:
    """Put every module of ``parts`` in evaluation mode, and then each back in the mode it had.

    Args:
        parts: modules; other objects are ignored.
    """
    roots = [part for part in parts if isinstance(part, nn.Module)]
    modes = [(module, module.training) for root in roots for module in root.modules()]
    for root in roots:
        root.eval()
    try:
        yield
    finally:
        # From a module to its parts: train() changes the parts too.
        for module, training in modes:
            if module.training != training:
                module.train(training)  # not the attribute alone: a module may do more there
