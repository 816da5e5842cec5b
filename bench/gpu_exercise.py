"""Small problems that call every GPU kernel, for compute-sanitizer.

``python bench/gpu_exercise.py [native] [triton]``: the backends to run, by default both.
"""

from __future__ import annotations

import math
import sys
from itertools import product
from typing import Any

import torch

import lebm_kernels

#: Queries and latents: ragged sizes, few queries, few latents.
SIZES = ((37, 301), (3, 5001), (401, 5))
DIMENSIONS = (1, 2, 3, 4, 7, 70)
BETAS = (0.0, 1e-6, 2.0, 1e8, math.inf)


def problem(M: int, N: int, D: int, beta: float, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A problem with every argument; all of them require gradients."""
    generator = torch.Generator(device="cuda").manual_seed(M + N + D)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=dtype)

    arguments = {
        "y": normal(M, D),
        "decoded": normal(N, D),
        "beta": torch.full((M,), beta, device="cuda", dtype=dtype),
        "scale": normal(D),
        "log_weight": normal(N),
        "latent_energy": normal(N),
    }
    return {name: x.requires_grad_() for name, x in arguments.items()}


def main() -> int:
    """Call free_energy, its backward and posterior on every backend with GPU kernels."""
    there = [row.name for row in lebm_kernels.backends() if "cuda" in row.devices]
    names = [name for name in there if name in (sys.argv[1:] or ("native", "triton"))]
    for name in names:
        for (M, N), D in product(SIZES, DIMENSIONS):
            for beta in BETAS if D in (2, 7) else (2.0,):
                dtype = torch.float64 if D == 3 else torch.float32
                arguments = problem(M, N, D, beta, dtype)
                for kept in (tuple(arguments), ("y", "decoded")):
                    some: dict[str, Any] = {key: arguments[key] for key in kept}
                    value = lebm_kernels.free_energy(**some, backend=name)
                    value.sum().backward()
                    lebm_kernels.posterior(**some, backend=name)
    torch.cuda.synchronize()
    print(f"called every kernel of {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
