"""What bounds a case on this machine.

A product or a loop of exponentials is work that runs beside what it bounds, in the same rounds; a
GPU's exponentials are counted by its clock.
"""

from __future__ import annotations

import torch

from lebm_kernels.benchmarks.cases import Case
from lebm_kernels.benchmarks.memory import available_bytes
from lebm_kernels.benchmarks.peak import ExponentialLoop, fastest_loop

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


def bound(case: Case) -> ExponentialLoop | Product | None:
    """The work that bounds this case; None where none is known, or it would not fit.

    The product counts from D = 32 on; below, it is memory that bounds it, and on a CPU the loop of
    exponentials counts, on PyTorch's threads, which has the work of two dimensions in float32.
    More dimensions and gradients take more work than either: no such case can reach its limit. A
    case that leaves pairs out can pass it.

    Raises:
        NotAvailableError: the loop cannot be compiled.
    """
    if case.D >= PRODUCT_DIM:
        free = available_bytes(case.device)
        fits = free is None or case.M * case.N * case.dtype.itemsize <= free / 4
        return Product(case) if fits else None
    if case.device != "cpu" or case.dtype == torch.float64:
        return None
    return fastest_loop(torch.get_num_threads())


def exponentials_per_second(device: str) -> float | None:
    """That a GPU can take, by its clock and multiprocessors; None for a CPU."""
    if device == "cpu":
        return None
    properties = torch.cuda.get_device_properties(device)
    kilohertz = getattr(properties, "clock_rate", None)  # older versions of PyTorch hide it
    if kilohertz is None:
        return None
    return _EXPONENTIALS * properties.multi_processor_count * kilohertz * 1e3
