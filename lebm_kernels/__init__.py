"""Fused free energies of latent-variable energy-based models.

F_beta(y) = -1/beta log mean_z exp(-beta E(y, z)) with ``E(y, z) = |y - decoder(z)|^2`` over a grid
of latents z: the minimum when cold, the mean when hot, the marginal in between, without ever
holding the (queries x latents) matrix.
"""

from lebm_kernels.backends import backends
from lebm_kernels.functional import (
    free_energy,
    posterior,
    sample_latent,
    softargmax,
    softargmin,
    softmax,
    softmin,
)
from lebm_kernels.reference import Posterior

__version__ = "0.1.0"

__all__ = [
    "Posterior",
    "backends",
    "free_energy",
    "posterior",
    "sample_latent",
    "softargmax",
    "softargmin",
    "softmax",
    "softmin",
]
