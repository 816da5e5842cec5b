"""Few latents, and queries on or near one: no other error hides that of a gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.accuracy import assert_accurate, assert_gradients_accurate
from support.backends import identify, kernel_parameters, selected
from support.fuzzing import examples
from support.oracle import every_pair, undecided
from torch import Tensor

from lebm_kernels import free_energy
from lebm_kernels.diagnostics import promise

PARAMETERS = [p for p in kernel_parameters() if p[0] in ("native", "chunked")]


@st.composite
def problems(draw: Any) -> dict[str, Tensor]:
    """One to eight latents, and queries at 0 to 1 of their distance from one of them."""
    dtype = draw(st.sampled_from((torch.float32, torch.float64)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    D, N = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    M = draw(st.sampled_from((1, 2, 17, 300)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    offset = draw(st.sampled_from((0.0, 0.0, 10.0, 712.0, 1e3)))
    decoded = (offset + normal(N, D)).to(dtype)
    # Of the rounded latents: a query at distance 0 is one of them.
    nearest = decoded.double()[torch.randint(N, (M,), generator=generator)]
    apart = draw(st.sampled_from((0.0, 6e-6, 1e-3, 0.13, 1.0)))
    beta = draw(st.sampled_from((0.0, 1e-7, 0.01, 0.562, 5.0, 75.4, 1e4, 1e6)))
    arguments = {
        "y": (nearest + apart * normal(M, D)).to(dtype),
        "decoded": decoded,
        "beta": (beta * (0.5 + torch.rand(M, generator=generator).double())).to(dtype),
    }
    if draw(st.integers(0, 3)) == 0:
        arguments["scale"] = (1 + normal(D) / 4).to(dtype)
    if draw(st.integers(0, 3)) == 0:
        arguments["log_weight"] = normal(N).to(dtype)
    if draw(st.integers(0, 3)) == 0:
        arguments["latent_energy"] = normal(N).abs().to(dtype)
    return arguments


@pytest.mark.parametrize("parameter", PARAMETERS, ids=identify)
@examples(1 / len(PARAMETERS), 40)
@given(arguments=problems(), seed=st.integers(0, 99))
def test_values_and_gradients_keep_the_promise(
    parameter: tuple[str, str | None], arguments: dict[str, Tensor], seed: int
) -> None:
    leaves = {name: x.clone().requires_grad_() for name, x in arguments.items()}
    dtype = arguments["y"].dtype
    with selected(*parameter) as backend:
        value = free_energy(**leaves, backend=backend)
        assert_accurate(value, **arguments)
        grad = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed)).to(value)
        # Energies wrong by a rounding give those another posterior, and any gradient.
        grad[torch.from_numpy(undecided(every_pair(arguments), promise.eps(dtype)))] = 0
        found = torch.autograd.grad(value, list(leaves.values()), grad)
    beneath = dict.fromkeys(arguments, 2.0**20 * torch.finfo(dtype).smallest_normal)
    assert_gradients_accurate(
        dict(zip(leaves, found, strict=True)), arguments, grad, beneath=beneath
    )
