"""The posterior's mean, energy and relative entropy differentiate as the formulas do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.problems import NAMES, SMALL_BETAS, small_problem
from torch import Tensor
from torch.func import grad, vmap

from lebm_kernels import posterior
from lebm_kernels.diagnostics import promise

OUTPUTS = ("free_energy", "mean", "energy", "relative_entropy")


@pytest.fixture
def backend(backend_once: str) -> str:
    """Second derivatives are those of one program, whatever the backend of the first."""
    return backend_once


def gradients(
    arguments: dict[str, Any], upstream: dict[str, Tensor], backend: str
) -> dict[str, Tensor]:
    """Those of sum <upstream, output> by every argument."""
    leaves = {name: x.detach().requires_grad_() for name, x in arguments.items()}
    found = posterior(**leaves, backend=backend)
    outputs = [getattr(found, name) for name in upstream]
    slopes = torch.autograd.grad(
        outputs, list(leaves.values()), list(upstream.values()), allow_unused=True
    )
    given = zip(leaves.items(), slopes, strict=True)
    return {name: torch.zeros_like(x) if g is None else g for (name, x), g in given}


def upstreams(arguments: dict[str, Any]) -> dict[str, Tensor]:
    found = posterior(**arguments, backend="reference")
    return {name: torch.randn_like(getattr(found, name)) for name in OUTPUTS}


@pytest.mark.parametrize("beta", SMALL_BETAS)
def test_each_output_and_all(backend: str, beta: float) -> None:
    arguments = small_problem(beta=beta)
    arguments["log_weight"][2] = -math.inf
    if beta == math.inf:  # two minima
        arguments["decoded"][4] = arguments["decoded"][1]
        arguments["latent_energy"][[1, 4]] = -20.0
    weights = upstreams(arguments)
    for asked in (weights, *({name: weights[name]} for name in OUTPUTS)):
        found, wanted = (gradients(arguments, asked, name) for name in (backend, "reference"))
        for name in NAMES:
            if name == "beta" and not 1e-3 < beta < math.inf:
                continue  # the reference's own quotients cancel; below
            torch.testing.assert_close(
                found[name], wanted[name], rtol=1e-8, atol=1e-9, msg=f"{list(asked)}: {name}"
            )


@pytest.mark.parametrize("beta", [0.0, 1e-6])
def test_cooling_from_hot(backend: str, beta: float) -> None:
    # d<E>/dbeta = -Var(E), dKL/dbeta = beta Var(E), d mean/dbeta = -Cov(E, g): all under p = w.
    arguments = small_problem(beta=beta)
    w = arguments["log_weight"].softmax(0)
    stretched = arguments["scale"][:, None] * arguments["decoded"]
    energy = (arguments["y"][:, None] - stretched).square().sum(-1) + arguments["latent_energy"]
    centred = energy - (energy @ w)[:, None]
    variance = centred.square() @ w
    weights = upstreams(arguments)
    wanted = {
        "free_energy": -variance / 2,
        "mean": None,
        "energy": -variance,
        "relative_entropy": beta * variance,
    }
    for name, slope in wanted.items():
        found = gradients(arguments, {name: weights[name]}, backend)["beta"]
        if slope is None:
            covariance = (w * centred) @ arguments["decoded"]
            torch.testing.assert_close(
                found, -(weights[name] * covariance).sum(-1), rtol=1e-4, atol=1e-4
            )
        else:
            # To first order in beta: 1e-6 times a third moment is left out.
            torch.testing.assert_close(
                found, weights[name] * slope, rtol=1e-3, atol=1e-12 + 1e-4 * (1 - (beta > 0))
            )


def test_frozen_posteriors_have_no_slope_by_beta(backend: str) -> None:
    arguments = small_problem(beta=math.inf)
    assert (gradients(arguments, upstreams(arguments), backend)["beta"] == 0).all()


@pytest.mark.parametrize("beta", [1e-2, 1.0, 20.0])
def test_gradcheck(any_backend: str, beta: float) -> None:
    leaves = tuple(x.requires_grad_() for x in small_problem(M=2, N=3, beta=beta).values())

    def of_all(*values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(NAMES, values, strict=True))
        return tuple(posterior(**given, backend=any_backend)[:4])

    torch.autograd.gradcheck(of_all, leaves, fast_mode=True)


@pytest.mark.parametrize("beta", [0.0, 1e-2, 1.0, 30.0, math.inf])
def test_float32(backend: str, beta: float) -> None:
    arguments = small_problem(M=17, N=33, beta=beta, dtype=torch.float32)
    weights = upstreams(arguments)
    wide, upstream = ({k: x.double() for k, x in d.items()} for d in (arguments, weights))
    truth = gradients(wide, upstream, backend)
    plain = gradients(arguments, weights, "reference")
    for name, x in gradients(arguments, weights, backend).items():
        assert x.dtype == torch.float32
        wanted = truth[name].numpy()
        bound = promise.gradient_bound(wanted, plain[name].numpy(), abs(wanted).max(), 0.0, x.dtype)
        error = abs(x.numpy() - wanted).max()
        assert error <= bound, f"{name}: {error} for {bound}"


def test_leading_dimensions_and_absent_arguments(backend: str) -> None:
    arguments: dict[str, Any] = {
        "y": torch.randn(2, 1, 3, 2).double(),
        "decoded": torch.randn(4, 5, 2).double(),
        "beta": torch.tensor([[[0.5]], [[math.inf]]]).double(),
        "log_weight": torch.randn(2, 1, 5).double(),
    }
    weights = upstreams(arguments)
    found, wanted = (gradients(arguments, weights, name) for name in (backend, "reference"))
    for name in ("y", "decoded", "log_weight"):
        torch.testing.assert_close(found[name], wanted[name])
    torch.testing.assert_close(found["beta"][0], wanted["beta"][0])


def test_the_index_is_a_constant_and_a_second_derivative_refused(backend: str) -> None:
    y = torch.randn(3, 2).double().requires_grad_()
    found = posterior(y, torch.randn(5, 2).double(), backend=backend)
    assert not found.index.requires_grad
    (slope,) = torch.autograd.grad(found.mean.sum(), y, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives of posterior"):
        slope.sum().backward()


def test_functorch(backend: str) -> None:
    arguments = small_problem(beta=0.8)

    def entropy(y: Tensor, decoded: Tensor) -> Tensor:
        found = posterior(y[None], decoded, 0.8, backend=backend)
        return found.relative_entropy[0] + found.mean.sum()

    y, decoded = arguments["y"], arguments["decoded"]
    found = vmap(grad(entropy, argnums=(0, 1)), in_dims=(0, None))(y, decoded)
    for i, x in enumerate(y):
        leaves = x.clone().requires_grad_(), decoded.clone().requires_grad_()
        slopes = torch.autograd.grad(entropy(*leaves), leaves)
        torch.testing.assert_close((found[0][i], found[1][i]), slopes)
