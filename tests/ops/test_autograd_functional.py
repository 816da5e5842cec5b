"""Every function of torch.autograd.functional, against the formulas differentiated by autograd.

Its jvp and hvp differentiate a backward pass by its cotangents.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from support.problems import NAMES, small_problem
from torch import Tensor
from torch.autograd import functional

from lebm_kernels import free_energy, posterior

# What PyTorch says of itself when it first loads forward mode.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)


@pytest.fixture
def backend(backend_once: str) -> str:
    """Second derivatives are those of one program, whatever the backend of the first."""
    return backend_once


Function = Callable[..., Any]

# Each of the function to differentiate, its sum of squares, the inputs and directions in them.
WAYS: dict[str, Callable[..., Any]] = {
    "vjp": lambda f, _, x, v, **options: functional.vjp(f, x, torch.ones(2).double(), **options)[1],
    "jvp": lambda f, _, x, v, **options: functional.jvp(f, x, v, **options)[1],
    "jacobian": lambda f, _, x, v, **options: functional.jacobian(f, x, **options),
    "jacobian of a batch": lambda f, _, x, v, **options: functional.jacobian(
        f, x, vectorize=True, **options
    ),
    "hessian": lambda _, f, x, v, **options: functional.hessian(f, x, **options),
    "hessian of a batch": lambda _, f, x, v, **options: functional.hessian(
        f, x, vectorize=True, **options
    ),
    "vhp": lambda _, f, x, v, **options: functional.vhp(f, x, v, **options)[1],
    "hvp": lambda _, f, x, v, **options: functional.hvp(f, x, v, **options)[1],
}
FORWARD: dict[str, Callable[..., Any]] = {
    "jacobian": lambda f, _, x: functional.jacobian(f, x, vectorize=True, strategy="forward-mode"),
    "hessian": lambda _, f, x: functional.hessian(
        f, x, vectorize=True, outer_jacobian_strategy="forward-mode"
    ),
}


def functions(names: tuple[str, ...], fixed: dict[str, Tensor], backend: str) -> list[Function]:
    """F as a function of the arguments ``names``, and the sum of its squares."""

    def value(*given: Tensor) -> Tensor:
        return free_energy(**{**fixed, **dict(zip(names, given, strict=True))}, backend=backend)

    return [value, lambda *given: value(*given).square().sum()]


def question(names: tuple[str, ...]) -> tuple[dict[str, Tensor], Any, Any]:
    """The arguments of a small problem, the inputs among them, and a direction for each input."""
    arguments = small_problem(beta=0.8, M=2, N=3)
    inputs = tuple(arguments[name] for name in names)
    return arguments, inputs, tuple(torch.randn_like(x) for x in inputs)


ASKED = pytest.mark.parametrize(
    "names", [*((name,) for name in NAMES), NAMES], ids=[*NAMES, "all at once"]
)


@ASKED
def test_every_function(backend: str, names: tuple[str, ...]) -> None:
    arguments, inputs, directions = question(names)
    own, wanted = (functions(names, arguments, name) for name in (backend, "reference"))
    for name, way in WAYS.items():
        for create_graph in (True,) if len(names) == 1 else (True, False):
            ask = partial(way, x=inputs, v=directions, create_graph=create_graph)
            torch.testing.assert_close(ask(*own), ask(*wanted), msg=f"{name}, {create_graph}")
    for name, forward in FORWARD.items():
        found = forward(*own, inputs)
        torch.testing.assert_close(found, forward(*wanted, inputs), msg=f"{name}, forward")


@ASKED
def test_gradients_of_what_was_found(backend: str, names: tuple[str, ...]) -> None:
    arguments, inputs, directions = question(names)
    leaves = tuple(x.requires_grad_() for x in inputs)
    along = tuple(v.requires_grad_() for v in directions)

    def slopes(way: Callable[..., Any], by: tuple[Tensor, ...], name: str) -> Any:
        found = way(*functions(names, arguments, name), leaves, along, create_graph=True)
        found = (found,) if isinstance(found, Tensor) else found
        total = torch.stack([x.square().sum() for x in found]).sum()
        return torch.autograd.grad(total, by, create_graph=True)

    # In the inputs those of hvp and vhp are third derivatives.
    for way, by in (("jvp", leaves), ("jvp", along), ("vhp", along), ("hvp", along)):
        found, wanted = (slopes(WAYS[way], by, name) for name in (backend, "reference"))
        torch.testing.assert_close(found, wanted, msg=way)


def test_third_derivatives_are_refused(backend: str) -> None:
    for names in [*((name,) for name in NAMES), NAMES]:
        arguments, inputs, directions = question(names)
        leaves = tuple(x.requires_grad_() for x in inputs)
        own = functions(names, arguments, backend)
        for way in ("hessian", "vhp", "hvp"):
            found = WAYS[way](*own, leaves, directions, create_graph=True)
            while not isinstance(found, Tensor):
                found = found[0]
            for leaf in leaves:
                with pytest.raises(RuntimeError, match=r"^third derivatives of free_energy"):
                    torch.autograd.grad(found.sum(), leaf, retain_graph=True)


def test_the_posterior_once(backend: str) -> None:
    arguments, inputs, directions = question(NAMES)

    def mean(*given: Tensor, name: str = backend) -> Tensor:
        return posterior(**dict(zip(NAMES, given, strict=True)), backend=name).mean

    by_reference = partial(mean, name="reference")
    for vectorize in (False, True):
        found, wanted = (
            functional.jacobian(f, inputs, vectorize=vectorize) for f in (mean, by_reference)
        )
        torch.testing.assert_close(found, wanted)
    upstream = torch.randn(2, 2).double()
    for create_graph in (False, True):
        found, wanted = (
            functional.vjp(f, inputs, upstream, create_graph=create_graph)
            for f in (mean, by_reference)
        )
        torch.testing.assert_close(found, wanted)
    with pytest.raises(RuntimeError, match=r"^second derivatives of posterior, and .*\.jvp takes"):
        functional.jvp(mean, inputs, directions)
    for second in (functional.hvp, functional.vhp):
        with pytest.raises(RuntimeError, match=r"^second derivatives of posterior"):
            second(lambda *given: mean(*given).sum(), inputs, directions)
