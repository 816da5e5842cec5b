"""Second derivatives and forward mode, against the formulas differentiated by autograd."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from support.problems import NAMES, SMALL_BETAS, small_problem
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from lebm_kernels import free_energy, posterior
from lebm_kernels.backends import tiles as pair_tiles
from lebm_kernels.backends.contract import Problem
from lebm_kernels.diagnostics import promise
from lebm_kernels.ops.second_order import Direction, SecondWants, along

# What PyTorch says of itself when it first loads forward mode.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)


@pytest.fixture
def backend(backend_once: str) -> str:
    """Second derivatives are those of one program, whatever the backend of the first."""
    return backend_once


def doubly(
    arguments: dict[str, Any], upstream: Tensor, direction: dict[str, Tensor], backend: str
) -> list[Tensor]:
    """The gradients of sum_i <direction_i, dS/d argument_i>, S = <upstream, F>.

    By ``upstream`` and by every argument; only the gradients that ``direction`` names are taken.
    """
    leaves = {name: x.detach().requires_grad_() for name, x in arguments.items()}
    upstream = upstream.detach().requires_grad_()
    value = free_energy(**leaves, backend=backend)
    first = torch.autograd.grad(
        value, [leaves[name] for name in direction], upstream, create_graph=True
    )
    along = sum((x * h).sum() for x, h in zip(first, direction.values(), strict=True))
    wanted = [upstream, *leaves.values()]
    found = torch.autograd.grad(torch.as_tensor(along), wanted, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, wanted, strict=True)]


def question(arguments: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    value = free_energy(**arguments, backend="reference")
    return torch.randn_like(value), {name: torch.randn_like(x) for name, x in arguments.items()}


def assert_close(found: list[Tensor], wanted: list[Tensor], share: float = 1e-10) -> None:
    """Equal, but for that share of the largest in the tensor."""
    for name, x, truth in zip(("upstream", *NAMES), found, wanted, strict=True):
        assert x.shape == truth.shape, name
        error, size = (x - truth).abs().max(), truth.abs().max()
        assert error <= share * (1 + size), f"{name}: {error} of {size}"


@pytest.fixture(params=[False, True], ids=["one_tile", "tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param:
        monkeypatch.setattr(pair_tiles, "_tile_pairs", lambda device: 12)
        monkeypatch.setattr(pair_tiles, "latents_per_tile", lambda problem: 3)
    return None


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("beta", SMALL_BETAS)
def test_every_pair_of_arguments_at_every_temperature(backend: str, beta: float) -> None:
    arguments = small_problem(beta=beta)
    arguments["log_weight"][2] = -math.inf
    if beta == math.inf:  # two minima
        arguments["decoded"][4] = arguments["decoded"][1]
        arguments["latent_energy"][[1, 4]] = -20.0
    asked = question(arguments)
    found = doubly(arguments, *asked, backend)
    assert_close(found, doubly(arguments, *asked, "reference"))
    for by_latent in (found[2], found[5], found[6]):
        assert (by_latent[2] == 0).all()


def test_one_at_a_time(backend: str) -> None:
    arguments = small_problem(beta=0.8)
    upstream, direction = question(arguments)

    def mixed(inner: str, outer: str, name: str) -> Tensor:
        leaves = {at: arguments[at].clone().requires_grad_() for at in {inner, outer}}
        value = free_energy(**{**arguments, **leaves}, backend=name)
        (first,) = torch.autograd.grad(value, leaves[inner], upstream, create_graph=True)
        return torch.autograd.grad((first * direction[inner]).sum(), leaves[outer])[0]

    for inner, outer in itertools.product(NAMES, NAMES):
        found, wanted = (mixed(inner, outer, name) for name in (backend, "reference"))
        torch.testing.assert_close(found, wanted, msg=f"{inner}, {outer}")


@pytest.mark.parametrize("beta", [1e-3, 0.8])
def test_gradgradcheck(backend: str, beta: float) -> None:
    arguments = small_problem(beta=beta, M=2, N=3)
    leaves = tuple(x.requires_grad_() for x in arguments.values())
    if beta < 1e-2:
        leaves[2].requires_grad_(False)  # a difference quotient loses all digits

    def of_all(*values: Tensor) -> Tensor:
        return free_energy(**dict(zip(NAMES, values, strict=True)), backend=backend)

    torch.autograd.gradgradcheck(of_all, leaves, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("beta", [*SMALL_BETAS, 1e4])
@pytest.mark.parametrize("D", [2, 7])
def test_float32(backend: str, beta: float, D: int) -> None:
    arguments = small_problem(beta=beta, M=17, N=33, D=D, dtype=torch.float32)
    upstream, direction = question(arguments)
    wide = {name: x.double() for name, x in arguments.items()}
    truth = doubly(
        wide, upstream.double(), {name: x.double() for name, x in direction.items()}, "reference"
    )
    found = doubly(arguments, upstream, direction, backend)
    plain = doubly(arguments, upstream, direction, "reference")
    for name, x, by_reference, right in zip(("", *NAMES), found, plain, truth, strict=True):
        assert x.dtype == torch.float32
        wanted = right.numpy()
        bound = promise.gradient_bound(
            wanted, by_reference.numpy(), abs(wanted).max(), 0.0, x.dtype
        )
        error = abs(x.numpy() - wanted).max()
        assert error <= bound, f"{name or 'upstream'}: {error} for {bound}"


def test_where_another_backend_rounds_the_minimum_otherwise(backend: str) -> None:
    # Far from the origin, and so cold that the last bit of a minimum decides.
    arguments = small_problem(beta=1e6, M=9, N=300, dtype=torch.float32)
    arguments["y"] += 100
    arguments["decoded"] += 100
    arguments["scale"] = torch.full_like(arguments["scale"], 1.1)
    for beta in (1e6, math.inf):
        arguments["beta"].fill_(beta)
        upstream, direction = question(arguments)
        direction = {"y": direction["y"]}
        found = doubly(arguments, upstream, direction, backend)
        own = doubly(arguments, upstream, direction, "reference")
        if beta == math.inf:
            torch.testing.assert_close(found[1], own[1])
        assert all(x.isfinite().all() for x in found)


def test_arguments_that_broadcast(backend: str) -> None:
    arguments: dict[str, Any] = {
        "y": torch.randn(2, 1, 3, 2).double(),
        "decoded": torch.randn(4, 5, 2).double(),
        "beta": torch.rand(2, 1, 1).double() + 0.5,
        "scale": torch.rand(2).double() + 0.5,
        "log_weight": torch.randn(2, 1, 5).double(),
        "latent_energy": torch.rand(5).double(),
    }
    asked = question(arguments)
    assert_close(doubly(arguments, *asked, backend), doubly(arguments, *asked, "reference"))
    plain = {**small_problem(beta=0.8), "beta": torch.tensor([[0.3], [2.0]]).double()}
    asked = question(plain)
    assert_close(doubly(plain, *asked, backend), doubly(plain, *asked, "reference"))


def test_one_latent_is_a_parabola(any_backend: str) -> None:
    y, decoded = torch.randn(3, 2).double(), torch.randn(1, 2).double()

    def total(y: Tensor) -> Tensor:
        return free_energy(y, decoded, 0.7, backend=any_backend).sum()

    twice = 2 * torch.eye(6, dtype=torch.float64)
    for curvature in (torch.autograd.functional.hessian(total, y), hessian(total)(y)):
        torch.testing.assert_close(curvature.reshape(6, 6), twice)


def test_two_latents_pull_a_query_in_the_middle_apart(backend: str) -> None:
    # F'' = 2 - 4 beta Var_p(g) for latents at -a and a, seen from 0.
    a, beta = 0.6, torch.tensor(1.3, dtype=torch.float64)
    decoded = torch.tensor([[-a], [a]], dtype=torch.float64)

    def at(y: Tensor) -> Tensor:
        return free_energy(y[None], decoded, beta, backend=backend)[0]

    curvature = hessian(at)(torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(curvature, (2 - 4 * beta * a**2).reshape(1, 1))


def test_a_gradient_penalty(backend: str) -> None:
    decoder = torch.nn.Linear(1, 2, dtype=torch.float64)
    y, z = torch.randn(6, 2).double().requires_grad_(), torch.randn(9, 1).double()
    slopes = []
    for name in (backend, "reference"):
        value = free_energy(y, decoder(z), 2.0, backend=name).mean()
        (slope,) = torch.autograd.grad(value, y, create_graph=True)
        loss = value + slope.square().sum()
        slopes.append(torch.autograd.grad(loss, [y, *decoder.parameters()]))
    torch.testing.assert_close(*slopes)


SECOND: dict[str, Callable[..., Any]] = {
    "hessian": hessian,
    "jacrev of jacrev": lambda f: jacrev(jacrev(f)),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(f)),
    "functional.hessian": lambda f: partial(torch.autograd.functional.hessian, f),
}


@pytest.mark.parametrize("way", SECOND)
def test_functorch(backend: str, way: str) -> None:
    arguments = small_problem(beta=0.8, M=2, N=3)
    for name in NAMES:

        def loss(x: Tensor, backend: str, name: str = name) -> Tensor:
            return free_energy(**{**arguments, name: x}, backend=backend).square().sum()

        x = arguments[name]
        wanted = torch.autograd.functional.hessian(partial(loss, backend="reference"), x)
        found = SECOND[way](partial(loss, backend=backend))(x)
        torch.testing.assert_close(found, wanted, msg=name)


# The product of a function's Hessian at x with v.
PRODUCTS: dict[str, Callable[..., Any]] = {
    "reverse over reverse": lambda f, x, v: vjp(grad(f), x)[1](v)[0],
    "forward over reverse": lambda f, x, v: jvp(grad(f), (x,), (v,))[1],
    "reverse over forward": lambda f, x, v: grad(lambda x: jvp(f, (x,), (v,))[1])(x),
}


@pytest.mark.parametrize("way", PRODUCTS)
def test_products_with_the_hessian_are_linear_in_the_vector(backend: str, way: str) -> None:
    arguments = small_problem(beta=0.8, M=2, N=3)
    for name in NAMES:

        def loss(x: Tensor, backend: str, name: str = name) -> Tensor:
            return free_energy(**{**arguments, name: x}, backend=backend).square().sum()

        x = arguments[name]
        wanted = torch.autograd.functional.hessian(partial(loss, backend="reference"), x)
        product = partial(PRODUCTS[way], partial(loss, backend=backend), x)
        for jacobian in (jacrev, jacfwd):
            found = jacobian(product)(torch.randn_like(x))
            torch.testing.assert_close(found, wanted, msg=f"{name}, {jacobian.__name__}")


@pytest.mark.parametrize("way", ["hessian", "jacrev of jacrev"])
def test_hessians_of_every_sample(backend: str, way: str) -> None:
    arguments = small_problem(beta=0.8, M=4, N=3)
    y, decoded = arguments["y"], arguments["decoded"]

    def one(y: Tensor, beta: Any, name: str) -> Tensor:
        return free_energy(y[None], decoded, beta, backend=name)[0]

    wanted = [
        [torch.autograd.functional.hessian(lambda x, b=b: one(x, b, "reference"), x) for x in y]
        for b in (0.5, 2.0)
    ]
    each = vmap(SECOND[way](partial(one, name=backend)), in_dims=(0, None))
    found = vmap(each, in_dims=(None, 0))(y, torch.tensor([0.5, 2.0]).double())
    torch.testing.assert_close(found, torch.stack([torch.stack(row) for row in wanted]))


def test_gradients_of_gradients_per_sample_by_what_all_share(backend: str) -> None:
    arguments = small_problem(beta=0.8, M=4, N=3)

    def penalty(y: Tensor, decoded: Tensor, name: str) -> Tensor:
        slope = grad(lambda y: free_energy(y[None], decoded, 0.8, backend=name)[0])(y)
        return slope.square().sum()

    per_sample = grad(partial(penalty, name=backend), argnums=1)
    found = vmap(per_sample, in_dims=(0, None))(arguments["y"], arguments["decoded"])
    by_reference = grad(partial(penalty, name="reference"), argnums=1)
    wanted = torch.stack([by_reference(y, arguments["decoded"]) for y in arguments["y"]])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("beta", SMALL_BETAS)
def test_forward_mode(backend: str, beta: float) -> None:
    arguments = small_problem(beta=beta)
    _, direction = question(arguments)

    def of_all(*values: Tensor, name: str) -> Tensor:
        return free_energy(**dict(zip(NAMES, values, strict=True)), backend=name)

    primals, tangents = tuple(arguments.values()), tuple(direction.values())
    found, wanted = (
        jvp(partial(of_all, name=name), primals, tangents) for name in (backend, "reference")
    )
    torch.testing.assert_close(found, wanted)
    for name in NAMES:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(arguments[name], direction[name])
            value, along = forward_ad.unpack_dual(
                free_energy(**{**arguments, name: dual}, backend=backend)
            )
        leaf = arguments[name].clone().requires_grad_()
        by_one = partial(free_energy, **{k: x for k, x in arguments.items() if k != name})
        jacobian = torch.autograd.functional.jacobian(
            lambda x, by_one=by_one, name=name: by_one(**{name: x}, backend="reference"), leaf
        )
        torch.testing.assert_close(along, (jacobian * direction[name]).flatten(1).sum(1))


def test_what_is_not_there_is_refused_not_zero(backend: str) -> None:
    arguments = small_problem(beta=0.8, M=2, N=3)

    def total(x: Tensor, name: str = "y") -> Tensor:
        return free_energy(**{**arguments, name: x}, backend=backend).sum()

    for name in NAMES:
        x = arguments[name].clone().requires_grad_()
        (first,) = torch.autograd.grad(total(x, name), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="third derivatives"):
            second.sum().backward()
    y = arguments["y"]
    with pytest.raises(RuntimeError, match="third derivatives"):
        jacrev(jacrev(jacrev(total)))(y)
    with pytest.raises(RuntimeError, match=r"^forward mode over forward mode .*func\.hessian"):
        jacfwd(jacfwd(total))(y)
    with pytest.raises(
        RuntimeError, match=r"^forward mode over .* a third derivative, jacfwd\(hes"
    ):
        jacfwd(hessian(total))(y)
    with pytest.raises(RuntimeError, match="forward-mode derivatives of posterior"):
        jvp(lambda y: posterior(y, arguments["decoded"], backend=backend).mean, (y,), (y,))


def test_no_query(backend: str) -> None:
    arguments = small_problem(beta=0.8, M=0)
    found = doubly(arguments, *question(arguments), backend)
    assert found[1].shape == (0, 2)
    assert all((x == 0).all() for x in found)


def test_a_query_that_is_none_stays_alone(backend: str) -> None:
    arguments = small_problem(beta=0.8)
    upstream, direction = question(arguments)
    wanted = doubly(arguments, upstream, direction, "reference")
    arguments["y"][1, 0] = math.nan
    found = doubly(arguments, upstream, direction, backend)
    rest = [0, 2, 3, 4]
    for at in (0, 1, 3, 4):  # upstream, y, beta, scale
        assert found[at][1].isnan().all()
        torch.testing.assert_close(found[at][rest], wanted[at][rest])


def test_half_precision(backend: str) -> None:
    wide = small_problem(beta=0.8, dtype=torch.float32)
    half = {name: x.half() for name, x in wide.items()}
    half["beta"] = wide["beta"]
    rounded = {name: x.float() for name, x in half.items()}
    upstream, direction = question(rounded)
    given = {name: x.to(half[name].dtype) for name, x in direction.items()}
    wanted = doubly(rounded, upstream, {name: x.float() for name, x in given.items()}, "reference")
    found = doubly(half, upstream, given, backend)
    for name, x, truth in zip(("", *NAMES), found, wanted, strict=True):
        assert x.dtype == (torch.float32 if name in ("", "beta") else torch.float16)
        torch.testing.assert_close(x.float(), truth, rtol=2e-3, atol=2e-3)


@pytest.mark.no_cover  # traced, it would take twice the time
@pytest.mark.parametrize("absent", [(), ("scale", "log_weight", "latent_energy")])
def test_opcheck(backend: str, absent: tuple[str, ...]) -> None:
    arguments = small_problem(beta=0.8, M=3, N=4)
    tensors = [None if name in absent else x for name, x in arguments.items()]
    operator = torch.ops.lebm_kernels
    value, *_, state = operator.free_energy(*tensors, None, backend, [False] * 3)
    mask = [x is not None for x in tensors]
    rates = [None if x is None else torch.randn_like(x) for x in tensors]
    weight, mean_dot = torch.randn_like(value), torch.randn_like(arguments["y"])
    for given in (
        (weight, weight, state, *rates, mean_dot, weight, weight, *tensors, mask),
        (None, None, state, *rates, None, None, None, *tensors, [False] * 6),
    ):
        torch.library.opcheck(operator.free_energy_second.default, given)


class _Reads(TorchDispatchMode):
    """Counts how often a number is asked of a tensor, for which a GPU would be waited for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_tiles_with_a_state_of_other_energies_are_visited_again_and_no_number_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pair_tiles, "_tile_pairs", lambda device: 8)
    # Four tiles of two queries; each query's latent is the one on its side.
    decoded = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [9.0, 9.0], [0.0, 9.0]]).double()
    side = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0])
    y = decoded[side] + 0.2 * torch.rand(8, 2, dtype=torch.float64)
    y_dot, decoded_dot, G = torch.randn(8, 2), torch.randn(4, 2), torch.rand(8)
    y_dot, decoded_dot, G = y_dot.double(), decoded_dot.double(), G.double()
    offset, offset_dot = y - decoded[side], y_dot - decoded_dot[side]
    state = torch.stack([offset.square().sum(-1), *torch.zeros(3, 8)], -1)
    state[:, 1] = -math.log(4)
    # Rounded otherwise, no latent is at the minimum, or the minimum is below.
    state[2, 0] -= 1e-9
    state[7, 0] -= 1e-9
    cold = Problem(
        y[None], decoded[None], torch.full((1, 8), math.inf).double(), None, None, None, None
    )
    direction = Direction(y=y_dot[None], decoded=decoded_dot[None])
    with _Reads() as reads:
        found = along(cold, G[None], None, state[None], direction, SecondWants(True, True))
    assert reads.count == 0
    torch.testing.assert_close(found.value[0], 2 * (offset * offset_dot).sum(-1))
    torch.testing.assert_close(found.y[0], 2 * G[:, None] * offset_dot)
    pull = torch.zeros(4, 2, dtype=torch.float64).index_add(0, side, -2 * G[:, None] * offset_dot)
    torch.testing.assert_close(found.decoded[0], pull)
