"""Data: the practicum's ellipse and horn, and handwritten digits.

An observation of the horn at x is a noisy point of an ellipse, with radii rho(x) that grow with x::

    y      = rho(x) * [cos t, sin t] + noise,     t ~ U[0, 2 pi),    noise ~ N(0, 0.05^2) on each
    rho(x) = [a x + b (1 - x), b x + a (1 - x)] * exp(2 x),          a = 1.5, b = 2

The radii are (2, 1.5) at x = 0 and e^2 (1.5, 2) = (11.08, 14.78) at x = 1. The ellipse is the
section at x = 0. The digits are scikit-learn's, which the extra ``models`` installs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lebm_kernels.checks import (
    check_count,
    check_kind,
    check_not_negative,
    check_seed,
    number,
    shown,
)
from lebm_kernels.extras import needs
from lebm_kernels.models.decoders import circle
from lebm_kernels.models.placing import drawing_device, placement

NOISE = 0.05
"""Standard deviation of the noise on each component."""

RADII = (1.5, 2.0)
"""The practicum's a and b."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Observations and, for a conditional model, the condition of each.

    Attributes:
        y: observations, ``[num, D]``, floating point, num >= 1 and D >= 1.
        x: conditions, ``[num]``; ``None`` for unconditional data.

    Raises:
        TypeError: ``y`` isn't a tensor, or ``x`` is neither a tensor nor ``None``.
        ValueError: ``y`` or ``x`` has another shape.
    """

    y: Tensor
    x: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the shapes."""
        for name, value, form in (("y", self.y, "[num, D]"), ("x", self.x, "[num]")):
            if not isinstance(value, Tensor) and (name == "y" or value is not None):
                raise TypeError(f"{name} must be a tensor {form}, got {type(value).__name__}")
        if self.y.dim() != 2 or self.y.numel() == 0:
            raise ValueError(f"y must have shape [num, D], num, D >= 1, got {list(self.y.shape)}")
        if self.x is not None and self.x.shape != self.y.shape[:1]:
            raise ValueError(f"x must have shape [{len(self)}], got {list(self.x.shape)}")

    def __len__(self) -> int:
        """Return the number of observations."""
        return self.y.shape[0]

    def __getitem__(self, index: Tensor) -> Dataset:
        """The observations at ``index``, a tensor of integers or booleans."""
        return Dataset(self.y[index], None if self.x is None else self.x[index])

    def to(self, like: Tensor) -> Dataset:
        """The same observations with the dtype and device of ``like``."""
        return Dataset(self.y.to(like), None if self.x is None else self.x.to(like))


def horn_radii(x: Tensor) -> Tensor:
    """The true radii rho(x) of the horn's sections, ``[..., 2]``, at conditions ``x[...]``.

    Example:
        >>> horn_radii(torch.tensor(0.0))
        tensor([2.0000, 1.5000])
    """
    check_kind("x", x, Tensor, "a tensor of conditions [...]")
    a, b = RADII
    ends = torch.stack([a * x + b * (1.0 - x), b * x + a * (1.0 - x)], dim=-1)
    return ends * torch.exp(2.0 * x).unsqueeze(-1)


def ellipse_data(
    num: int = 24,
    *,
    noise: float = NOISE,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Dataset:
    """Draw unconditional observations: the horn's section at x = 0, with radii (2, 1.5).

    Args:
        num: number of observations, at least 1.
        noise: standard deviation of the noise on each component, at least 0.
        generator: source of the draws; the global generator if absent.
        dtype: floating-point type of the data; PyTorch's default dtype if absent.
        device: of the data; PyTorch's default device if absent.

    Raises:
        TypeError: ``generator``, ``dtype`` or ``device`` is of the wrong type.
        ValueError: ``num`` or ``noise`` is out of range.

    Example:
        >>> ellipse_data(24).y.shape
        torch.Size([24, 2])
    """
    _check(num, noise)
    options, device = placement(dtype, device), drawing_device(generator)
    x = torch.zeros(num, dtype=options["dtype"], device=device)
    return Dataset(_observe(x, noise, generator).to(**options))


def horn_data(
    num: int = 2000,
    *,
    noise: float = NOISE,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Dataset:
    """Draw conditional observations: x uniform in [0, 1], y a noisy point of the section at x.

    Args:
        num: number of observations, at least 1.
        noise: standard deviation of the noise on each component, at least 0.
        generator: source of the draws; the global generator if absent.
        dtype: floating-point type of the data; PyTorch's default dtype if absent.
        device: of the data; PyTorch's default device if absent.

    Raises:
        TypeError: ``generator``, ``dtype`` or ``device`` is of the wrong type.
        ValueError: ``num`` or ``noise`` is out of range.
    """
    _check(num, noise)
    options, device = placement(dtype, device), drawing_device(generator)
    x = torch.rand(num, generator=generator, dtype=options["dtype"], device=device)
    return Dataset(_observe(x, noise, generator).to(**options), x.to(**options))


class Digits(NamedTuple):
    """Handwritten digits of 8 x 8 pixels, in a training and a held-out part.

    Attributes:
        train: images for training; pixels in [0, 1], ``[num, 64]``.
        train_label: the digit of each image, ``[num]``, int64.
        test: held-out images, like ``train``.
        test_label: the digit of each held-out image, like ``train_label``.
    """

    train: Dataset
    train_label: Tensor
    test: Dataset
    test_label: Tensor


def digits(
    held_out: float = 0.2,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Digits:
    """Load scikit-learn's 1797 digits, split at random.

    Args:
        held_out: the held-out fraction, in (0, 1).
        seed: of the split, an integer of at least 0 and below 2^63.
        dtype: floating-point type of the images; PyTorch's default dtype if absent.
        device: of all tensors; PyTorch's default device if absent.

    Raises:
        TypeError: ``dtype`` or ``device`` is of the wrong type.
        ValueError: ``held_out`` or ``seed`` is out of range.
        MissingExtraError: (an ImportError) scikit-learn is not installed.
    """
    if not (0.0 < number(held_out) < 1.0):
        raise ValueError(f"held_out must be in (0, 1), got {shown(held_out)}")
    check_seed("seed", seed)
    options = placement(dtype, device)
    with needs("models"):
        from sklearn.datasets import load_digits

    found = load_digits()
    y = torch.from_numpy(found.data / 16.0).to(**options)
    label = torch.from_numpy(found.target).to(dtype=torch.int64, device=y.device)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=generator, device="cpu").to(y.device)
    test, train = order.tensor_split([max(1, min(len(y) - 1, round(held_out * len(y))))])
    return Digits(Dataset(y[train]), label[train], Dataset(y[test]), label[test])


def _observe(x: Tensor, noise: float, generator: torch.Generator | None) -> Tensor:
    drawn: dict[str, Any] = {"generator": generator, "dtype": x.dtype, "device": x.device}
    t = torch.rand(x.shape, **drawn) * (2.0 * math.pi)
    clean = horn_radii(x) * circle(t)
    return clean + float(noise) * torch.randn(clean.shape, **drawn)


def _check(num: int, noise: float) -> None:
    check_count("num", num, 1)
    check_not_negative("noise", noise)
