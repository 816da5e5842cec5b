"""PyTorch's contract on the operators: opcheck, torch.compile, torch.func."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from lebm_kernels import free_energy, posterior, sample_latent

OPS = torch.ops.lebm_kernels

UNTRACED = pytest.mark.no_cover
"""Where PyTorch traces much of its own Python, which would take twice the time."""


@pytest.fixture
def backend(backend_once: str) -> str:
    """PyTorch sees nothing of instruction sets."""
    return backend_once


def arguments(**shapes: tuple[int, ...]) -> dict[str, Any]:
    """Every argument; leading dimensions where given."""
    default = {
        "y": (7, 2),
        "decoded": (11, 2),
        "beta": (),
        "scale": (2,),
        "log_weight": (11,),
        "latent_energy": (11,),
    }
    return {
        name: torch.rand(shapes.get(name, shape), dtype=torch.float64) + 0.2
        for name, shape in default.items()
    }


def positional(given: dict[str, Any], *absent: str) -> list[Tensor | None]:
    return [None if name in absent else x for name, x in given.items()]


LEADING = {"y": (3, 7, 2), "decoded": (3, 11, 2), "beta": (3, 1)}
SHAPES = pytest.mark.parametrize("shapes", [{}, LEADING], ids=["plain", "leading"])
ABSENT = pytest.mark.parametrize(
    "absent", [(), ("scale", "log_weight", "latent_energy")], ids=["all", "least"]
)


@UNTRACED
@SHAPES
@ABSENT
@pytest.mark.parametrize("requires_grad", [True, False], ids=["grad", "no_grad"])
def test_opcheck_free_energy(
    backend: str, shapes: dict[str, Any], absent: tuple[str, ...], requires_grad: bool
) -> None:
    tensors = positional(arguments(**shapes), *absent)
    for x in tensors:
        if x is not None:
            x.requires_grad_(requires_grad)
    slopes = [requires_grad] * 3
    torch.library.opcheck(OPS.free_energy.default, (*tensors, None, backend, slopes))


@UNTRACED
@SHAPES
@ABSENT
def test_opcheck_free_energy_backward(
    backend: str, shapes: dict[str, Any], absent: tuple[str, ...]
) -> None:
    tensors = positional(arguments(**shapes), *absent)
    value, *_, state = OPS.free_energy(*tensors, None, backend, [False] * 3)
    latent = (tensors[1], *tensors[4:])
    for mask in ([True] * 3, [True, False, False], [False, True, True]):
        mask = [want and x is not None for want, x in zip(mask, latent, strict=True)]
        given = (torch.randn_like(value), state, *tensors, None, backend, mask)
        torch.library.opcheck(OPS.free_energy_backward.default, given)


@UNTRACED
@SHAPES
@ABSENT
def test_opcheck_posterior(backend: str, shapes: dict[str, Any], absent: tuple[str, ...]) -> None:
    tensors = positional(arguments(**shapes), *absent)
    torch.library.opcheck(OPS.posterior.default, (*tensors, None, backend))


@UNTRACED
@SHAPES
@ABSENT
def test_opcheck_sample_latent(shapes: dict[str, Any], absent: tuple[str, ...]) -> None:
    # One for all backends; what is random cannot be compared with itself.
    tensors = positional(arguments(**shapes), *absent)
    torch.library.opcheck(OPS.sample_latent.default, (*tensors, 5, None))


@UNTRACED
def test_half_precision_opcheck(backend: str) -> None:
    tensors = [x.half().requires_grad_() for x in arguments().values()]
    tensors[2] = tensors[2].detach().float().requires_grad_()
    torch.library.opcheck(OPS.free_energy.default, (*tensors, None, backend, [True] * 3))


@UNTRACED
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile_fullgraph(backend: str, dynamic: bool) -> None:
    def loss(given: dict[str, Any]) -> Tensor:
        angle = given["decoded"].sin()
        value = free_energy(**{**given, "decoded": angle}, backend=backend)
        return value.square().mean()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for shapes in (
        {},
        {"y": (5, 2), "decoded": (13, 2), "log_weight": (13,), "latent_energy": (13,)},
    ):
        given = {name: x.requires_grad_() for name, x in arguments(**shapes).items()}
        wanted, found = loss(given), compiled(given)
        torch.testing.assert_close(found, wanted)
        expected = torch.autograd.grad(wanted, list(given.values()))
        for a, b in zip(torch.autograd.grad(found, list(given.values())), expected, strict=True):
            torch.testing.assert_close(a, b)


def test_compile_with_a_number_for_beta_and_without_gradients(backend: str) -> None:
    torch._dynamo.reset()
    y, decoded = torch.randn(7, 2), torch.randn(11, 2)
    for function in (free_energy, posterior):
        compiled = torch.compile(
            partial(function, backend=backend), fullgraph=True, backend="aot_eager"
        )
        torch.testing.assert_close(
            compiled(y, decoded, 2.5), function(y, decoded, 2.5, backend=backend)
        )


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compile_with_several_numbers_for_beta(backend: str, compiler: str) -> None:
    torch._dynamo.reset()
    y, decoded = torch.randn(7, 2, requires_grad=True), torch.randn(11, 2)

    def function(beta: float) -> Tensor:
        return 2 * free_energy(y, decoded, beta, backend=backend)

    compiled = torch.compile(function, fullgraph=True, backend=compiler)
    for beta in (0.5, 1.0, 2.5):
        found, wanted = compiled(beta), function(beta)
        torch.testing.assert_close(found, wanted)
        slopes = [torch.autograd.grad(x.sum(), y)[0] for x in (found, wanted)]
        torch.testing.assert_close(slopes[0], slopes[1])


def named(names: Iterable[str], values: Iterable[Tensor]) -> dict[str, Any]:
    return dict(zip(names, values, strict=True))


def one_by_one(function: Callable[..., Tensor], given: dict[str, Any], mapped: str) -> Tensor:
    return torch.stack([function(**{**given, mapped: x}) for x in given[mapped]])


MAPPED = {
    "y": (4, 7, 2),
    "decoded": (4, 11, 2),
    "beta": (4,),
    "scale": (4, 7, 2),
    "log_weight": (4, 11),
    "latent_energy": (4, 11),
}


@pytest.mark.parametrize("mapped", MAPPED)
def test_vmap_over_one_argument(backend: str, mapped: str) -> None:
    given = arguments(**{mapped: MAPPED[mapped]})
    function = partial(free_energy, backend=backend)
    names = tuple(given)

    def of_all(*values: Tensor) -> Tensor:
        return function(**named(names, values))

    in_dims = tuple(0 if name == mapped else None for name in names)
    found = vmap(of_all, in_dims=in_dims)(*given.values())
    torch.testing.assert_close(found, one_by_one(function, given, mapped))


def test_vmap_over_all_arguments_and_other_dimensions(backend: str) -> None:
    given = arguments(**MAPPED)
    names = tuple(given)

    def of_all(*values: Tensor) -> Tensor:
        return free_energy(**named(names, values), backend=backend)

    wanted = torch.stack([of_all(*(x[i] for x in given.values())) for i in range(4)])
    torch.testing.assert_close(vmap(of_all)(*given.values()), wanted)
    moved = [x.movedim(0, -1) for x in given.values()]
    torch.testing.assert_close(vmap(of_all, in_dims=-1, out_dims=1)(*moved), wanted.T)


def test_vmap_in_vmap_and_over_leading_dimensions(backend: str) -> None:
    y = torch.randn(3, 5, 2, 7, 2).double()
    decoded, beta = torch.randn(3, 11, 2).double(), torch.rand(5).double()
    inner = vmap(partial(free_energy, backend=backend), in_dims=(0, None, 0))
    found = vmap(inner, in_dims=(0, 0, None))(y, decoded, beta)
    wanted = free_energy(y, decoded[:, None, None], beta[:, None, None], backend=backend)
    torch.testing.assert_close(found, wanted)


def test_vmap_of_posterior(backend: str) -> None:
    y, decoded = torch.randn(4, 7, 2).double(), torch.randn(4, 11, 2).double()
    found = vmap(partial(posterior, beta=2.0, backend=backend))(y, decoded)
    wanted = posterior(y, decoded, 2.0, backend=backend)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mapped", [*MAPPED, "all"])
def test_vmap_of_sample_latent(mapped: str) -> None:
    # Each sample's latents are those of its own posterior.
    given = arguments(**(MAPPED if mapped == "all" else {mapped: MAPPED[mapped]}))
    given["beta"] = torch.full_like(given["beta"], torch.inf)
    names = tuple(given)

    def of_all(*values: Tensor) -> Tensor:
        return sample_latent(**named(names, values), num_samples=6)

    in_dims = tuple(0 if mapped in (name, "all") else None for name in names)
    found = vmap(of_all, in_dims=in_dims, randomness="different")(*given.values())
    index = vmap(lambda *values: posterior(**named(names, values)).index, in_dims=in_dims)
    assert found.shape == (4, 7, 6)
    assert torch.equal(found, index(*given.values()).unsqueeze(-1).expand(4, 7, 6))


def test_vmap_of_sample_latent_draws_anew_for_each_sample() -> None:
    y, decoded = torch.zeros(3, 2), torch.zeros(50, 2)

    def draws(shift: Tensor) -> Tensor:
        return sample_latent(y + shift, decoded, num_samples=200)

    shifts = torch.arange(4.0)
    found = vmap(draws, randomness="different")(shifts)
    assert found.unique(dim=0).shape[0] == 4
    assert found.unique().numel() == 50
    for randomness in ("error", "same"):
        with pytest.raises(RuntimeError, match="randomness"):
            vmap(draws, randomness=randomness)(shifts)


@pytest.mark.parametrize("name", list(MAPPED))
def test_func_grad_is_autograd(backend: str, name: str) -> None:
    given = arguments()

    def loss(x: Tensor) -> Tensor:
        return free_energy(**{**given, name: x}, backend=backend).square().sum()

    leaf = given[name].clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(grad(loss)(given[name]), wanted)


@pytest.mark.parametrize("name", list(MAPPED))
def test_jacrev(backend: str, name: str) -> None:
    given = arguments()

    def value(x: Tensor) -> Tensor:
        return free_energy(**{**given, name: x}, backend=backend)

    wanted = torch.autograd.functional.jacobian(value, given[name])
    torch.testing.assert_close(jacrev(value)(given[name]), wanted)


@pytest.mark.parametrize("name", list(MAPPED))
def test_gradients_per_sample(backend: str, name: str) -> None:
    # vmap(grad): each query's own gradient, by arguments that all queries share too.
    given = arguments(scale=(7, 2))

    def loss(y: Tensor, x: Tensor) -> Tensor:
        one = {**given, "scale": given["scale"][:1], name: x}
        if name != "y":
            one["y"] = y[None]
        return free_energy(**one, backend=backend).sum()

    y = given["y"]
    x = y[:, None] if name == "y" else given[name][:1] if name == "scale" else given[name]
    in_dims = (0, 0 if name == "y" else None)
    found = vmap(grad(loss, argnums=1), in_dims=in_dims)(y, x)
    each = [grad(loss, argnums=1)(y[i], x[i] if name == "y" else x) for i in range(len(y))]
    torch.testing.assert_close(found, torch.stack(each))


def test_autocast_leaves_float32_alone(backend: str) -> None:
    y, decoded = torch.randn(7, 2), torch.randn(11, 2)
    wanted = free_energy(y, decoded, 2.0, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = free_energy(y, decoded, 2.0, backend=backend)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_takes_what_a_layer_made(any_backend: str, dtype: torch.dtype) -> None:
    given = {name: x.float() for name, x in arguments(scale=(7, 2)).items()}
    half = {name: given[name].to(dtype).requires_grad_() for name in ("scale", "decoded")}
    wide = {name: x.detach().float().requires_grad_() for name, x in half.items()}
    wanted = free_energy(**{**given, **wide}, backend=any_backend)
    with torch.autocast("cpu", dtype=dtype):
        found = free_energy(**{**given, **half}, backend=any_backend)
        restored = posterior(**{**given, **half}, backend=any_backend)
        index = sample_latent(**{**given, **half}, num_samples=3)
    assert found.dtype == restored.mean.dtype == torch.float32
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        restored, posterior(**{**given, **wide}, backend=any_backend), rtol=1e-5, atol=1e-5
    )
    assert index.shape == (7, 3)
    found.sum().backward()
    wanted.sum().backward()
    for name in half:
        slope, expected = half[name].grad, wide[name].grad
        assert slope is not None
        assert expected is not None
        torch.testing.assert_close(slope, expected.to(dtype))


def test_autocast_does_not_reach_into_a_backend(any_backend: str) -> None:
    given = {name: x.float().requires_grad_() for name, x in arguments().items()}
    wanted = posterior(**given, backend=any_backend)
    slopes = torch.autograd.grad(
        free_energy(**given, backend=any_backend).sum(), list(given.values())
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = posterior(**given, backend=any_backend)
        value = free_energy(**given, backend=any_backend)
        again = torch.autograd.grad(value.sum(), list(given.values()))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again, slopes, rtol=1e-5, atol=1e-5)


def test_the_state_and_slopes_carry_no_gradient(backend: str) -> None:
    tensors = [x.requires_grad_() for x in arguments().values()]
    value, *others = OPS.free_energy(*tensors, None, backend, [True] * 3)
    assert value.requires_grad
    assert not any(x.requires_grad for x in others)


def test_fake_tensors_need_no_values(backend: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        value = free_energy(torch.empty(7, 2), torch.empty(5, 11, 2), 2.0, backend=backend)
    assert value.shape == (5, 7)
