"""The operators: schema, shapes and implementation, once for all backends.

``lebm_kernels::free_energy`` takes the arguments in the caller's own shapes (leading dimensions
broadcast) and the backend's name. It returns F together with what its derivatives need, so that the
backward of the query-side arguments is a product and not a second pass over the pairs:

    F, dF/dy, dF/dscale, dF/dbeta, state = free_energy(...)        slopes not asked for are empty

``lebm_kernels::free_energy_backward`` is the second pass, for the latent-side arguments.
``lebm_kernels::posterior`` returns expectations under the posterior, and what its derivatives need.
``lebm_kernels::sample_latent`` draws from the posterior, in plain PyTorch.
``lebm_kernels::free_energy_second`` computes F's rate along a direction and the rates of F's
gradients, for second derivatives and forward mode, in plain PyTorch too.

Their derivatives and batching are in :mod:`lebm_kernels.ops.derivatives`. Schemas and positions of
the tensor arguments come from :data:`lebm_kernels.arguments.TENSORS`.

A definition lasts as long as the process, since compiled graphs hold the operator. What a module
registers for it is replaced when the module is imported again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lebm_kernels.arguments import TENSORS, Arguments, accumulation_dtype, value_shape
from lebm_kernels.backends import module
from lebm_kernels.backends.contract import STATE_SIZE, ColumnWants, Problem, RowWants
from lebm_kernels.ops import sampling
from lebm_kernels.ops.second_order import Direction, SecondWants, along
from lebm_kernels.torch_internals import replaced_library, schema_of

SLOPES = tuple(
    Arguments._fields.index(field.removeprefix("slope_"))
    for field in RowWants._fields
    if field.startswith("slope_")
)
"""The positions of the arguments whose derivatives come out of the row pass, in its order."""

COLUMNS = tuple(map(Arguments._fields.index, ColumnWants._fields))
"""The positions of the arguments whose gradients the column pass computes, in its order."""

_GIVEN = ", ".join(f"Tensor{'?' if row.optional else ''} {row.name}" for row in TENSORS)
_RATES = ", ".join(f"Tensor? {name}_dot" for name in Direction._fields)


def _define(name: str, inputs: str, num_outputs: int, **options: Any) -> None:
    """Define the operator, unless an earlier import has.

    Raises:
        RuntimeError: an earlier import, of other sources, defined it with another schema.
    """
    qualified = f"lebm_kernels::{name}"
    outputs = ", ".join(num_outputs * ["Tensor"])
    schema = f"({inputs}) -> {outputs if num_outputs == 1 else f'({outputs})'}"
    earlier = schema_of(qualified)
    if earlier is None:
        torch.library.define(qualified, schema, **options)
    elif earlier != f"{qualified}{schema}":
        raise RuntimeError(
            f"operator {qualified} must be {schema}, but an earlier import of lebm_kernels defined "
            f"it as {earlier}: start a new process"
        )


_define(
    "free_energy",
    f"{_GIVEN}, float? tol, str backend, bool[{len(SLOPES)}] slopes",
    2 + len(SLOPES),
)
_define("posterior", f"{_GIVEN}, float? tol, str backend", 6)
_define(
    "free_energy_backward",
    f"Tensor grad, Tensor state, {_GIVEN}, float? tol, str backend, "
    f"bool[{len(COLUMNS)}] output_mask",
    len(COLUMNS),
)
_define(
    "sample_latent",
    f"{_GIVEN}, SymInt num_samples, Generator? generator",
    1,
    tags=(torch.Tag.nondeterministic_seeded,),
)
_define(
    "free_energy_second",
    f"Tensor? grad, Tensor? grad_dot, Tensor state, {_RATES}, {_GIVEN}, "
    f"bool[{len(TENSORS)}] output_mask",
    1 + len(TENSORS),
)


def with_slopes(given: Any) -> list[Any]:
    """The values of the arguments with slopes, in the row pass's order, of one value for each."""
    return [given[i] for i in SLOPES]


class Layout(NamedTuple):
    """How the canonical dimensions unfold: F is ``shape``, the grids are ``batch + [N, D]``."""

    shape: torch.Size
    batch: torch.Size
    many_grids: bool
    dtype: torch.dtype

    def per_query(self, x: Tensor, *tail: int) -> Tensor:
        """``[B, M, *tail]`` of a tensor that broadcasts with ``shape + tail``."""
        num_grids = math.prod(self.batch)
        num_queries = self.shape[-1] if self.many_grids else math.prod(self.shape)
        return x.to(self.dtype).expand(self.shape + tail).reshape(num_grids, num_queries, *tail)

    def per_latent(self, x: Tensor, *tail: int) -> Tensor:
        """``[B, *tail]`` of a tensor that broadcasts with ``batch + tail``."""
        return x.to(self.dtype).expand(self.batch + tail).reshape(math.prod(self.batch), *tail)

    def canonical(self, given: Any, N: int, D: int) -> list[Any]:
        """The arguments, or the rates of some, in the shapes that a :class:`Problem` has."""
        sizes = {"N": N, "D": D}
        return [
            None
            if x is None
            else self.per_query(x, *(sizes[dim] for dim in row.dims[1:]))
            if row.of_queries
            else self.per_latent(x, *(sizes[dim] for dim in row.dims))
            for x, row in zip(given, TENSORS, strict=True)
        ]

    def state(self, x: Tensor) -> Tensor:
        """A row pass's state as a backend returned it, ``[B, M, 4]``."""
        return self._replace(dtype=x.dtype).per_query(x, STATE_SIZE)

    def gradient(self, x: Tensor, argument: Tensor, of_queries: bool) -> Tensor:
        """The gradient of an argument from that of its canonical form."""
        leading, own = (self.shape, x.shape[2:]) if of_queries else (self.batch, x.shape[1:])
        return x.reshape(leading + own).sum_to_size(argument.shape).to(argument.dtype)


def canonical(given: Arguments, tol: float | None = None) -> tuple[Layout, Problem]:
    """The arguments as a :class:`Problem`.

    Where the latents have leading dimensions there are B grids. Otherwise leading dimensions are
    only more queries over the one grid: B = 1.
    """
    shape = value_shape(given)
    many_grids = any(
        x is not None and not row.of_queries and x.dim() > len(row.dims)
        for x, row in zip(given, TENSORS, strict=True)
    )
    batch = shape[:-1] if many_grids else torch.Size()
    layout = Layout(shape, batch, many_grids, accumulation_dtype(given.y.dtype))
    return layout, Problem._make((*layout.canonical(given, *given.decoded.shape[-2:]), tol))


def _free_energy(
    given: Arguments, tol: float | None, backend: str, slopes: list[bool]
) -> tuple[Tensor, ...]:
    layout, problem = canonical(given, tol)
    shape = layout.shape
    present = (w and x is not None for w, x in zip(slopes, with_slopes(given), strict=True))
    want = RowWants(*present)
    rows = module(backend).rows(problem, want)
    value = rows.free_energy.reshape(shape)
    found = [getattr(rows, field) for field in RowWants._fields[: len(SLOPES)]]
    shapes = _slope_shapes(shape, given)
    outputs = (
        value.new_empty(0) if x is None else x.reshape(s)
        for x, s in zip(found, shapes, strict=True)
    )
    return (value, *outputs, rows.state.reshape((*shape, STATE_SIZE)))


def _slope_shapes(shape: torch.Size, given: Arguments) -> list[torch.Size]:
    """The shapes of the slopes: ``shape``, and the D numbers of those arguments that have them."""
    return [shape + given.y.shape[-1:] if "D" in TENSORS[i].dims else shape for i in SLOPES]


def _slope_dtype(position: int, value: Tensor) -> torch.dtype:
    """The dtype of the slope of an argument, see :class:`lebm_kernels.backends.contract.Rows`."""
    return torch.float64 if TENSORS[position].name == "beta" else value.dtype


def _fake_value(given: Arguments) -> Tensor:
    return given.y.new_empty(value_shape(given), dtype=accumulation_dtype(given.y.dtype))


def _fake_state(value: Tensor) -> Tensor:
    return value.new_empty((*value.shape, STATE_SIZE), dtype=torch.float64)


def _free_energy_fake(
    given: Arguments, tol: float | None, backend: str, slopes: list[bool]
) -> tuple[Tensor, ...]:
    value = _fake_value(given)
    shapes = _slope_shapes(value.shape, given)
    found = (
        value.new_empty(shape, dtype=_slope_dtype(i, value))
        if w and x is not None
        else value.new_empty(0)
        for i, shape, w, x in zip(SLOPES, shapes, slopes, with_slopes(given), strict=True)
    )
    return (value, *found, _fake_state(value))


def _posterior(given: Arguments, tol: float | None, backend: str) -> tuple[Tensor, ...]:
    layout, problem = canonical(given, tol)
    shape = layout.shape
    want = RowWants(mean=True, energy=True, relative_entropy=True, index=True)
    rows = module(backend).rows(problem, want)
    assert rows.mean is not None
    assert rows.energy is not None
    assert rows.relative_entropy is not None
    assert rows.index is not None
    return (
        rows.free_energy.reshape(shape),
        rows.mean.reshape(shape + given.y.shape[-1:]),
        rows.energy.reshape(shape),
        rows.relative_entropy.reshape(shape),
        rows.index.reshape(shape),
        rows.state.reshape((*shape, STATE_SIZE)),
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
    layout, problem = canonical(given)
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
    return tuple(
        grad.new_empty(0) if x is None or argument is None else layout.gradient(x, argument, False)
        for x, argument in zip(found, (given[i] for i in COLUMNS), strict=True)
    )


def _free_energy_backward_fake(
    grad: Tensor,
    state: Tensor,
    given: Arguments,
    tol: float | None,
    backend: str,
    output_mask: list[bool],
) -> tuple[Tensor, ...]:
    return _fake_gradients(grad, [given[i] for i in COLUMNS], output_mask)


def _free_energy_second(
    grad: Tensor | None,
    grad_dot: Tensor | None,
    state: Tensor,
    dots: Direction,
    given: Arguments,
    output_mask: list[bool],
) -> tuple[Tensor, ...]:
    layout, problem = canonical(given)
    N, D = given.decoded.shape[-2:]
    second = along(
        problem,
        torch.ones_like(problem.beta) if grad is None else layout.per_query(grad),
        None if grad_dot is None else layout.per_query(grad_dot),
        layout.state(state),
        dots._replace(
            **dict(
                zip(Arguments._fields, layout.canonical(dots[: len(TENSORS)], N, D), strict=True)
            ),
            mean=None if dots.mean is None else layout.per_query(dots.mean, D),
            energy=None if dots.energy is None else layout.per_query(dots.energy),
            relative_entropy=None
            if dots.relative_entropy is None
            else layout.per_query(dots.relative_entropy),
        ),
        SecondWants(*(w and x is not None for w, x in zip(output_mask, given, strict=True))),
    )
    gradients = (
        given.y.new_empty(0)
        if x is None or argument is None
        else layout.gradient(x, argument, row.of_queries)
        for x, argument, row in zip(second[1:], given, TENSORS, strict=True)
    )
    return (second.value.reshape(layout.shape), *gradients)


def _free_energy_second_fake(
    grad: Tensor | None,
    grad_dot: Tensor | None,
    state: Tensor,
    dots: Direction,
    given: Arguments,
    output_mask: list[bool],
) -> tuple[Tensor, ...]:
    value = _fake_value(given)
    return (value, *_fake_gradients(given.y, given, output_mask))


def _fake_gradients(
    like: Tensor, arguments: Sequence[Tensor | None], wanted: list[bool]
) -> tuple[Tensor, ...]:
    return tuple(
        like.new_empty(0) if x is None or not w else x.new_empty(x.shape)
        for x, w in zip(arguments, wanted, strict=True)
    )


def _gathered(function: Callable[..., Any], first: int, *kinds: Any) -> Callable[..., Any]:
    """``function`` with an operator's flat arguments gathered into ``kinds``, from ``first`` on."""
    parts, start = [], first
    for kind in kinds:
        parts.append((kind._make, slice(start, start + len(kind._fields))))
        start += len(kind._fields)

    def call(*args: Any) -> Any:
        return function(*args[:first], *[make(args[part]) for make, part in parts], *args[start:])

    return call


_LIBRARY = replaced_library("implementations")


def _implement(
    name: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    first: int = 0,
    kinds: tuple[Any, ...] = (Arguments,),
) -> None:
    run = _gathered(implementation, first, *kinds)
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    fake = _gathered(fake, first, *kinds)
    torch.library.register_fake(f"lebm_kernels::{name}", fake, lib=_LIBRARY)


_implement("free_energy", _free_energy, _free_energy_fake)
_implement("free_energy_backward", _free_energy_backward, _free_energy_backward_fake, 2)
_implement(
    "free_energy_second", _free_energy_second, _free_energy_second_fake, 3, (Direction, Arguments)
)
_implement("posterior", _posterior, _posterior_fake)
_implement("sample_latent", _sample_latent, _sample_latent_fake)
