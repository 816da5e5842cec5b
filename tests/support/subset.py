"""Checks of a few of many queries: the oracle takes too long for all of them.

The incoming gradients of the other queries are zero, so these add nothing to the gradients of
arguments that queries share.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lebm_kernels import free_energy, posterior, reference
from lebm_kernels.diagnostics import promise
from support.accuracy import assert_accurate, assert_gradients_accurate, gradients
from support.oracle import exact, to_array
from support.problems import PLAIN, problem

# Backends that do nothing special for many queries get enough to fill their tiles, and some more.
FEWER = {"chunked": 40, "emulated_cuda": 140, "triton": 67}

# The number of dimensions of an argument that has one value, or row, for each query.
_PER_QUERY = {"y": 2, "beta": 1, "scale": 2}

_ENERGY = ("y", "decoded", "scale", "latent_energy")


def tiled(backend: str, M: int, N: int, D: int, **options: Any) -> dict[str, Any]:
    """A problem without scale and weights; of M queries, as many as matter to the backend."""
    return problem(fewer(backend, M), N, D, names=PLAIN, **options)


def fewer(backend: str, M: int) -> int:
    """As many of M queries as matter to the backend."""
    return min(M, FEWER.get(backend, M))


def restricted(arguments: dict[str, Tensor], some: Tensor) -> dict[str, Tensor]:
    """The arguments of some queries alone, or the gradients by them."""
    return {
        name: x[some] if x.dim() == _PER_QUERY.get(name) else x for name, x in arguments.items()
    }


def chosen(M: int, count: int) -> Tensor:
    """The first, the last and ``count`` random queries."""
    return torch.cat((torch.tensor([0, M - 1]), torch.randperm(M)[:count])).unique()


def check(
    backend: str, arguments: dict[str, Tensor], count: int = 10, some: Tensor | None = None
) -> None:
    """F and all gradients keep the promise, for ``count`` queries or for ``some``."""
    M = len(arguments["y"])
    some = chosen(M, count) if some is None else some
    few = restricted(arguments, some)
    function = partial(free_energy, backend=backend)
    assert_accurate(function(**arguments)[some], **few)
    grad = torch.zeros(M, dtype=few["y"].dtype)
    grad[some] = torch.randn(len(some), dtype=grad.dtype)
    found = restricted(gradients(function, arguments, grad), some)
    assert_gradients_accurate(found, few, grad[some])


def check_index(backend: str, arguments: dict[str, Tensor], count: int = 10) -> None:
    """The energy at the posterior's index is the smallest, up to rounding."""
    some = chosen(len(arguments["y"]), count)
    few = restricted(arguments, some)
    index = posterior(**arguments, backend=backend).index[some]
    energy = reference.energies(*(few[x].double() if x in few else None for x in _ENERGY))
    excess = energy.gather(-1, index[:, None])[:, 0] - energy.amin(-1)
    cold = {**few, "beta": torch.tensor(math.inf, dtype=few["y"].dtype)}
    assert (excess.numpy() <= promise.allowed(exact(**cold).magnitude, few["y"].dtype)).all()


def check_posterior(backend: str, arguments: dict[str, Tensor], count: int = 10) -> None:
    """The expectations: a relative error of eps in E makes one of beta eps E in p.

    E itself may be the small rest of larger terms, which ``magnitude`` counts.
    """
    some = chosen(len(arguments["y"]), count)
    few = restricted(arguments, some)
    found = posterior(**arguments, backend=backend)
    assert_accurate(found.free_energy[some], **few)
    truth = exact(**few)
    beta = to_array(few["beta"])
    finite = np.where(beta == np.inf, 0, beta)
    size = np.maximum(np.abs(truth.energy), truth.magnitude)
    blur = promise.allowed(1 + finite * size, few["y"].dtype)
    bounds: dict[str, Any] = {
        "mean": (blur * np.abs(to_array(few["decoded"])).max())[:, None],
        "energy": blur * size.max(),
        "relative_entropy": blur * (1 + truth.relative_entropy),
    }
    for name, bound in bounds.items():
        error = np.abs(to_array(getattr(found, name)[some]) - getattr(truth, name))
        assert (error <= bound).all(), f"{name}: {float((error / bound).max()):.3g} times the bound"
    check_index(backend, arguments, count)
