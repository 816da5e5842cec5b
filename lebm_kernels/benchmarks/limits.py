"""The limit of a case's speed on this machine.

On a CPU the limit is measured by other work, loops of exponentials and of FMAs or a matrix product,
in the same rounds as the case. On a GPU the exponentials per second follow from the clock.
"""

from __future__ import annotations

import torch

from lebm_kernels.benchmarks.cases import Case
from lebm_kernels.benchmarks.memory import available_bytes
from lebm_kernels.benchmarks.peak import (
    THREAD_PAIRS,
    ExponentialLoop,
    MultiplyAddLoop,
    fastest_loop,
)

#: From this many dimensions on, the matrix product limits F where the loops say nothing.
PRODUCT_DIM = 32

#: Dimensions that the loop of exponentials has.
LOOP_DIM = 2

#: Arguments whose gradients take a column pass, which computes all exponentials again.
_LATENT_SIDE = {"decoded", "log_weight", "latent_energy"}

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


class LeastWork:
    """The least work of pairs in D dimensions; calling it does it on all threads.

    A pair takes one exponential, with the FMAs of two dimensions, and D - 2 further FMAs. The
    posterior mean, for gradients of queries, takes D more. With gradients of latents a pair takes
    two exponentials and 4 D - 4 further FMAs.

    Attributes:
        pairs: pairs per call.
        exponentials: exponentials per pair.
        products: further FMAs per pair.

    Raises:
        NotAvailableError: the loops cannot be compiled.
    """

    def __init__(self, case: Case, threads: int) -> None:
        D = case.D
        self.exponentials = 2 if _LATENT_SIDE & set(case.backward) else 1
        forward = D - LOOP_DIM
        self.products = forward + D if case.backward else forward
        if self.exponentials == 2:
            self.products = 4 * D - 4
        # A call takes about as long at every D.
        thread_pairs = THREAD_PAIRS // (1 + self.products // 16)
        self._loop = ExponentialLoop(fastest_loop(threads).variant, threads, thread_pairs)
        self.pairs = self._loop.pairs
        self._products = MultiplyAddLoop(threads, self.pairs // threads * self.products)

    def __call__(self) -> None:
        """Do the work of ``pairs`` pairs."""
        for _ in range(self.exponentials):
            self._loop()
        self._products()


Bound = ExponentialLoop | LeastWork | Product
"""Work that limits a case, with its number of pairs per call."""


def bound(case: Case) -> Bound | None:
    """The work that limits this case; None if no limit is known or the work would not fit.

    On a CPU it is the loop of exponentials on PyTorch's threads, in float32, and from three
    dimensions on :class:`LeastWork`. In two dimensions gradients need more work than the loop, so
    such a case cannot reach its limit. A case that prunes pairs can exceed it. Elsewhere it is the
    product, from D = 32 on: below that, memory limits the product.

    Raises:
        NotAvailableError: the loops cannot be compiled.
    """
    if case.device == "cpu" and case.dtype != torch.float64:
        threads = torch.get_num_threads()
        return fastest_loop(threads) if case.D <= LOOP_DIM else LeastWork(case, threads)
    if case.D < PRODUCT_DIM:
        return None
    free = available_bytes(case.device)
    fits = free is None or case.M * case.N * case.dtype.itemsize <= free / 4
    return Product(case) if fits else None


def exponentials_per_second(device: str) -> float | None:
    """Exponentials per second of a GPU, from its clock and multiprocessors; None for a CPU."""
    if device == "cpu":
        return None
    properties = torch.cuda.get_device_properties(device)
    kilohertz = getattr(properties, "clock_rate", None)  # older versions of PyTorch hide it
    if kilohertz is None:
        return None
    return _EXPONENTIALS * properties.multi_processor_count * kilohertz * 1e3
