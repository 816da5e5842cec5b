"""Products of halves on tensor cores against the promise on accuracy: the model, before kernels.

Faults that a kernel could have are planted in the model; each must break the promise.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from support import point_clouds, split_products
from support.accuracy import assert_accurate, assert_gradients_accurate
from support.point_clouds import Cloud
from support.product_shares import results
from support.split_products import CARDS, SM_80, SM_90, Block, Card, Halves, Model, Rows, Verdict
from torch import Tensor


class Case(NamedTuple):
    """Random queries and latents, and how many tiles may be lost at most at each beta."""

    cloud: Cloud
    M: int
    N: int
    D: int
    lost: dict[float, float]
    seed: int = 0

    def model(self, card: Card) -> tuple[Model, Tensor]:
        """And the gradient that arrives at F."""
        generator = torch.Generator().manual_seed(self.seed)
        y, decoded = self.cloud(self.M, self.N, self.D, generator)
        grad = torch.randn(self.M, generator=generator)
        return Model(y, decoded, card, self.seed), grad


CASES = {
    "unstructured": Case(point_clouds.normal, 12, 576, 64, {0.1: 0, 10.0: 0, 1e4: 0}),
}
