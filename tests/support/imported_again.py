"""What test_imports.py runs: a process that imports the package repeatedly.

Prints ``works`` where every operator then works, in every way that it is called.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

BETA = 2.0


def purge() -> None:
    """Import the package as if for the first time."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "lebm_kernels"]:
        del sys.modules[name]
    importlib.import_module("lebm_kernels")


def reload(step: int) -> None:
    """Reload every module in place, ``step`` by ``step`` through the order of their import."""
    modules = [m for name, m in sys.modules.items() if name.partition(".")[0] == "lebm_kernels"]
    for module in modules[::step]:
        importlib.reload(module)


def problem() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)


def check(package: Any) -> None:
    """Every operator, in every way that it is called."""
    y, decoded = problem()
    energy = torch.cdist(y, decoded).square()
    p = torch.softmax(-BETA * energy, -1)
    wanted = -(torch.exp(-BETA * energy).mean(-1)).log() / BETA
    leaves = y.clone().requires_grad_(), decoded.clone().requires_grad_()
    for row in package.backends():
        if "cpu" not in row.devices or row.name == "reference":
            continue
        options = {"beta": BETA, "backend": row.name}
        value = functools.partial(package.free_energy, **options)
        torch.testing.assert_close(value(y, decoded), wanted)
        batched = torch.vmap(value, in_dims=(0, None))(y[:, None], decoded)
        torch.testing.assert_close(batched[:, 0], wanted)
        assert gradcheck(value, leaves, check_forward_ad=True)
        assert gradgradcheck(value, leaves)
        posterior = functools.partial(package.posterior, **options)
        torch.testing.assert_close(posterior(y, decoded).mean, p @ decoded)
        assert gradcheck(lambda *given, posterior=posterior: posterior(*given)[:4], leaves)
    compiled = torch.compile(package.free_energy, backend="aot_eager", fullgraph=True)
    value = compiled(*leaves, BETA)
    torch.testing.assert_close(value.detach(), wanted)
    (slope,) = torch.autograd.grad(value.sum(), leaves[:1])
    torch.testing.assert_close(slope, 2 * (y - p @ decoded))
    index = package.sample_latent(y, decoded, float("inf"), num_samples=2)
    assert torch.equal(index, energy.argmin(-1)[:, None].expand(-1, 2))


def check_latest_sources(package: Any) -> None:
    """What runs is what was imported last."""
    chunked = sys.modules["lebm_kernels.backends.chunked"]
    with mock.patch.object(chunked, "rows", wraps=chunked.rows) as rows:
        package.posterior(*problem(), BETA, backend="chunked")
    rows.assert_called_once()


def check_operators() -> None:
    """PyTorch's own checks of the operators."""
    y, decoded = problem()
    given = (y.requires_grad_(), decoded.requires_grad_(), torch.tensor(BETA).double())
    given = (*given, None, None, None)
    operators = torch.ops.lebm_kernels
    slopes = [True, False, True]
    torch.library.opcheck(operators.free_energy.default, (*given, None, "chunked", slopes))
    torch.library.opcheck(operators.posterior.default, (*given, None, "chunked"))


def main() -> None:
    """Import again and again, and check; what the first import gave works to the end."""
    first = importlib.import_module("lebm_kernels")
    compiled = torch.compile(first.free_energy, backend="aot_eager", fullgraph=True)
    wanted = first.free_energy(*problem())
    torch.testing.assert_close(compiled(*problem()), wanted)
    for import_again in (purge, purge, lambda: reload(1), lambda: reload(-1)):
        import_again()
        package = sys.modules["lebm_kernels"]
        check(package)
        check_latest_sources(package)
        torch.testing.assert_close(compiled(*problem()), wanted)
        torch.testing.assert_close(first.free_energy(*problem()), wanted)
    check_operators()
    print("works")


if __name__ == "__main__":
    main()
