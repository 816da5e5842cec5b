"""Random arguments of the functions, which most tests start from."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lebm_kernels.arguments import TENSORS

NAMES = tuple(row.name for row in TENSORS)
"""The tensors that a free energy is differentiable in, in the order of the arguments."""

PLAIN = NAMES[:3]
"""Those that every call has."""


MIXED_BETAS = (0.0, 1e-7, 0.1, 1.0, 30.0, 1e4, math.inf)
"""Hot, warm and cold, for queries that are processed together."""


def problem(
    M: int = 17,
    N: int = 123,
    D: int = 2,
    *,
    beta: float | Sequence[float] | Tensor = 1.0,
    dtype: torch.dtype = torch.float32,
    names: Collection[str] = NAMES,
    shared: bool = False,
) -> dict[str, Any]:
    """The arguments ``names`` of M queries and N latents.

    ``beta`` is a number for all queries, numbers for the queries in turn, or the tensor itself.
    The scale is ``shared``, or each query has its own.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, dtype=dtype)

    made = {
        "y": lambda: normal(M, D),
        "decoded": lambda: normal(N, D),
        "beta": lambda: _for_queries(beta, M).to(dtype),
        "scale": lambda: uniform(*([D] if shared else [M, D])) + 0.5,
        "log_weight": lambda: normal(N),
        "latent_energy": lambda: uniform(N),
    }
    return {name: made[name]() for name in NAMES if name in names}


def _for_queries(beta: float | Sequence[float] | Tensor, M: int) -> Tensor:
    if isinstance(beta, Tensor):
        return beta
    values = torch.tensor(beta, dtype=torch.float64).reshape(-1)
    return values.repeat(M // len(values) + 1)[:M]


SMALL_BETAS = (0.0, 1e-6, 1e-2, 0.8, 50.0, math.inf)
"""Betas of a small problem: from where 1/beta^2 cancels to where only the minimum counts."""

small_problem = partial(problem, M=5, N=7, dtype=torch.float64)
"""A problem whose derivatives autograd takes through the formulas quickly and accurately."""
