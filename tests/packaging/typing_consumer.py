"""A program that uses every public name as its types promise: `make lint` reads it.

tests/packaging/test_typing.py sees that no public name is missing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import assert_type

import lebm_kernels
from lebm_kernels.backends import BackendStatus, BackendTable

y, decoded = torch.zeros(3, 2), torch.zeros(5, 2)
generator = torch.Generator()

assert_type(lebm_kernels.free_energy(y, decoded), Tensor)
assert_type(
    lebm_kernels.free_energy(
        y,
        decoded,
        torch.ones(3),
        scale=torch.ones(2),
        log_weight=torch.zeros(5),
        latent_energy=torch.zeros(5),
        tol=1e-3,
        backend="chunked",
    ),
    Tensor,
)
found = assert_type(lebm_kernels.posterior(y, decoded, 2), lebm_kernels.Posterior)
assert_type(found.free_energy, Tensor)
assert_type(found.mean, Tensor)
assert_type(found.energy, Tensor)
assert_type(found.relative_entropy, Tensor)
assert_type(found.index, Tensor)
assert_type(
    lebm_kernels.sample_latent(y, decoded, num_samples=4, generator=generator),
    Tensor,
)
energy = torch.zeros(3, 5)
assert_type(lebm_kernels.softmin(energy, 1.0, 1), Tensor)
assert_type(lebm_kernels.softmax(energy, 1.0, dim=1), Tensor)
assert_type(lebm_kernels.softargmin(energy, torch.ones(3), -1, torch.zeros(5)), Tensor)
assert_type(lebm_kernels.softargmax(energy, 1.0, dim=-1, log_weight=None), Tensor)
table = assert_type(lebm_kernels.backends(), BackendTable)
assert_type(table[0], BackendStatus)
assert_type(table[0].available, bool)

# Each of these is an error; an unused `ignore` is one as well.
lebm_kernels.free_energy(y, decoded, "hot")  # type: ignore[arg-type]
lebm_kernels.sample_latent(y, decoded)  # type: ignore[call-arg]
lebm_kernels.free_energy(y, decoded, 1.0, torch.ones(2))  # type: ignore[call-arg]
