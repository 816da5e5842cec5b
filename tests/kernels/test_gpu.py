"""Tensors on a GPU, end to end. conftest.py does not collect this file without a GPU.

The other tests run the GPU kernels too, on CPU tensors that are copied to the GPU.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from support.accuracy import BETAS, assert_accurate, assert_gradients_accurate, gradients
from torch import Tensor

import lebm_kernels
from lebm_kernels import free_energy, posterior, sample_latent
from lebm_kernels.models import Ellipse
from lebm_kernels.training.datasets import ellipse_data

BACKENDS = [row.name for row in lebm_kernels.backends() if "cuda" in row.devices]
KERNELS = [name for name in BACKENDS if name in ("native", "triton")]
DEVICES = [f"cuda:{i}" for i in range(torch.cuda.device_count())]

gpu_backend = pytest.mark.parametrize("name", KERNELS)


def problem(M: int, N: int, D: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        "y": torch.randn(M, D, dtype=dtype),
        "decoded": torch.randn(N, D, dtype=dtype),
        "beta": torch.rand(M, dtype=dtype) * 5,
        "scale": torch.rand(M, D, dtype=dtype) + 0.5,
        "log_weight": torch.randn(N, dtype=dtype),
        "latent_energy": torch.rand(N, dtype=dtype),
    }


def on_device(arguments: dict[str, Tensor], device: str = "cuda") -> dict[str, Tensor]:
    return {name: x.to(device) for name, x in arguments.items()}


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raises an error if the host waits for the GPU."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning that the mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_our_kernels_come_first() -> None:
    assert BACKENDS[0] in KERNELS


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("D", [1, 2, 3, 4, 5, 70])
@gpu_backend
def test_values_and_gradients(name: str, dtype: torch.dtype, D: int, device: str) -> None:
    arguments = problem(67, 301, D, dtype)
    function = partial(free_energy, backend=name)
    there = on_device(arguments, device)
    value = function(**there)
    assert value.device == torch.device(device)
    assert_accurate(value.cpu(), **arguments)
    grad = torch.randn(67, dtype=dtype)
    found = gradients(function, there, grad.to(device))
    assert_gradients_accurate({key: x.cpu() for key, x in found.items()}, arguments, grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@gpu_backend
def test_half_types(name: str, dtype: torch.dtype) -> None:
    arguments = {key: x.to(dtype) for key, x in problem(67, 301, 2).items()}
    value = free_energy(**on_device(arguments), backend=name)
    assert value.dtype == torch.float32
    assert_accurate(value.cpu(), **arguments)


@gpu_backend
def test_strides(name: str) -> None:
    arguments = problem(67, 301, 2)
    there = on_device(arguments)
    padded = torch.empty(3, 67, 2, 2, device="cuda")
    for b in range(3):
        padded[b, :, :, 0] = there["y"]
    there["y"] = padded[..., 0]  # strided, with a leading dimension
    there["decoded"] = there["decoded"].T.contiguous().T.expand(3, -1, -1)
    value = free_energy(**there, backend=name)
    assert value.shape == (3, 67)
    for row in value:
        assert_accurate(row.cpu(), **arguments)


@gpu_backend
def test_the_same_bits_every_time(name: str) -> None:
    there = on_device(problem(517, 3001, 2))
    function = partial(free_energy, backend=name)
    grad = torch.randn(517, device="cuda")
    first = gradients(function, there, grad)
    for _ in range(5):
        for key, x in gradients(function, there, grad).items():
            assert torch.equal(x, first[key])


@gpu_backend
def test_nothing_waits_for_the_gpu(name: str) -> None:
    there = {key: x.requires_grad_() for key, x in on_device(problem(67, 3001, 2)).items()}
    grad = torch.randn(67, device="cuda")
    for guard in (nullcontext, no_waiting):  # the first run compiles
        with guard():
            free_energy(**there, backend=name).backward(grad)
            free_energy(there["y"], there["decoded"], math.inf, backend=name).backward(grad)
            posterior(**there, backend=name)


@gpu_backend
def test_a_graph_of_forward_and_backward(name: str) -> None:
    there = {key: x.requires_grad_() for key, x in on_device(problem(67, 3001, 2)).items()}
    grad = torch.randn(67, device="cuda")

    def step() -> tuple[Tensor, ...]:
        value = free_energy(**there, backend=name)
        return (value.detach(), *torch.autograd.grad(value, list(there.values()), grad))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for key, x in on_device(problem(67, 3001, 2)).items():
            there[key].copy_(x)
    graph.replay()
    for one, other in zip(captured, step(), strict=True):
        assert torch.equal(one, other)


@gpu_backend
def test_the_current_stream_is_used(name: str) -> None:
    arguments = problem(67, 301, 2)
    there = on_device(arguments)
    y = torch.zeros_like(there["y"])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # only later work of this stream sees the copy
        y.copy_(there["y"], non_blocking=True)
        value = free_energy(**{**there, "y": y}, backend=name)
    side.synchronize()
    assert_accurate(value.cpu(), **arguments)


@gpu_backend
def test_memory_grows_with_queries_plus_latents(name: str) -> None:
    M = N = 50_000
    y = torch.randn(M, 2, device="cuda", requires_grad=True)
    decoded = torch.randn(N, 2, device="cuda", requires_grad=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    free_energy(y, decoded, 2.0, backend=name).sum().backward()
    posterior(y, decoded, 2.0, backend=name)
    assert torch.cuda.max_memory_allocated() - before < 100 * 2**20


@pytest.mark.parametrize(
    ("M", "N", "beta"), [(70_000, 70_001, 3.0), (3, 10_000_000, 1.0), (10_000_000, 3, 1.0)]
)
@gpu_backend
def test_sizes(name: str, M: int, N: int, beta: float) -> None:
    """More than 2^31 pairs; long sums; more queries than a launch has thread blocks in y and z."""
    arguments = {
        "y": torch.randn(M, 2),
        "decoded": torch.randn(N, 2),
        "beta": torch.tensor(beta),
    }
    some = torch.tensor([0, 1, M // 2, M - 1]).unique()
    value = free_energy(**on_device(arguments), backend=name).cpu()
    few = {**arguments, "y": arguments["y"][some]}
    assert_accurate(value[some], **few)


@gpu_backend
def test_more_numbers_than_an_int_holds(name: str) -> None:
    """The latents with posterior weight lie beyond 2^31 numbers."""
    N = 2**30 + 1000
    decoded = torch.full((N, 2), 9.0, device="cuda")
    near = torch.randn(500, 2)
    decoded[-500:] = near.cuda()
    decoded.requires_grad_()
    y = torch.randn(3, 2)
    value = free_energy(y.cuda(), decoded, 4.0, backend=name)
    (grad,) = torch.autograd.grad(value.sum(), decoded)
    # The latents at 9 have no posterior weight, and the average runs over N latents instead of 500.
    wanted = free_energy(y.double(), near.double(), 4.0, backend="reference")
    wanted = wanted + math.log(N / 500) / 4.0
    torch.testing.assert_close(value.detach().cpu().double(), wanted, rtol=3e-6, atol=0)
    leaf = near.double().requires_grad_()
    free_energy(y.double(), leaf, 4.0, backend="reference").sum().backward()
    torch.testing.assert_close(grad[-500:].cpu().double(), leaf.grad, rtol=1e-4, atol=1e-7)
    assert float(grad[:-500].abs().max()) < 1e-30


@pytest.mark.parametrize("beta", BETAS)
@gpu_backend
def test_temperatures_of_a_larger_problem(name: str, beta: float) -> None:
    arguments = {"y": torch.randn(600, 2), "decoded": torch.randn(21_000, 2)}
    value = free_energy(**on_device(arguments), beta=beta, backend=name).cpu()
    assert_accurate(value[::60], arguments["y"][::60], arguments["decoded"], beta)


@gpu_backend
def test_compile(name: str) -> None:
    torch._dynamo.reset()
    there = on_device(problem(67, 301, 2))

    def loss(**given: Tensor) -> Tensor:
        return free_energy(**given, backend=name).square().mean()

    compiled = torch.compile(loss, fullgraph=True)
    torch.testing.assert_close(compiled(**there), loss(**there))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("D", [2, 6])
@gpu_backend
def test_second_derivatives(name: str, D: int) -> None:
    """Second derivatives by every pair of arguments on the card, and forward mode."""
    there = {
        key: x.requires_grad_() for key, x in on_device(problem(5, 33, D, torch.float64)).items()
    }
    keys = list(there)

    def value(*given: Tensor, backend: str = name) -> Tensor:
        return free_energy(**dict(zip(keys, given, strict=True)), backend=backend)

    given = tuple(there.values())
    torch.autograd.gradgradcheck(value, given, fast_mode=True)
    tangents = tuple(torch.randn_like(x) for x in given)
    plain = tuple(x.detach() for x in given)
    _, found = torch.func.jvp(value, plain, tangents)
    _, wanted = torch.func.jvp(partial(value, backend="reference"), plain, tangents)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@gpu_backend
def test_memory_of_second_derivatives(name: str) -> None:
    M = N = 20_000
    y = torch.randn(M, 2, device="cuda", requires_grad=True)
    decoded = torch.randn(N, 2, device="cuda", requires_grad=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    value = free_energy(y, decoded, 2.0, backend=name)
    (grad,) = torch.autograd.grad(value.sum(), y, create_graph=True)
    grad.square().sum().backward()
    # The matrix alone would be 1600 MB.
    assert torch.cuda.max_memory_allocated() - before < 800 * 2**20


@gpu_backend
def test_an_infinite_energy_has_no_posterior_weight(name: str) -> None:
    arguments = problem(67, 301, 2)
    del arguments["beta"]
    arguments["latent_energy"][7] = math.inf
    for beta in (1.0, math.inf):
        value = free_energy(**on_device(arguments), beta=beta, backend=name).cpu()
        kept = {
            key: torch.cat((x[:7], x[8:])) if len(x) == 301 else x for key, x in arguments.items()
        }
        del kept["log_weight"]
        normal = arguments["log_weight"].logsumexp(0)
        weights = torch.cat((arguments["log_weight"][:7], arguments["log_weight"][8:]))
        wanted = free_energy(
            **{key: x.double() for key, x in kept.items()},
            beta=beta,
            log_weight=weights.double(),
            backend="reference",
        )
        lost = normal.double() - weights.double().logsumexp(0)
        torch.testing.assert_close(value.double(), wanted + lost / beta, rtol=1e-5, atol=1e-5)


def test_the_models_train_on_a_gpu() -> None:
    data = ellipse_data(generator=torch.Generator().manual_seed(0))
    model = Ellipse(generator=torch.Generator().manual_seed(0)).cuda()
    y = data.y.cuda()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = model.free_energy(y).mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_samples() -> None:
    there = on_device(problem(5, 101, 2))
    generator = torch.Generator(device="cuda").manual_seed(0)
    index = sample_latent(**there, num_samples=7, generator=generator)
    assert index.shape == (5, 7)
    assert index.is_cuda
    assert int(index.min()) >= 0
    assert int(index.max()) < 101


@pytest.mark.parametrize("argument", ["decoded", "beta", "scale", "log_weight", "latent_energy"])
def test_an_argument_on_another_device_is_named(argument: str) -> None:
    arguments: dict[str, Any] = on_device(problem(5, 7, 2))
    arguments[argument] = arguments[argument].cpu()
    with pytest.raises(ValueError, match=f"{argument} must be on cuda"):
        free_energy(**arguments)
