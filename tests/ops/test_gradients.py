"""Every gradient keeps the accuracy promise, passes gradcheck, and is wanted or not at will."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from support.accuracy import BETAS, assert_accurate, assert_gradients_accurate, gradients
from support.oracle import exact, to_array
from support.problems import NAMES, PLAIN, problem, small_problem
from torch import Tensor

from lebm_kernels import free_energy

# What PyTorch says of itself when it first loads forward mode.
FORWARD = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


def named(names: Iterable[str], values: Iterable[Tensor]) -> dict[str, Any]:
    return dict(zip(names, values, strict=True))


def check_gradients(
    backend: str, arguments: dict[str, Any], beneath: dict[str, float] | None = None
) -> None:
    function = partial(free_energy, backend=backend)
    grad = torch.randn_like(function(**arguments))
    found = gradients(function, arguments, grad)
    assert_gradients_accurate(found, arguments, grad, beneath=beneath)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per_query"])
def test_every_temperature(backend: str, dtype: torch.dtype, beta: float, shared: bool) -> None:
    check_gradients(backend, problem(beta=beta, dtype=dtype, shared=shared))


@pytest.mark.parametrize("lower", [3.0, 9.0, 11.0, 14.0, 30.0])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_one_latent_lower_than_all_others(
    backend: str, dtype: torch.dtype, lower: float, weighted: bool
) -> None:
    # A sample of the latents does not meet it, and its share may be half the sum.
    N, beta = 4001, 10.0
    z = torch.arange(N, dtype=dtype) * (2 * math.pi / N)
    radius = torch.full((N,), 2.0, dtype=dtype)
    radius[1001] = math.sqrt(4 - lower / beta)
    arguments = {
        "y": torch.tensor([[0.0, 0.0], [0.01, 0.02]], dtype=dtype),
        "decoded": radius[:, None] * torch.stack((z.cos(), z.sin()), dim=1),
        "beta": torch.full((2,), beta, dtype=dtype),
    }
    if weighted:
        arguments["log_weight"] = 0.1 * torch.randn(N, dtype=dtype)
    check_gradients(backend, arguments)


@pytest.mark.parametrize("D", [1, 3, 4, 7, 16, 64])
def test_every_dimension(backend: str, dtype: torch.dtype, D: int) -> None:
    check_gradients(backend, problem(5, 40, D, dtype=dtype))


@pytest.mark.parametrize("beta", [0.0, 1e-7, 0.1, 1.0, 1e4, math.inf])
def test_no_scale_and_no_weights(backend: str, dtype: torch.dtype, beta: float) -> None:
    check_gradients(backend, problem(beta=beta, dtype=dtype, names=PLAIN))


def test_temperatures_mixed_in_one_call(backend: str, dtype: torch.dtype) -> None:
    arguments = problem(len(BETAS), beta=BETAS, dtype=dtype)
    check_gradients(backend, arguments)
    arguments["beta"] = torch.tensor(BETAS, dtype=dtype)[:, None]
    check_gradients(backend, arguments)


@pytest.mark.parametrize("beta", [0.1, 10.0, 1e4])
def test_far_queries(backend: str, dtype: torch.dtype, beta: float) -> None:
    arguments = problem(beta=beta, dtype=dtype)
    arguments["y"] = torch.nn.functional.normalize(arguments["y"], dim=-1) * 30
    check_gradients(backend, arguments)


@pytest.mark.parametrize("beta", [0.1, 10.0, 1e4])
def test_data_far_from_the_origin(backend: str, dtype: torch.dtype, beta: float) -> None:
    arguments = problem(beta=beta, dtype=dtype)
    arguments["y"] += 100
    arguments["decoded"] += 100
    del arguments["scale"]
    check_gradients(backend, arguments)


@pytest.mark.parametrize("beta", [0.0, 1.0, 150.0, math.inf])
def test_weights_of_a_wide_range(backend: str, dtype: torch.dtype, beta: float) -> None:
    arguments = problem(beta=beta, dtype=dtype)
    arguments["log_weight"] *= 100
    # Exponentials end at the smallest normal number, and each query may bring one.
    queries = len(arguments["y"])
    check_gradients(
        backend, arguments, {"log_weight": 4 * queries * torch.finfo(dtype).smallest_normal}
    )


@pytest.mark.parametrize("beta", [0.0, 1e-3, 1.0, 1e4, math.inf])
def test_dropped_latents_have_no_gradient(backend: str, dtype: torch.dtype, beta: float) -> None:
    arguments = problem(beta=beta, dtype=dtype)
    dropped = [0, 50, 51, 122]
    arguments["log_weight"][dropped] = -math.inf
    check_gradients(backend, arguments)
    grad = torch.ones(17, dtype=dtype)
    found = gradients(partial(free_energy, backend=backend), arguments, grad)
    for name in ("decoded", "log_weight", "latent_energy"):
        assert (found[name][dropped] == 0).all()


@pytest.mark.parametrize("beta", [0.0, 1e-3, 1.0, 30.0])
def test_gradcheck_with_a_dropped_latent_far_away(any_backend: str, beta: float) -> None:
    arguments = small_problem(M=3, N=5, beta=beta)
    arguments["log_weight"][[0, 3]] = -math.inf
    arguments["decoded"][0] = 10.0
    arguments["decoded"][3] = -1e3
    del arguments["beta"]
    leaves = [x.requires_grad_() for x in arguments.values()]

    def of_all(*values: Tensor) -> Tensor:
        return free_energy(**named(arguments, values), beta=beta, backend=any_backend)

    torch.autograd.gradcheck(of_all, leaves)


@pytest.mark.parametrize("M", [1, 9])
@pytest.mark.parametrize("beta", [0.5, 1.0, math.inf])
def test_blocks_of_weights_too_small_for_the_dtype(
    backend: str, dtype: torch.dtype, beta: float, M: int
) -> None:
    # The first thousand latents decide, though exp of their log-weights is zero.
    decoded = torch.full((1536, 1), 100.0, dtype=dtype)
    decoded[:512, 0] = math.sqrt(5) + torch.linspace(0, 0.1, 512, dtype=dtype)
    decoded[512:1024] = 1.0
    log_weight = torch.zeros(1536, dtype=dtype)
    log_weight[:1024] = -200.0 if dtype == torch.float32 else -900.0
    arguments: dict[str, Any] = {
        "y": torch.zeros(M, 1, dtype=dtype),
        "decoded": decoded,
        "beta": torch.full((M,), beta, dtype=dtype),
        "log_weight": log_weight,
    }
    function, grad = partial(free_energy, backend=backend), torch.randn(M, dtype=dtype)
    for extra in (
        {},
        {"latent_energy": torch.zeros(1536, dtype=dtype), "scale": arguments["y"] + 1},
    ):
        arguments |= extra
        assert_accurate(function(**arguments), **arguments)
        truth = exact(**arguments, grad=grad)
        # A log-weight of -200, rounded, moves p by 200 eps / 2.
        blur = 4 * torch.finfo(dtype).eps * float(log_weight.abs().max())
        for name, found in gradients(function, arguments, grad).items():
            error = np.abs(to_array(found) - truth.gradients[name])
            size = truth.gradient_magnitudes[name]
            assert (error <= blur * (size + 1e-6 * size.max())).all(), name


@pytest.mark.parametrize("beta", [1e-3, 0.5, 30.0])
def test_log_weights_beside_an_infinite_latent_energy(
    backend: str, dtype: torch.dtype, beta: float
) -> None:
    arguments = problem(beta=beta, dtype=dtype)
    del arguments["scale"]
    arguments["latent_energy"][[2, 77]] = math.inf
    grad = torch.randn(17, dtype=dtype)
    found = gradients(partial(free_energy, backend=backend), arguments, grad)
    wide = {name: x.double() for name, x in arguments.items()}
    energy = (wide["y"][:, None] - wide["decoded"]).square().sum(-1) + wide["latent_energy"]
    p = (wide["log_weight"] - wide["beta"][:, None] * energy).softmax(-1)
    w = wide["log_weight"].softmax(-1)
    eps = torch.finfo(dtype).eps
    bound: dict[str, Any] = {"rtol": 1e3 * eps, "atol": 1e3 * eps / beta}
    wanted = grad.double() @ ((w - p) / wide["beta"][:, None])
    torch.testing.assert_close(found["log_weight"].double(), wanted, **bound)
    bound["atol"] = 1e4 * eps
    torch.testing.assert_close(found["latent_energy"].double(), grad.double() @ p, **bound)
    assert (found["decoded"][[2, 77]] == 0).all()


@pytest.mark.parametrize("D", [2, 7])
def test_the_largest_finite_beta_is_as_cold_as_infinity(
    any_backend: str, dtype: torch.dtype, D: int
) -> None:
    largest = 3e38 if dtype == torch.float32 else 1.5e308
    arguments = problem(D=D, beta=math.inf, dtype=dtype)
    energy = arguments["scale"][:, None] * arguments["decoded"]
    energy = (arguments["y"][:, None] - energy).square().sum(-1) + arguments["latent_energy"]
    function, grad = partial(free_energy, backend=any_backend), torch.randn(17, dtype=dtype)
    coldest = gradients(function, arguments, grad)
    arguments["beta"].fill_(largest)
    torch.testing.assert_close(function(**arguments), energy.amin(-1))
    for name, found in gradients(function, arguments, grad).items():
        torch.testing.assert_close(found, coldest[name])
    del arguments["beta"]
    numbers = [1e39, 10**400] if dtype == torch.float32 else [10**400]
    for beta in numbers:
        wanted = function(**arguments, beta=math.inf)
        assert torch.equal(function(**arguments, beta=beta), wanted)


def test_a_query_on_a_latent(backend: str, dtype: torch.dtype) -> None:
    for beta in (0.0, 1.0, 1e4, math.inf):
        arguments = problem(beta=beta, dtype=dtype)
        del arguments["scale"]
        arguments["y"] = arguments["decoded"][:17].clone()
        check_gradients(backend, arguments)


@pytest.mark.parametrize("beta", [0.0, 1.0, 1e4, math.inf])
def test_equal_latents_share_the_gradient(backend: str, dtype: torch.dtype, beta: float) -> None:
    y = torch.randn(3, 2, dtype=dtype)
    decoded = torch.randn(1, 2, dtype=dtype).repeat(40, 1)
    grad = torch.ones(3, dtype=dtype)
    arguments: dict[str, Any] = {
        "y": y,
        "decoded": decoded,
        "latent_energy": torch.zeros(40, dtype=dtype),
    }
    function = partial(free_energy, beta=beta, backend=backend)
    found = gradients(function, arguments, grad)
    share = (-2 * (y - decoded[:1]).sum(0) / 40).expand(40, 2)
    torch.testing.assert_close(found["decoded"], share)
    torch.testing.assert_close(found["latent_energy"], torch.full((40,), 3 / 40, dtype=dtype))
    torch.testing.assert_close(found["y"], 2 * (y - decoded[:1]))


def test_at_infinity_the_minima_share_the_gradient(backend: str, dtype: torch.dtype) -> None:
    y = torch.zeros(1, 1, dtype=dtype)
    decoded = torch.tensor([[1.0], [2.0], [-1.0], [1.0]], dtype=dtype)
    arguments: dict[str, Any] = {"y": y, "decoded": decoded}
    grad = torch.ones(1, dtype=dtype)
    found = gradients(partial(free_energy, beta=math.inf, backend=backend), arguments, grad)
    third = torch.tensor([[2 / 3], [0], [-2 / 3], [2 / 3]], dtype=dtype)
    torch.testing.assert_close(found["decoded"], third)
    torch.testing.assert_close(found["y"], torch.full((1, 1), -2 / 3, dtype=dtype))


def test_a_huge_grid(backend: str) -> None:
    y, decoded = torch.randn(1, 2), torch.randn(300_000, 2)
    arguments: dict[str, Any] = {"y": y, "decoded": decoded, "beta": torch.full((1,), 0.5)}
    check_gradients(backend, arguments)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_gradients(backend: str, half: torch.dtype) -> None:
    arguments: dict[str, Any] = {name: x.to(half) for name, x in problem().items()}
    arguments["beta"] = arguments["beta"].float()
    check_gradients(backend, arguments)


@pytest.mark.parametrize("beta", [0.0, 1e-3, 1.0, 30.0])
@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(any_backend: str, beta: float, name: str) -> None:
    arguments = small_problem(M=3, N=5, beta=beta)
    if name == "beta" and beta == 0.0:
        arguments["beta"] += 1e-2  # a difference quotient would step below zero

    def of_one(x: Tensor) -> Tensor:
        return free_energy(**{**arguments, name: x}, backend=any_backend)

    torch.autograd.gradcheck(of_one, (arguments[name].requires_grad_(),))


def test_gradcheck_where_arguments_broadcast(any_backend: str) -> None:
    tensors: dict[str, Any] = {
        "y": torch.randn(2, 1, 2, 2),
        "decoded": torch.randn(3, 4, 2),
        "beta": torch.rand(2, 1, 1) + 0.5,
        "scale": torch.rand(2) + 0.5,
        "log_weight": torch.randn(2, 1, 4),
        "latent_energy": torch.rand(4),
    }
    leaves = [x.double().requires_grad_() for x in tensors.values()]

    def of_all(*values: Tensor) -> Tensor:
        return free_energy(**named(tensors, values), backend=any_backend)

    assert of_all(*leaves).shape == (2, 3, 2)
    torch.autograd.gradcheck(of_all, leaves)


def test_any_subset_of_gradients_equals_the_whole(backend: str) -> None:
    arguments = problem(7, 30, beta=2.0, dtype=torch.float64)
    grad = torch.randn(7, dtype=torch.float64)
    whole = gradients(partial(free_energy, backend=backend), arguments, grad)
    for size in range(1, len(NAMES)):
        for wanted in itertools.combinations(NAMES, size):
            constants = {name: x for name, x in arguments.items() if name not in wanted}
            function = partial(free_energy, backend=backend, **constants)
            found = gradients(function, {name: arguments[name] for name in wanted}, grad)
            for name in wanted:
                torch.testing.assert_close(found[name], whole[name], rtol=1e-14, atol=1e-15)


def test_nothing_is_tracked_without_gradients(backend: str) -> None:
    arguments = problem()
    assert not free_energy(**arguments, backend=backend).requires_grad
    arguments["y"].requires_grad_()
    with torch.no_grad():
        assert not free_energy(**arguments, backend=backend).requires_grad


def test_a_first_derivative_with_a_graph_is_right(backend: str) -> None:
    arguments = small_problem(M=3, N=5)
    leaves = {name: x.requires_grad_() for name, x in arguments.items()}
    value = free_energy(**leaves, backend=backend)
    found = torch.autograd.grad(value.sum(), list(leaves.values()), create_graph=True)
    wanted = gradients(
        partial(free_energy, backend="reference"), arguments, torch.ones(3, dtype=torch.float64)
    )
    for name, slope in zip(NAMES, found, strict=True):
        torch.testing.assert_close(slope, wanted[name])


@FORWARD
@pytest.mark.parametrize("beta", [1e-3, 0.8])
def test_the_reference_differentiates_twice_and_forward(beta: float) -> None:
    arguments = small_problem(M=2, N=4, beta=beta)
    leaves = tuple(x.requires_grad_() for x in arguments.values())
    if beta < 1e-2:
        leaves[2].requires_grad_(False)  # a difference quotient loses all digits

    def of_all(*values: Tensor) -> Tensor:
        return free_energy(**named(NAMES, values), backend="reference")

    torch.autograd.gradcheck(of_all, leaves, check_forward_ad=True)
    torch.autograd.gradgradcheck(of_all, leaves, check_fwd_over_rev=True, fast_mode=True)

    def of_query(y: Tensor) -> Tensor:
        return free_energy(**{**arguments, "y": y}, backend="reference").sum()

    y = arguments["y"].detach()
    wanted = torch.func.jacfwd(torch.func.jacrev(of_query))(y)
    found = torch.autograd.functional.hessian(of_query, y)
    torch.testing.assert_close(found, wanted)
    assert found.abs().max() > 0.1
