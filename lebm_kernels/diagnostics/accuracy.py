"""The error of F from beta = 0 to infinity, for the picture of ``lebm gradcheck``."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lebm_kernels.diagnostics import promise
from lebm_kernels.diagnostics.oracle import exact, to_array
from lebm_kernels.diagnostics.subjects import Subject, selected

BETAS = (0.0, *(10.0**k for k in range(-12, 13)), math.inf)
"""Where the error is measured, from hot to cold."""


def accuracy(subject: Subject | None, seed: int = 0) -> list[float]:
    """The largest error of F in float32 at each of :data:`BETAS`, in eps of the promise's scale.

    There are three problems: queries near the latents, queries far from them, and queries and
    latents that are offset by 100.

    Args:
        subject: computes F; None for the expansion |y|^2 - 2 y g + |g|^2 in plain PyTorch.
        seed: of the data.
    """
    generator = torch.Generator().manual_seed(seed)
    problems = []
    for far, offset in ((0.0, 0.0), (30.0, 0.0), (0.0, 100.0)):
        y, decoded = (
            torch.randn(num, 2, generator=generator, dtype=torch.float32, device="cpu") + offset
            for num in (64, 257)
        )
        y = y + far
        problems.append((y, decoded))
    return [max(_error(subject, y, decoded, beta) for y, decoded in problems) for beta in BETAS]


def _error(subject: Subject | None, y: Tensor, decoded: Tensor, beta: float) -> float:
    if subject is None:
        found = _expanded(y, decoded, beta)
    else:
        with selected(subject) as function:
            found = function(y.to(subject.device), decoded.to(subject.device), beta).cpu()
    number = torch.tensor(beta, dtype=torch.float64, device="cpu")
    truth = exact({"y": y, "decoded": decoded, "beta": number})
    error = np.abs(to_array(found) - truth.free_energy)
    unit = promise.eps(found.dtype) * truth.magnitude
    return float(np.where(np.isnan(error), np.inf, error / unit).max())


def _expanded(y: Tensor, decoded: Tensor, beta: float) -> Tensor:
    energy = y.square().sum(-1, keepdim=True) - 2 * y @ decoded.T + decoded.square().sum(-1)
    if beta == math.inf:
        return energy.amin(-1)
    if beta == 0:
        return energy.mean(-1)
    return (math.log(energy.shape[-1]) - torch.logsumexp(-beta * energy, -1)) / beta
