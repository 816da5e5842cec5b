"""torch.compile, torch.export and AOTInductor: one graph for all sizes and temperatures."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.accuracy import assert_accurate, assert_gradients_accurate, gradients
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad

from lebm_kernels import Posterior, free_energy, posterior, sample_latent

COMPILER = shutil.which(os.environ.get("CXX", "g++"))


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(
    function: Callable[..., Any], backend: str = "aot_eager", **options: Any
) -> tuple[Callable[..., Any], CompileCounterWithBackend]:
    """The function as one graph, and what counts how often it is compiled."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(function, backend=counter, fullgraph=True, **options), counter


def arguments(M: int, N: int, *batch: int) -> dict[str, Tensor]:
    return {
        "y": torch.randn(*batch, M, 2),
        "decoded": torch.randn(*batch, N, 2),
        "beta": torch.rand(*batch, M) * 3,
        "scale": torch.rand(*batch, M, 2) + 0.5,
        "log_weight": torch.randn(*batch, N),
        "latent_energy": torch.rand(*batch, N),
    }


def mark_all(given: dict[str, Tensor]) -> None:
    """Every dimension but D is one that changes."""
    for name, x in given.items():
        for dim in range(x.dim() - (name in ("y", "decoded", "scale"))):
            torch._dynamo.mark_dynamic(x, dim)


@pytest.mark.parametrize("leading", [False, True], ids=["plain", "leading"])
@pytest.mark.parametrize("how", ["automatic", "dynamic", "marked"])
def test_sizes_are_symbols(how: str, leading: bool) -> None:
    function, counter = compiled(free_energy, dynamic=True if how == "dynamic" else None)
    for batch, M, N in ((5, 7, 11), (3, 9, 13), (6, 31, 8), (4, 5, 40)):
        given = {
            name: x.requires_grad_()
            for name, x in arguments(M, N, *([batch] if leading else [])).items()
        }
        if how == "marked":
            mark_all(given)
        value = function(**given)
        assert_accurate(value, **given)
        grad = torch.randn_like(value)
        slopes = torch.autograd.grad(value, list(given.values()), grad)
        assert_gradients_accurate(dict(zip(given, slopes, strict=True)), given, grad)
    # A size that changes by itself costs one compilation more: the first takes it for a constant.
    assert counter.frame_count == (2 if how == "automatic" else 1)


@pytest.mark.parametrize("how", ["automatic", "dynamic"])
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_a_number_for_beta_is_a_symbol(how: str, compiler: str) -> None:
    y, decoded = torch.randn(7, 2), torch.randn(11, 2)

    def warmed(y: Tensor, decoded: Tensor, beta: float) -> Tensor:
        return free_energy(y, decoded, 2 * beta)

    function, counter = compiled(warmed, compiler, dynamic=True if how == "dynamic" else None)
    for beta in (0.5, 1.0, 2.5, 0.0, 1e-7, 30.0, 1e30, float("inf"), 0.25):
        given = {"y": y, "decoded": decoded}
        assert_accurate(function(y, decoded, beta), y, decoded, 2 * beta)
        grad = torch.randn(7)
        # beta is a leaf of the promise, and a number here: the others' gradients alone.
        leaves = {name: x.clone().requires_grad_() for name, x in given.items()}
        value = function(**leaves, beta=beta)
        found = torch.autograd.grad(value, list(leaves.values()), grad)
        wanted = gradients(
            lambda beta=beta, **given: free_energy(**given, beta=2 * beta), given, grad
        )
        torch.testing.assert_close(dict(zip(leaves, found, strict=True)), wanted)
    # With gradients and without them: once each, and once more where the number first changes.
    assert counter.frame_count <= (4 if how == "automatic" else 2)


def test_a_number_for_beta_is_still_checked() -> None:
    y, decoded = torch.randn(7, 2), torch.randn(11, 2)
    function = torch.compile(free_energy, backend="aot_eager", dynamic=True)
    for beta in (0.5, 2.5):
        function(y, decoded, beta)
    with pytest.raises(ValueError, match=r"beta must lie in \[0, inf\], got -1"):
        function(y, decoded, -1.0)


def test_in_a_whole_graph_the_check_says_what_is_wrong() -> None:
    # A symbol's value cannot be printed there, and the message would be about that.
    y, decoded = torch.randn(7, 2), torch.randn(11, 2)
    torch.compiler.reset()
    function = torch.compile(free_energy, backend="aot_eager", dynamic=True, fullgraph=True)
    for beta in (0.5, 2.5):
        function(y, decoded, beta)
    for bad in (-1.0, math.nan):
        with pytest.raises(Exception, match=r"beta must lie in \[0, inf\], got a number below 0"):
            function(y, decoded, bad)


def test_beta_beyond_float32_is_infinite() -> None:
    y, decoded = torch.randn(7, 2), torch.randn(11, 2)
    function, _ = compiled(free_energy, dynamic=True)
    assert_accurate(function(y, decoded, 1e300), y, decoded, float("inf"))


def test_posterior_and_draws() -> None:
    def restored(y: Tensor, decoded: Tensor, beta: float, number: int) -> Any:
        draws = sample_latent(y, decoded, beta, num_samples=number)
        again = sample_latent(y, decoded, beta, num_samples=number)
        return posterior(y, decoded, beta), draws, again

    function, counter = compiled(restored, dynamic=True)
    for M, N, number in ((7, 1100, 4), (9, 1300, 5), (17, 800, 6)):
        given = torch.randn(M, 2), torch.randn(N, 2), 0.3 * number, number
        torch.manual_seed(1)
        found, draws, again = function(*given)
        torch.manual_seed(1)
        wanted, *both = restored(*given)
        assert isinstance(found, Posterior)
        assert_accurate(found.free_energy, *given[:3])
        torch.testing.assert_close(found, wanted)
        assert torch.equal(draws, both[0])
        assert torch.equal(again, both[1])
        # Two draws are two, and not one expression met twice.
        assert not torch.equal(draws, again)
    assert counter.frame_count == 1


def test_autocast_in_a_graph() -> None:
    def function(y: Tensor, weight: Tensor, beta: Tensor) -> Tensor:
        return free_energy(y, y[:5] @ weight, beta.bfloat16())

    one, counter = compiled(function)
    y, weight, beta = torch.randn(7, 3), torch.randn(3, 3), torch.rand(7)
    leaves = [y.requires_grad_(), weight.requires_grad_(), beta.requires_grad_()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = one(*leaves)
        decoded = y[:5] @ weight
    assert decoded.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    assert_accurate(found, y, decoded.float(), beta.bfloat16().float())
    slopes = torch.autograd.grad(found.sum(), leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = torch.autograd.grad(function(*leaves).sum(), leaves)
    torch.testing.assert_close(slopes, wanted)
    assert counter.frame_count == 1


@pytest.mark.no_cover  # traced, PyTorch's compiler would take twice the time
@pytest.mark.skipif(COMPILER is None, reason="Inductor needs a C++ compiler")
def test_inductor_fuses_around_the_operator() -> None:
    def decode_and_score(**given: Tensor) -> Tensor:
        # What stands before and after the operator is compiled as well.
        scale = given["scale"].log().exp()
        return free_energy(**{**given, "scale": scale}).mul(2).div(2)

    function, counter = compiled(decode_and_score, "inductor", dynamic=True)
    for M, N in ((7, 11), (9, 13)):
        given = {name: x.double() for name, x in arguments(M, N).items()}
        grad = torch.randn(M, dtype=torch.float64)
        found = gradients(function, given, grad)
        wanted = gradients(lambda **given: free_energy(**given, backend="reference"), given, grad)
        torch.testing.assert_close(found, wanted)
    assert counter.frame_count == 1


class Layer(torch.nn.Module):
    """The ellipse's free energy, restored points and their latents."""

    def __init__(self) -> None:
        super().__init__()
        self.radii = torch.nn.Parameter(torch.tensor([1.0, 0.5]))

    def forward(self, y: Tensor, decoded: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = posterior(y, decoded, beta, scale=self.radii)
        return free_energy(y, decoded, beta, scale=self.radii), found.mean, found.index


# Another process, which knows the operators by importing them and nothing of the module.
ELSEWHERE = """
import sys
import torch
import lebm_kernels
program, package, given, results = sys.argv[1:]
run = [torch.export.load(program).module()]
if package:
    run.append(torch._inductor.aoti_load_package(package))
found = [[tuple(one(*x)) for x in torch.load(given)] for one in run]
torch.save([[tuple(x.detach() for x in out) for out in outs] for outs in found], results)
"""


def exported() -> tuple[Layer, torch.export.ExportedProgram]:
    layer = Layer()
    num_queries, num_latents = torch.export.Dim("M", min=1), torch.export.Dim("N", min=1)
    shapes = {"y": {0: num_queries}, "decoded": {0: num_latents}, "beta": None}
    given = torch.randn(7, 2), torch.randn(11, 2), torch.tensor(2.0)
    return layer, torch.export.export(layer, given, dynamic_shapes=shapes)


def run_elsewhere(tmp_path: Path, layer: Layer, program: Any, package: str) -> None:
    saved, given, results = (str(tmp_path / name) for name in ("program.pt2", "given", "results"))
    torch.export.save(program, saved)
    inputs = [
        (torch.randn(M, 2), torch.randn(N, 2), torch.tensor(beta))
        for M, N, beta in ((7, 11, 2.0), (1, 1, 0.0), (130, 3, float("inf")), (2, 507, 30.0))
    ]
    torch.save(inputs, given)
    command = [sys.executable, "-c", ELSEWHERE, saved, package, given, results]
    subprocess.run(command, check=True, timeout=300)
    found = torch.load(results)
    assert len(found) == (2 if package else 1)
    for outputs in found:
        for x, (value, mean, index) in zip(inputs, outputs, strict=True):
            assert_accurate(value, *x, scale=layer.radii)
            _, wanted, nearest = layer(*x)
            torch.testing.assert_close(mean, wanted)
            assert torch.equal(index, nearest)


def test_exported_gradients() -> None:
    layer, program = exported()
    y, decoded = torch.randn(9, 2), torch.randn(13, 2)
    given = {"y": y, "decoded": decoded, "beta": torch.tensor(3.0)}
    module = program.module()
    grad = torch.randn(9)
    found = torch.autograd.grad(module(*given.values())[0], list(module.parameters()), grad)
    everything = {**given, "scale": layer.radii.detach()}
    wanted = gradients(lambda **x: free_energy(**x, backend="reference"), everything, grad)
    torch.testing.assert_close(found[0], wanted["scale"])


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # PyTorch 2.13's own
def test_programs_run_at_all_sizes_in_another_process(tmp_path: Path) -> None:
    layer, program = exported()
    package = ""
    if COMPILER is not None:  # AOTInductor's, which takes one
        path = str(tmp_path / "package.pt2")
        with torch.no_grad():
            package = torch._inductor.aoti_compile_and_package(program, package_path=path)
    run_elsewhere(tmp_path, layer, program, package)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("transform", ["jvp", "grad", "hessian", "dual numbers"])
def test_transforms_in_a_graph_are_refused_and_not_zero(transform: str) -> None:
    """The operator alone has no forward rule, which PyTorch takes for a derivative of zero."""
    y, decoded, tangent = torch.randn(3, 2), torch.randn(11, 2), torch.randn(3, 2)

    def value(y: Tensor) -> Tensor:
        return free_energy(y, decoded, 2.0)

    def function(y: Tensor) -> Any:
        if transform == "jvp":
            return torch.func.jvp(value, (y,), (tangent,))[1]
        if transform == "grad":
            return torch.func.grad(lambda y: value(y).sum())(y)
        if transform == "hessian":
            return torch.func.hessian(lambda y: value(y).sum())(y)
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(value(forward_ad.make_dual(y, tangent))).tangent

    with pytest.raises(Exception, match="cannot be compiled"):
        torch.compile(function, backend="eager", fullgraph=True)(y)


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("backend", [None, "chunked"])
def test_a_trace_is_refused_in_one_line(backend: str | None) -> None:
    given = torch.randn(3, 2), torch.randn(11, 2)
    for y in (given[0], given[0].clone().requires_grad_()):
        with pytest.raises(NotImplementedError, match=r"^torch\.jit\.trace cannot .*torch\.export"):
            torch.jit.trace(
                lambda y, decoded: free_energy(y, decoded, backend=backend), (y, given[1])
            )
