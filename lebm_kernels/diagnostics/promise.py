"""How close is close enough: the promise on accuracy, for the tests and ``lebm gradcheck`` alike.

The truth is computed in a wider format from the same (rounded) arguments: see
:mod:`lebm_kernels.diagnostics.oracle`. With eps of the dtype that is computed in,

    F           |F - F64| <= 16 eps scale
                scale = min E + min(<E>_w - min E, (1 + log N) / beta)
    gradients   |d - d64| <= 2 max(reference error, eps noise) + 16 eps magnitude

With log-weights each term of <E>_w counts 1 + |log w| / 16 times. A posterior weight below 2^-64
(2^-256 in float64) may count as 0: its terms may be absent from <E>, KL and the gradients.

Here ``min E`` stands for the sum of the absolute terms of the smallest energy, and log N for
-log w of its latent where that is larger. The reference is the formulas in the same dtype, with
differences and not with the expansion of the squares. ``magnitude`` is the sum of the absolute
terms of a gradient; ``noise`` is the change of a gradient through the posterior where every E and
every log-weight has a relative error of 1, to first order.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.floating[Any]]
_Size = TypeVar("_Size", float, Array, Tensor)

ROUNDINGS = 16
"""How many eps of the magnitude a result may be wrong by."""

REFERENCE_ERRORS = 2
"""How many times the error of the reference a gradient may be wrong by, beside the roundings."""


_LEAST_WEIGHT = {torch.float32: 2.0**-64, torch.float64: 2.0**-256}


def least_weight(dtype: torch.dtype) -> float:
    """The posterior weight below which a latent may be absent from a result of ``dtype`` inputs."""
    return _LEAST_WEIGHT[torch.float64 if dtype == torch.float64 else torch.float32]


def eps(dtype: torch.dtype) -> float:
    """The rounding unit of the dtype that arguments of ``dtype`` are computed in."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def allowed(magnitude: _Size, dtype: torch.dtype) -> _Size:
    """16 eps magnitude: the error allowed in a sum with absolute terms of this magnitude."""
    return magnitude * (ROUNDINGS * eps(dtype))


def value_scale(
    least: npt.ArrayLike,
    mean_excess: npt.ArrayLike,
    beta: npt.ArrayLike,
    num_latents: int,
    nearest_log_weight: npt.ArrayLike,
) -> Array:
    """The magnitude of F: least + min(mean_excess, (1 + log N) / beta).

    Args:
        least: the sum of the absolute terms of the smallest energy; that energy if all terms are
            positive.
        mean_excess: <E>_w - min E.
        beta: the inverse temperature.
        num_latents: N.
        nearest_log_weight: normalised log-weight log w of the latent of the smallest energy.
    """
    log_size = np.maximum(np.log(num_latents), np.negative(nearest_log_weight))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.add(least, np.fmin(mean_excess, np.divide(1 + log_size, beta)))


def gradient_bound(
    truth: Array,
    by_reference: Array,
    magnitude: npt.ArrayLike,
    noise: npt.ArrayLike,
    dtype: torch.dtype,
    beneath: npt.ArrayLike = 0.0,
) -> Array:
    """The error allowed in every element of a gradient.

    The reference's error is its largest in the tensor: one element of it may be right by luck. All
    of them may be, so the error counts as at least what a relative error of eps in E causes.

    Args:
        truth: the gradient.
        by_reference: the gradient by the reference in the same dtype.
        magnitude: the sum of the absolute terms of the gradient.
        noise: the change of the gradient where every E has a relative error of 1.
        dtype: the gradient's; a half is rounded once more.
        beneath: an error too small to count: terms below the range of the dtype, and those of
            posterior weights below :func:`least_weight`.
    """
    reference_error = np.abs(by_reference - truth).max(initial=0)
    at_least = eps(dtype) * np.asarray(noise)
    bound = REFERENCE_ERRORS * np.maximum(reference_error, at_least)
    bound = bound + allowed(np.asarray(magnitude), dtype) + np.asarray(beneath)
    if dtype in (torch.float16, torch.bfloat16):
        half = torch.finfo(dtype)
        bound = bound + half.eps * np.abs(truth) + half.smallest_normal
    return np.asarray(bound)
