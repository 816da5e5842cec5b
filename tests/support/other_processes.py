"""What test_processes.py runs: ``python other_processes.py METHOD``, a process that makes others.

Every process computes the same problems; prints ``same`` where all have the same bits.
"""

from __future__ import annotations

import multiprocessing
import sys
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lebm_kernels import free_energy, posterior, sample_latent

# The first is shared out among threads, the second is not worth it.
SIZES = ((300, 1100), (7, 11))
THREADS = 2


def results(number: int) -> list[Any]:
    """F, gradients and expectations of one problem, as plain numbers.

    Without draws: they are made of PyTorch's operations, which wait forever for their threads in a
    forked child that has not set their number to one, as a DataLoader's workers do.
    """
    M, N = SIZES[number]
    torch.manual_seed(number)
    given = {"y": torch.randn(M, 2), "decoded": torch.randn(N, 2), "scale": torch.rand(M, 2) + 0.5}
    leaves = {name: x.clone().requires_grad_() for name, x in given.items()}
    value = free_energy(**leaves, beta=2.0)
    slopes = torch.autograd.grad(value.sum(), list(leaves.values()))
    found = posterior(**given, beta=2.0)
    return [x.tolist() for x in (value, *slopes, *found)]


def with_threads(number: int) -> list[Any]:
    """As ``results``, on as many threads as the first process takes."""
    torch.set_num_threads(THREADS)
    return results(number)


class Scores(Dataset[Tensor]):
    """Free energies, computed where the item is asked for."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        self.y, self.decoded = torch.randn(4, 300, 2), torch.randn(1100, 2)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Tensor:
        return free_energy(self.y[index], self.decoded, 2.0)


def collate(items: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """A batch, free energies of it and draws."""
    batch = torch.stack(items)
    y, grid = batch.unsqueeze(-1), torch.linspace(-1, 1, 999)[:, None]
    generator = torch.Generator().manual_seed(1)
    draws = sample_latent(y, grid, 3.0, num_samples=2, generator=generator)
    return batch, free_energy(y, grid, 3.0), draws


def number_of_others(method: str) -> int:
    """Two, but one where each has to import PyTorch again."""
    return 2 if method == "fork" else 1


def workers(method: str) -> bool:
    """Whether a DataLoader's workers give what this process does; they have one thread each."""
    options: Any = {"batch_size": 2, "collate_fn": collate}
    context = {
        "num_workers": number_of_others(method),
        "multiprocessing_context": method,
        "timeout": 100,
    }
    found = list(DataLoader(Scores(), **options, **context))
    torch.set_num_threads(1)
    wanted = list(DataLoader(Scores(), **options))
    return all(
        torch.equal(a, b)
        for one, other in zip(found, wanted, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def main(method: str) -> None:
    """Compute here, so that the pool of threads exists, and then in other processes."""
    wanted = [with_threads(number) for number in range(len(SIZES))]
    context = multiprocessing.get_context(method)
    with context.Pool(number_of_others(method)) as pool:
        # A forked child has the number already.
        function = results if method == "fork" else with_threads
        found = pool.map_async(function, [0, 1, 0, 1], chunksize=1).get(100)
    print("same" if found == wanted * 2 and workers(method) else "different")


if __name__ == "__main__":
    main(sys.argv[1])
