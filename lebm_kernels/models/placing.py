"""The dtype and the device of new tensors: PyTorch's defaults, as for torch.nn.Linear."""

from __future__ import annotations

from typing import Any

import torch

from lebm_kernels.checks import check_device, check_dtype, check_generator


def placement(
    dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> dict[str, Any]:
    """Keyword arguments ``dtype`` and ``device``; PyTorch's defaults where None.

    Raises:
        TypeError: ``dtype`` is not a floating-point dtype, or ``device`` not a device.
        ValueError: PyTorch does not have that device.
    """
    check_dtype("dtype", dtype)
    check_device("device", device)
    return {
        "dtype": torch.get_default_dtype() if dtype is None else dtype,
        "device": torch.get_default_device() if device is None else torch.device(device),
    }


def drawing_device(generator: torch.Generator | None) -> torch.device:
    """The device that numbers can be drawn on: the generator's, or else PyTorch's default.

    Raises:
        TypeError: ``generator`` is not a generator.
    """
    check_generator("generator", generator)
    return torch.get_default_device() if generator is None else generator.device
