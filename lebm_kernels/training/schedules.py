"""Schedules: what changes along a run as a function of the share of its steps that is done."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lebm_kernels.checks import check_positive, number

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}
"""The learning rate's factor as a function of the share of the steps that is done, in [0, 1)."""


@dataclass(frozen=True)
class Annealing:
    """An inverse temperature that rises by a constant factor a step, and then jumps to its last.

    Warm, every latent feels every observation; cold, each observation pulls its nearest latent
    alone. A decoder that learns a shape finds it warm, and its detail as it cools.

    Attributes:
        start: beta at the first step, positive and finite.
        end: beta where the rise ends, positive and finite; below ``start`` it falls.
        share: the share of the steps that the rise takes, in (0, 1].

    Raises:
        ValueError: a field is out of range; the message names it.
    """

    start: float
    end: float
    share: float = 0.75

    def __post_init__(self) -> None:
        """Check each field."""
        for name in ("start", "end"):
            check_positive(name, getattr(self, name))
        if not (0.0 < number(self.share) <= 1.0):
            raise ValueError(f"share must be in (0, 1], got {self.share!r}")
        for name in ("start", "end", "share"):  # NumPy's numbers have no place in a checkpoint
            object.__setattr__(self, name, number(getattr(self, name)))

    def beta(self, done: float, last: float) -> float:
        """The inverse temperature when the share ``done`` of the steps is done.

        Args:
            done: in [0, 1).
            last: beta after the rise.
        """
        if done >= self.share:
            return last
        return float(self.start * (self.end / self.start) ** (done / self.share))
