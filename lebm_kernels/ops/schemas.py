"""The operators: schema, shapes and implementation, once for all backends.

``lebm_kernels::free_energy`` takes the arguments in the caller's own shapes (leading dimensions
broadcast) and the backend's name, and returns F together with what its derivatives need, so that
the backward of the query-side arguments is a product and no second pass:

    F, dF/dy, dF/dscale, dF/dbeta, state = free_energy(...)        slopes not asked for are empty

``lebm_kernels::free_energy_backward`` is the second pass, for the latent-side arguments.
``lebm_kernels::posterior`` returns expectations under the posterior, and what its derivatives need.
``lebm_kernels::sample_latent`` draws from it, the same way for every backend.
``lebm_kernels::free_energy_second`` is what second derivatives, and forward mode, are made of: F's
rate along a direction, and the rates of F's gradients (see :mod:`lebm_kernels.ops.second_order`).

Their derivatives and batching are in :mod:`lebm_kernels.ops.derivatives`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lebm_kernels.backends import module
from lebm_kernels.backends.contract import ColumnWants, Problem, RowWants
from lebm_kernels.ops import sampling
from lebm_kernels.ops.second_order import Direction, SecondWants, along

library: torch.library.Library = torch.library.Library("lebm_kernels", "DEF")


class Arguments(NamedTuple):
    """The tensors that every operator takes, in the caller's own shapes.

    A :class:`Problem` is what :func:`canonical` makes of them for a backend. They are two types, so
    that no function takes the one for the other.
    """

    y: Tensor
    decoded: Tensor
    beta: Tensor
    scale: Tensor | None
    log_weight: Tensor | None
    latent_energy: Tensor | None


_Six = tuple[Any, Any, Any, Any, Any, Any]

# As Arguments, and as Direction.
_TENSORS = (
    "Tensor y, Tensor decoded, Tensor beta, Tensor? scale, Tensor? log_weight, "
    "Tensor? latent_energy"
)
_RATES = ", ".join(f"Tensor? {name}_dot" for name in Direction._fields)


def _define(schema: str, num_outputs: int, **options: Any) -> None:
    library.define(f"{schema} -> ({', '.join(num_outputs * ['Tensor'])})", **options)


_define(f"free_energy({_TENSORS}, float? tol, str backend, bool[3] slopes)", 5)
_define(f"posterior({_TENSORS}, float? tol, str backend)", 6)
_define(
    f"free_energy_backward(Tensor grad, Tensor state, {_TENSORS}, "
    "float? tol, str backend, bool[3] output_mask)",
    3,
)
_define(
    f"sample_latent({_TENSORS}, SymInt num_samples, Generator? generator)",
    1,
    tags=(torch.Tag.nondeterministic_seeded,),
)
_define(
    f"free_energy_second(Tensor? grad, Tensor? grad_dot, Tensor state, {_RATES}, {_TENSORS}, "
    "float? tol, str backend, bool[6] output_mask)",
    7,
)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a free energy of ``dtype`` inputs is computed and returned in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def value_shape(given: Arguments) -> torch.Size:
    """The shape of F: ``[..., M]`` with every argument's leading dimensions broadcast."""
    shapes: list[tuple[int, ...]] = [given.y.shape[:-1], given.beta.shape]
    if given.scale is not None:
        shapes.append(given.scale.shape[:-1])
    if given.decoded.dim() > 2:
        shapes.append((*given.decoded.shape[:-2], 1))
    for row in (given.log_weight, given.latent_energy):
        if row is not None and row.dim() > 1:
            shapes.append((*row.shape[:-1], 1))
    return torch.broadcast_shapes(*shapes)


class Layout(NamedTuple):
    """How the canonical dimensions unfold: F is ``shape``, the grids are ``batch + [N, D]``."""

    shape: torch.Size
    batch: torch.Size
    many_grids: bool
    dtype: torch.dtype

    def per_query(self, x: Tensor, *tail: int) -> Tensor:
        """``[B, M, *tail]`` of what broadcasts with ``shape + tail``."""
        num_grids = math.prod(self.batch)
        num_queries = self.shape[-1] if self.many_grids else math.prod(self.shape)
        return x.to(self.dtype).expand(self.shape + tail).reshape(num_grids, num_queries, *tail)

    def per_latent(self, x: Tensor, *tail: int) -> Tensor:
        """``[B, *tail]`` of what broadcasts with ``batch + tail``."""
        return x.to(self.dtype).expand(self.batch + tail).reshape(math.prod(self.batch), *tail)

    def canonical(self, given: Any, num_latents: int, num_dims: int) -> _Six:
        """The arguments, or the rates of some, as a :class:`Problem` has them."""
        y, decoded, beta, scale, log_weight, latent_energy = given
        return (
            None if y is None else self.per_query(y, num_dims),
            None if decoded is None else self.per_latent(decoded, num_latents, num_dims),
            None if beta is None else self.per_query(beta),
            None if scale is None else self.per_query(scale, num_dims),
            None if log_weight is None else self.per_latent(log_weight, num_latents),
            None if latent_energy is None else self.per_latent(latent_energy, num_latents),
        )

    def state(self, x: Tensor) -> Tensor:
        """A row pass's state as a backend returned it, ``[B, M, 3]``."""
        return self._replace(dtype=x.dtype).per_query(x, 3)

    def gradient(self, x: Tensor, argument: Tensor, of_queries: bool) -> Tensor:
        """The gradient of an argument from that of its canonical form."""
        leading, own = (self.shape, x.shape[2:]) if of_queries else (self.batch, x.shape[1:])
        return x.reshape(leading + own).sum_to_size(argument.shape).to(argument.dtype)


def canonical(given: Arguments, tol: float | None) -> tuple[Layout, Problem]:
    """The arguments as a :class:`Problem`.

    Where the latents have leading dimensions there are B grids; otherwise leading dimensions are
    only more queries over the one grid, B = 1.
    """
    shape = value_shape(given)
    rows = (given.log_weight, given.latent_energy)
    many_grids = given.decoded.dim() > 2 or any(row is not None and row.dim() > 1 for row in rows)
    batch = shape[:-1] if many_grids else torch.Size()
    layout = Layout(shape, batch, many_grids, accumulation_dtype(given.y.dtype))
    return layout, Problem(*layout.canonical(given, *given.decoded.shape[-2:]), tol=tol)


def _shaped(x: Tensor | None, shape: tuple[int, ...], like: Tensor) -> Tensor:
    return like.new_empty(0) if x is None else x.reshape(shape)


def _free_energy(
    given: Arguments, tol: float | None, backend: str, slopes: list[bool]
) -> tuple[Tensor, ...]:
    layout, problem = canonical(given, tol)
    shape = layout.shape
    want = RowWants(slopes[0], slopes[1] and given.scale is not None, slopes[2])
    rows = module(backend).rows(problem, want)
    value = rows.free_energy.reshape(shape)
    vector = shape + given.y.shape[-1:]
    return (
        value,
        _shaped(rows.slope_y, vector, value),
        _shaped(rows.slope_scale, vector, value),
        _shaped(rows.slope_beta, shape, value),
        rows.state.reshape((*shape, 3)),
    )


def _fake_value(given: Arguments) -> Tensor:
    return given.y.new_empty(value_shape(given), dtype=accumulation_dtype(given.y.dtype))


def _fake_state(value: Tensor) -> Tensor:
    return value.new_empty((*value.shape, 3), dtype=torch.float64)


def _free_energy_fake(
    given: Arguments, tol: float | None, backend: str, slopes: list[bool]
) -> tuple[Tensor, ...]:
    value = _fake_value(given)
    vector = value.shape + given.y.shape[-1:]
    return (
        value,
        value.new_empty(vector if slopes[0] else 0),
        value.new_empty(vector if slopes[1] and given.scale is not None else 0),
        value.new_empty(value.shape if slopes[2] else 0),
        _fake_state(value),
    )


def _posterior(given: Arguments, tol: float | None, backend: str) -> tuple[Tensor, ...]:
    layout, problem = canonical(given, tol)
    shape = layout.shape
    want = RowWants(slope_beta=True, mean=True, index=True)
    rows = module(backend).rows(problem, want)
    assert rows.slope_beta is not None
    assert rows.mean is not None
    assert rows.index is not None
    # Where beta^2 overflows, the posterior is that at beta = inf.
    cold = problem.beta.square() == torch.inf
    finite = torch.where(cold, 0.0, problem.beta)
    # At beta = 0 a slope that overflows must not reach a product with it.
    slope = torch.where((finite == 0) & rows.slope_beta.isinf(), 0.0, rows.slope_beta)
    # dF/dbeta = (<E> - F)/beta = -KL/beta^2; when cold, KL is -log of the minima's weight.
    entropy = torch.where(
        cold,
        -rows.state[..., 1].to(finite.dtype),
        -finite.square() * slope,
    )
    energy = rows.free_energy + finite * slope
    return (
        rows.free_energy.reshape(shape),
        rows.mean.reshape(shape + given.y.shape[-1:]),
        energy.reshape(shape),
        entropy.reshape(shape),
        rows.index.reshape(shape),
        rows.state.reshape((*shape, 3)),
    )


def _posterior_fake(given: Arguments, tol: float | None, backend: str) -> tuple[Tensor, ...]:
    value = _fake_value(given)
    return (
        value,
        value.new_empty(value.shape + given.y.shape[-1:]),
        torch.empty_like(value),
        torch.empty_like(value),
        value.new_empty(value.shape, dtype=torch.int64),
        _fake_state(value),
    )


def _sample_latent(given: Arguments, num_samples: int, generator: torch.Generator | None) -> Tensor:
    layout, problem = canonical(given, None)
    index = sampling.sample(problem, num_samples, generator)
    return index.reshape((*layout.shape, num_samples))


def _sample_latent_fake(
    given: Arguments, num_samples: int, generator: torch.Generator | None
) -> Tensor:
    return given.y.new_empty((*value_shape(given), num_samples), dtype=torch.int64)


def _free_energy_backward(
    grad: Tensor,
    state: Tensor,
    given: Arguments,
    tol: float | None,
    backend: str,
    output_mask: list[bool],
) -> tuple[Tensor, ...]:
    layout, problem = canonical(given, tol)
    want = ColumnWants(*output_mask)
    found = module(backend).columns(problem, layout.per_query(grad), layout.state(state), want)
    arguments = (given.decoded, given.log_weight, given.latent_energy)
    return tuple(
        grad.new_empty(0) if x is None or argument is None else layout.gradient(x, argument, False)
        for x, argument in zip(found, arguments, strict=True)
    )


def _free_energy_backward_fake(
    grad: Tensor,
    state: Tensor,
    given: Arguments,
    tol: float | None,
    backend: str,
    output_mask: list[bool],
) -> tuple[Tensor, ...]:
    arguments = (given.decoded, given.log_weight, given.latent_energy)
    return _fake_gradients(grad, arguments, output_mask)


def _free_energy_second(
    grad: Tensor | None,
    grad_dot: Tensor | None,
    state: Tensor,
    dots: Direction,
    given: Arguments,
    tol: float | None,
    backend: str,
    output_mask: list[bool],
) -> tuple[Tensor, ...]:
    layout, problem = canonical(given, tol)
    num_latents, num_dims = given.decoded.shape[-2:]
    second = along(
        problem,
        torch.ones_like(problem.beta) if grad is None else layout.per_query(grad),
        None if grad_dot is None else layout.per_query(grad_dot),
        layout.state(state),
        Direction(
            *layout.canonical(dots[:6], num_latents, num_dims),
            mean=None if dots.mean is None else layout.per_query(dots.mean, num_dims),
            energy=None if dots.energy is None else layout.per_query(dots.energy),
        ),
        SecondWants(*(w and x is not None for w, x in zip(output_mask, given, strict=True))),
    )
    # y, beta and scale unfold like F, the others like the grids.
    of_queries = (True, False, True, True, False, False)
    gradients = (
        given.y.new_empty(0) if x is None or argument is None else layout.gradient(x, argument, q)
        for x, argument, q in zip(second[1:], given, of_queries, strict=True)
    )
    return (second.value.reshape(layout.shape), *gradients)


def _free_energy_second_fake(
    grad: Tensor | None,
    grad_dot: Tensor | None,
    state: Tensor,
    dots: Direction,
    given: Arguments,
    tol: float | None,
    backend: str,
    output_mask: list[bool],
) -> tuple[Tensor, ...]:
    value = _fake_value(given)
    return (value, *_fake_gradients(given.y, given, output_mask))


def _fake_gradients(
    like: Tensor, arguments: tuple[Tensor | None, ...], wanted: list[bool]
) -> tuple[Tensor, ...]:
    return tuple(
        like.new_empty(0) if x is None or not w else x.new_empty(x.shape)
        for x, w in zip(arguments, wanted, strict=True)
    )


def _gathered(function: Callable[..., Any], first: int, *kinds: Any) -> Callable[..., Any]:
    """``function``, called with an operator's arguments: from the first-th on, tuples of them."""
    parts, start = [], first
    for kind in kinds:
        parts.append((kind._make, slice(start, start + len(kind._fields))))
        start += len(kind._fields)

    def call(*args: Any) -> Any:
        return function(*args[:first], *[make(args[part]) for make, part in parts], *args[start:])

    return call


def _implement(
    name: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    first: int = 0,
    kinds: tuple[Any, ...] = (Arguments,),
) -> None:
    run = _gathered(implementation, first, *kinds)
    library.impl(name, run, "CompositeExplicitAutograd")
    fake = _gathered(fake, first, *kinds)
    torch.library.register_fake(f"lebm_kernels::{name}", fake, lib=library)


_implement("free_energy", _free_energy, _free_energy_fake)
_implement("free_energy_backward", _free_energy_backward, _free_energy_backward_fake, 2)
_implement(
    "free_energy_second", _free_energy_second, _free_energy_second_fake, 3, (Direction, Arguments)
)
_implement("posterior", _posterior, _posterior_fake)
_implement("sample_latent", _sample_latent, _sample_latent_fake)
