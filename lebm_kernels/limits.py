"""What bounds a case on this machine, where it is known without compiling anything.

The loop of exponentials that bounds a CPU at small D is in ``bench/peak.py``: it needs a compiler.
"""

from __future__ import annotations

import torch

from lebm_kernels.cases import Case
from lebm_kernels.memory import available_bytes

#: From so many dimensions on, it is the matrix product that bounds F.
PRODUCT_DIM = 32

#: Exponentials a clock and multiprocessor of NVIDIA's GPUs, one a pair.
_EXPONENTIALS = 16


class Product:
    """Calling it computes ``y @ decoded.T`` of a case, its ``pairs`` numbers, into memory it has.

    Attributes:
        pairs: that one call visits.
    """

    def __init__(self, case: Case) -> None:
        inputs = case.inputs()
        self._y, self._decoded = inputs["y"].detach(), inputs["decoded"].detach()
        self._out = self._y.new_empty(case.M, case.N)
        self.pairs: int = case.M * case.N

    def __call__(self) -> None:
        """Compute the product."""
        torch.mm(self._y, self._decoded.mT, out=self._out)


def product(case: Case) -> Product | None:
    """The product that bounds this case; None where another thing does, or it would not fit."""
    if case.D < PRODUCT_DIM:
        return None
    free = available_bytes(case.device)
    if free is not None and case.M * case.N * case.dtype.itemsize > free / 4:
        return None
    return Product(case)


def exponentials_per_second(device: str) -> float | None:
    """That a GPU can take, by its clock and multiprocessors; None for a CPU."""
    if device == "cpu":
        return None
    properties = torch.cuda.get_device_properties(device)
    kilohertz = getattr(properties, "clock_rate", None)  # older versions of PyTorch hide it
    if kilohertz is None:
        return None
    return _EXPONENTIALS * properties.multi_processor_count * kilohertz * 1e3
