"""The limit of a case's speed on this machine.

On a CPU the limit is measured by other work, a matrix product or a loop of exponentials, in the
same rounds as the case. On a GPU the exponentials per second follow from the clock.
"""

from __future__ import annotations

import torch

from lebm_kernels.benchmarks.cases import Case
from lebm_kernels.benchmarks.memory import available_bytes
from lebm_kernels.benchmarks.peak import ExponentialLoop, fastest_loop

#: From this many dimensions on, the matrix product limits F.
PRODUCT_DIM = 32

#: Exponentials per clock and multiprocessor of NVIDIA's GPUs; a pair needs one.
_EXPONENTIALS = 16


class Product:
    """The product ``y @ decoded.T`` of a case; calling it computes it into preallocated memory.

    Attributes:
        pairs: pairs per call, M N.
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
    """The work that limits this case; None if no limit is known or the work would not fit.

    From D = 32 on, it is the product. Below that, memory limits the product, and the limit on a CPU
    is the loop of exponentials on PyTorch's threads, with the work of two dimensions in float32.
    More dimensions and gradients need more work than these, so such a case cannot reach its limit.
    A case that prunes pairs can exceed it.

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
    """Exponentials per second of a GPU, from its clock and multiprocessors; None for a CPU."""
    if device == "cpu":
        return None
    properties = torch.cuda.get_device_properties(device)
    kilohertz = getattr(properties, "clock_rate", None)  # older versions of PyTorch hide it
    if kilohertz is None:
        return None
    return _EXPONENTIALS * properties.multi_processor_count * kilohertz * 1e3
