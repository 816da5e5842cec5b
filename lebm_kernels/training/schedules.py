"""Schedules: the learning rate and the temperature as functions of the run's progress.

The progress ``done`` is the fraction of the run's steps that are done, in [0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lebm_kernels.checks import check_positive, number, shown

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}
"""The factor of the learning rate as a function of ``done``."""


@dataclass(frozen=True)
class Annealing:
    """An inverse temperature that rises by a constant factor per step, then jumps to a last value.

    Warm, every observation pulls every latent. Cold, each observation pulls only its nearest
    latent. A decoder that has to learn a shape finds the shape while warm and the details while
    cooling.

    Attributes:
        start: beta at the first step, positive and finite.
        end: beta at the end of the rise, positive and finite; below ``start``, beta falls.
        share: the fraction of the steps that the rise takes, in (0, 1].

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
            raise ValueError(f"share must be in (0, 1], got {shown(self.share)}")
        for name in ("start", "end", "share"):  # a checkpoint cannot hold NumPy's numbers
            object.__setattr__(self, name, number(getattr(self, name)))

    def beta(self, done: float, last: float) -> float:
        """The inverse temperature of the next step.

        Args:
            done: the fraction of the steps that are done, in [0, 1).
            last: beta after the rise.
        """
        if done >= self.share:
            return last
        return float(self.start * (self.end / self.start) ** (done / self.share))
