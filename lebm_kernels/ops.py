"""The operators: schema, shapes and implementation, once for all backends.

``lebm_kernels::free_energy`` takes the arguments in the caller's own shapes (leading dimensions
broadcast) and the backend's name, and returns F together with what its derivatives need, so that
the backward of the query-side arguments is a product and no second pass:

    F, dF/dy, dF/dscale, dF/dbeta, state = free_energy(...)        slopes not asked for are empty

``lebm_kernels::free_energy_backward`` is the second pass, for the latent-side arguments.
``lebm_kernels::posterior`` returns expectations under the posterior, and what its derivatives need.
``lebm_kernels::sample_latent`` draws from it, the same way for every backend.
``lebm_kernels::free_energy_second`` is what second derivatives, and forward mode, are made of: F's
rate along a direction, and the rates of F's gradients (see :mod:`lebm_kernels.second_order`).

Their derivatives and batching are in :mod:`lebm_kernels.derivatives`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lebm_kernels import sampling
from lebm_kernels.backends import module
from lebm_kernels.backends.contract import ColumnWants, Problem, RowWants
from lebm_kernels.second_order import Direction, SecondWants, along

library: torch.library.Library = torch.library.Library("lebm_kernels", "DEF")

_ARGUMENTS = (
    "Tensor y, Tensor decoded, Tensor beta, Tensor? scale, Tensor? log_weight, "
    "Tensor? latent_energy, float? tol, str backend"
)
library.define(
    f"free_energy({_ARGUMENTS}, bool[3] slopes) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
library.define(f"posterior({_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)")
library.define(
    f"free_energy_backward(Tensor grad, Tensor state, {_ARGUMENTS}, bool[3] output_mask)"
    " -> (Tensor, Tensor, Tensor)"
)
library.define(
    "sample_latent(Tensor y, Tensor decoded, Tensor beta, Tensor? scale, Tensor? log_weight, "
    "Tensor? latent_energy, SymInt num_samples, Generator? generator) -> Tensor",
    tags=(torch.Tag.nondeterministic_seeded,),
)
library.define(
    "free_energy_second(Tensor? grad, Tensor? grad_dot, Tensor state, "
    "Tensor? y_dot, Tensor? decoded_dot, Tensor? beta_dot, Tensor? scale_dot, "
    "Tensor? log_weight_dot, Tensor? latent_energy_dot, Tensor? mean_dot, Tensor? energy_dot, "
    f"{_ARGUMENTS}, bool[6] output_mask)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a free energy of ``dtype`` inputs is computed and returned in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def value_shape(
    y: Tensor,
    decoded: Tensor,
    beta: Tensor,
    scale: Tensor | None,
    log_weight: Tensor | None,
    latent_energy: Tensor | None,
) -> torch.Size:
    """The shape of F: ``[..., M]`` with every argument's leading dimensions broadcast."""
    shapes: list[tuple[int, ...]] = [y.shape[:-1], beta.shape]
    if scale is not None:
        shapes.append(scale.shape[:-1])
    if decoded.dim() > 2:
        shapes.append((*decoded.shape[:-2], 1))
    for row in (log_weight, latent_energy):
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


def canonical(
    y: Tensor,
    decoded: Tensor,
    beta: Tensor,
    scale: Tensor | None,
    log_weight: Tensor | None,
    latent_energy: Tensor | None,
    tol: float | None,
) -> tuple[Layout, Problem]:
    """The arguments as a :class:`Problem`.

    Where the latents have leading dimensions there are B grids; otherwise leading dimensions are
    only more queries over the one grid, B = 1.
    """
    shape = value_shape(y, decoded, beta, scale, log_weight, latent_energy)
    rows = (log_weight, latent_energy)
    many_grids = decoded.dim() > 2 or any(row is not None and row.dim() > 1 for row in rows)
    batch = shape[:-1] if many_grids else torch.Size()
    layout = Layout(shape, batch, many_grids, accumulation_dtype(y.dtype))
    num_latents, num_dims = decoded.shape[-2:]
    return layout, Problem(
        y=layout.per_query(y, num_dims),
        decoded=layout.per_latent(decoded, num_latents, num_dims),
        beta=layout.per_query(beta),
        scale=None if scale is None else layout.per_query(scale, num_dims),
        log_weight=None if log_weight is None else layout.per_latent(log_weight, num_latents),
        latent_energy=(
            None if latent_energy is None else layout.per_latent(latent_energy, num_latents)
        ),
        tol=tol,
    )


def _shaped(x: Tensor | None, shape: tuple[int, ...], like: Tensor) -> Tensor:
    return like.new_empty(0) if x is None else x.reshape(shape)


def _free_energy(
    y: Tensor,
    decoded: Tensor,
    beta: Tensor,
    scale: Tensor | None,
    log_weight: Tensor | None,
    latent_energy: Tensor | None,
    tol: float | None,
    backend: str,
    slopes: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    layout, problem = canonical(y, decoded, beta, scale, log_weight, latent_energy, tol)
    shape = layout.shape
    want = RowWants(slopes[0], slopes[1] and scale is not None, slopes[2])
    rows = module(backend).rows(problem, want)
    value = rows.free_energy.reshape(shape)
    vector = shape + y.shape[-1:]
    return (
        value,
        _shaped(rows.slope_y, vector, value),
        _shaped(rows.slope_scale, vector, value),
        _shaped(rows.slope_beta, shape, value),
        rows.state.reshape((*shape, 3)),
    )


def _free_energy_fake(
    y: Tensor,
    decoded: Tensor,
    beta: Tensor,
    scale: Tensor | None,
    log_weight: Tensor | None,
    latent_energy: Tensor | None,
    tol: float | None,
    backend: str,
    slopes: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    shape = value_shape(y, decoded, beta, scale, log_weight, latent_energy)
    value = y.new_empty(shape, dtype=accumulation_dtype(y.dtype))
    vector = shape + y.shape[-1:]
    return (
        value,
        value.new_empty(vector if slopes[0] else 0),
        value.new_empty(vector if slopes[1] and scale is not None else 0),
        value.new_empty(shape if slopes[2] else 0),
        value.new_empty((*shape, 3), dtype=torch.float64),
    )


def _posterior(
    y: Tensor,
    decoded: Tensor,
    beta: Tensor,
    scale: Tensor | None,
    log_weight: Tensor | None,
    latent_energy: Tensor | None,
    tol: float | None,
    backend: str,
) -> tuple[Tensor, ...]:
    layout, problem = canonical(y, decoded, beta, scale, log_weight, latent_energy, tol)
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
        rows.mean.reshape(shape + y.shape[-1:]),
        energy.reshape(shape),
        entropy.reshape(shape),
        rows.index.reshape(shape),
        rows.state.reshape((*shape, 3)),
    )


def _posterior_fake(
    y: Tensor,
    decoded: Tensor,
    beta: Tensor,
    scale: Tensor | None,
    log_weight: Tensor | None,
    latent_energy: Tensor | None,
    tol: float | None,
    backend: str,
) -> tuple[Tensor, ...]:
    shape = value_shape(y, decoded, beta, scale, log_weight, latent_energy)
    value = y.new_empty(shape, dtype=accumulation_dtype(y.dtype))
    return (
        value,
        value.new_empty(shape + y.shape[-1:]),
        torch.empty_like(value),
        torch.empty_like(value),
        value.new_empty(shape, dtype=torch.int64),
        value.new_empty((*shape, 3), dtype=torch.float64),
    )


def _sample_latent(
    y: Tensor,
    decoded: Tensor,
    beta: Tensor,
    scale: Tensor | None,
    log_weight: Tensor | None,
    latent_energy: Tensor | None,
    num_samples: int,
    generator: torch.Generator | None,
) -> Tensor:
    layout, problem = canonical(y, decoded, beta, scale, log_weight, latent_energy, None)
    index = sampling.sample(problem, num_samples, generator)
    return index.reshape((*layout.shape, num_samples))


def _sample_latent_fake(
    y: Tensor,
    decoded: Tensor,
    beta: Tensor,
    scale: Tensor | None,
    log_weight: Tensor | None,
    latent_energy: Tensor | None,
    num_samples: int,
    generator: torch.Generator | None,
) -> Tensor:
    shape = value_shape(y, decoded, beta, scale, log_weight, latent_energy)
    return y.new_empty((*shape, num_samples), dtype=torch.int64)


def _free_energy_backward(
    grad: Tensor,
    state: Tensor,
    y: Tensor,
    decoded: Tensor,
    beta: Tensor,
    scale: Tensor | None,
    log_weight: Tensor | None,
    latent_energy: Tensor | None,
    tol: float | None,
    backend: str,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    layout, problem = canonical(y, decoded, beta, scale, log_weight, latent_energy, tol)
    columns = module(backend).columns(
        problem,
        layout.per_query(grad),
        state.expand((*layout.shape, 3)).reshape((*problem.beta.shape, 3)),
        ColumnWants(*output_mask),
    )

    def reduced(x: Tensor | None, argument: Tensor | None) -> Tensor:
        if x is None or argument is None:
            return grad.new_empty(0)
        unfolded = x.reshape(layout.batch + x.shape[1:])
        return unfolded.sum_to_size(argument.shape).to(argument.dtype)

    return (
        reduced(columns.decoded, decoded),
        reduced(columns.log_weight, log_weight),
        reduced(columns.latent_energy, latent_energy),
    )


def _free_energy_backward_fake(
    grad: Tensor,
    state: Tensor,
    y: Tensor,
    decoded: Tensor,
    beta: Tensor,
    scale: Tensor | None,
    log_weight: Tensor | None,
    latent_energy: Tensor | None,
    tol: float | None,
    backend: str,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    def like(argument: Tensor | None, wanted: bool) -> Tensor:
        if argument is None or not wanted:
            return grad.new_empty(0)
        return argument.new_empty(argument.shape)

    return (
        like(decoded, output_mask[0]),
        like(log_weight, output_mask[1]),
        like(latent_energy, output_mask[2]),
    )


def _free_energy_second(
    grad: Tensor | None,
    grad_dot: Tensor | None,
    state: Tensor,
    y_dot: Tensor | None,
    decoded_dot: Tensor | None,
    beta_dot: Tensor | None,
    scale_dot: Tensor | None,
    log_weight_dot: Tensor | None,
    latent_energy_dot: Tensor | None,
    mean_dot: Tensor | None,
    energy_dot: Tensor | None,
    y: Tensor,
    decoded: Tensor,
    beta: Tensor,
    scale: Tensor | None,
    log_weight: Tensor | None,
    latent_energy: Tensor | None,
    tol: float | None,
    backend: str,
    output_mask: list[bool],
) -> tuple[Tensor, ...]:
    arguments = (y, decoded, beta, scale, log_weight, latent_energy)
    layout, problem = canonical(*arguments, tol)
    num_latents, num_dims = decoded.shape[-2:]

    def per_query(x: Tensor | None, *tail: int) -> Tensor | None:
        return None if x is None else layout.per_query(x, *tail)

    def per_latent(x: Tensor | None, *tail: int) -> Tensor | None:
        return None if x is None else layout.per_latent(x, *tail)

    second = along(
        problem,
        torch.ones_like(problem.beta) if grad is None else layout.per_query(grad),
        per_query(grad_dot),
        state.expand((*layout.shape, 3)).reshape((*problem.beta.shape, 3)),
        Direction(
            y=per_query(y_dot, num_dims),
            decoded=per_latent(decoded_dot, num_latents, num_dims),
            beta=per_query(beta_dot),
            scale=per_query(scale_dot, num_dims),
            log_weight=per_latent(log_weight_dot, num_latents),
            latent_energy=per_latent(latent_energy_dot, num_latents),
            mean=per_query(mean_dot, num_dims),
            energy=per_query(energy_dot),
        ),
        SecondWants(*(w and x is not None for w, x in zip(output_mask, arguments, strict=True))),
    )
    # y, beta and scale unfold like F, the others like the grids.
    leading = (layout.shape, layout.batch, layout.shape, layout.shape, layout.batch, layout.batch)
    tails = (2, 1, 2, 2, 1, 1)
    gradients = (
        y.new_empty(0)
        if x is None or argument is None
        else x.reshape(before + x.shape[tail:]).sum_to_size(argument.shape).to(argument.dtype)
        for x, argument, before, tail in zip(second[1:], arguments, leading, tails, strict=True)
    )
    return (second.value.reshape(layout.shape), *gradients)


def _free_energy_second_fake(
    grad: Tensor | None,
    grad_dot: Tensor | None,
    state: Tensor,
    y_dot: Tensor | None,
    decoded_dot: Tensor | None,
    beta_dot: Tensor | None,
    scale_dot: Tensor | None,
    log_weight_dot: Tensor | None,
    latent_energy_dot: Tensor | None,
    mean_dot: Tensor | None,
    energy_dot: Tensor | None,
    y: Tensor,
    decoded: Tensor,
    beta: Tensor,
    scale: Tensor | None,
    log_weight: Tensor | None,
    latent_energy: Tensor | None,
    tol: float | None,
    backend: str,
    output_mask: list[bool],
) -> tuple[Tensor, ...]:
    arguments = (y, decoded, beta, scale, log_weight, latent_energy)
    value = y.new_empty(value_shape(*arguments), dtype=accumulation_dtype(y.dtype))
    gradients = (
        y.new_empty(0) if x is None or not wanted else x.new_empty(x.shape)
        for x, wanted in zip(arguments, output_mask, strict=True)
    )
    return (value, *gradients)


def _implement(name: str, implementation: Any, fake: Any) -> None:
    library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lebm_kernels::{name}", fake, lib=library)


_implement("free_energy", _free_energy, _free_energy_fake)
_implement("free_energy_backward", _free_energy_backward, _free_energy_backward_fake)
_implement("free_energy_second", _free_energy_second, _free_energy_second_fake)
_implement("posterior", _posterior, _posterior_fake)
_implement("sample_latent", _sample_latent, _sample_latent_fake)
