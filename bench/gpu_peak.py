"""The most pairs per second that this GPU can compute: ``python bench/gpu_peak.py``.

A pair of the loop takes two FMAs for the exponent, one exponential and one addition, all in
registers. The special function units limit it: 16 exponentials per clock and multiprocessor. At a
large D the matrix product of the same shape limits F, see
:class:`lebm_kernels.benchmarks.limits.Product`.
"""

from __future__ import annotations

import sys

import torch
import triton
import triton.language as tl

from lebm_kernels.benchmarks.compare import format_pairs

_WARPS = 8
_BLOCK = 32 * _WARPS * 8
_PROGRAMS_PER_MULTIPROCESSOR = 16


@triton.jit
def _loop(seed_ptr, sum_ptr, steps, BLOCK: tl.constexpr) -> None:
    """sum[i] = sum over steps of 2^(b a + b), b = a t - a, with a random a and t = step / 1e6."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(seed_ptr + lane % BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    b = a
    for step in range(steps):
        # Like a latent, a number that all queries of the program use.
        latent = step * 1e-6
        b = tl.fma(a, latent, -a)
        total += tl.exp2(tl.fma(b, a, b))
    tl.store(sum_ptr + lane, total)


class GpuLoop:
    """Calling it starts the loop on the current GPU.

    Args:
        steps: the steps of each lane.

    Attributes:
        pairs: the pairs of one call.
        sums: the sum of each lane, after a call.
    """

    def __init__(self, steps: int = 1 << 13) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self._programs = properties.multi_processor_count * _PROGRAMS_PER_MULTIPROCESSOR
        self._steps = steps
        self._seed = torch.rand(_BLOCK, device="cuda")
        self.sums = torch.empty(self._programs * _BLOCK, device="cuda")
        self.pairs = self._programs * _BLOCK * steps

    def __call__(self) -> None:
        """Start the loop on the current stream."""
        _loop[(self._programs,)](self._seed, self.sums, self._steps, BLOCK=_BLOCK, num_warps=_WARPS)


def peak(rounds: int = 5) -> float:
    """Pairs per second of the fastest round."""
    loop = GpuLoop()
    times = []
    for _ in range(rounds + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        loop()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return loop.pairs / min(times[1:])


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("gpu_peak.py: error: PyTorch sees no GPU")
    print(f"{torch.cuda.get_device_name()}: {format_pairs(peak())}")
