"""The operators: schema, shapes, derivatives and batching, once for all backends.

``lebm_kernels::free_energy`` takes the arguments in the caller's own shapes (leading dimensions
broadcast) and the backend's name, and returns F together with what its derivatives need, so that
the backward of the query-side arguments is a product and no second pass:

    F, dF/dy, dF/dscale, dF/dbeta, state = free_energy(...)        slopes not asked for are empty

``lebm_kernels::free_energy_backward`` is the second pass, for the latent-side arguments.
``lebm_kernels::posterior`` returns expectations under the posterior.
``lebm_kernels::sample_latent`` draws from it, the same way for every backend.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lebm_kernels import sampling
from lebm_kernels.backends import module
from lebm_kernels.backends.contract import ColumnWants, Problem, RowWants

_library = torch.library.Library("lebm_kernels", "DEF")

_ARGUMENTS = (
    "Tensor y, Tensor decoded, Tensor beta, Tensor? scale, Tensor? log_weight, "
    "Tensor? latent_energy, float? tol, str backend"
)
_library.define(
    f"free_energy({_ARGUMENTS}, bool[3] slopes) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define(f"posterior({_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
_library.define(
    f"free_energy_backward(Tensor grad, Tensor state, {_ARGUMENTS}, bool[3] output_mask)"
    " -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "sample_latent(Tensor y, Tensor decoded, Tensor beta, Tensor? scale, Tensor? log_weight, "
    "Tensor? latent_energy, SymInt num_samples, Generator? generator) -> Tensor",
    tags=(torch.Tag.nondeterministic_seeded,),
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


class _Layout(NamedTuple):
    """How the canonical dimensions unfold: F is ``shape``, the grids are ``batch + [N, D]``."""

    shape: torch.Size
    batch: torch.Size


def canonical(
    y: Tensor,
    decoded: Tensor,
    beta: Tensor,
    scale: Tensor | None,
    log_weight: Tensor | None,
    latent_energy: Tensor | None,
    tol: float | None,
) -> tuple[_Layout, Problem]:
    """The arguments as a :class:`Problem`.

    Where the latents have leading dimensions there are B grids; otherwise leading dimensions are
    only more queries over the one grid, B = 1.
    """
    shape = value_shape(y, decoded, beta, scale, log_weight, latent_energy)
    rows = (log_weight, latent_energy)
    many_grids = decoded.dim() > 2 or any(row is not None and row.dim() > 1 for row in rows)
    batch = shape[:-1] if many_grids else torch.Size()
    num_grids = math.prod(batch)
    num_queries = shape[-1] if many_grids else math.prod(shape)
    dtype = accumulation_dtype(y.dtype)

    def per_query(x: Tensor, *tail: int) -> Tensor:
        return x.to(dtype).expand(shape + tail).reshape(num_grids, num_queries, *tail)

    def per_latent(x: Tensor, *tail: int) -> Tensor:
        return x.to(dtype).expand(batch + tail).reshape(num_grids, *tail)

    num_latents, num_dims = decoded.shape[-2:]
    return _Layout(shape, batch), Problem(
        y=per_query(y, num_dims),
        decoded=per_latent(decoded, num_latents, num_dims),
        beta=per_query(beta),
        scale=None if scale is None else per_query(scale, num_dims),
        log_weight=None if log_weight is None else per_latent(log_weight, num_latents),
        latent_energy=None if latent_energy is None else per_latent(latent_energy, num_latents),
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
    (shape, _), problem = canonical(y, decoded, beta, scale, log_weight, latent_energy, tol)
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (shape, _), problem = canonical(y, decoded, beta, scale, log_weight, latent_energy, tol)
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    shape = value_shape(y, decoded, beta, scale, log_weight, latent_energy)
    value = y.new_empty(shape, dtype=accumulation_dtype(y.dtype))
    return (
        value,
        value.new_empty(shape + y.shape[-1:]),
        torch.empty_like(value),
        torch.empty_like(value),
        value.new_empty(shape, dtype=torch.int64),
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
    num_grids, num_queries = problem.beta.shape
    columns = module(backend).columns(
        problem,
        grad.to(problem.y.dtype).expand(layout.shape).reshape(num_grids, num_queries),
        state.expand((*layout.shape, 3)).reshape(num_grids, num_queries, 3),
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


class _FirstOrderOnly(torch.autograd.Function):
    """A gradient as it is, whose derivative is an error instead of a silent zero.

    It also takes what the gradient depends on, so that there is a derivative to refuse.
    """

    @staticmethod
    def forward(grad: Tensor, *sources: Tensor | None) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(_NO_SECOND_ORDER)

    @staticmethod
    def vmap(info: Any, in_dims: Any, grad: Tensor, *sources: Tensor | None) -> Any:
        return _FirstOrderOnly.apply(grad, *sources), in_dims[0]


_NO_SECOND_ORDER = "second derivatives of free_energy are only available with backend='reference'"


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    y, decoded, beta, scale, log_weight, latent_energy, ctx.tol, ctx.backend, _ = inputs
    _, *slopes, state = output
    ctx.mark_non_differentiable(*slopes, state)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(y, decoded, beta, scale, log_weight, latent_energy, *slopes, state)


def differentiate(
    ctx: Any, grad: Tensor | None, *_: Any, columns: Callable[..., Any] | None = None
) -> tuple[Tensor | None, ...]:
    """The gradients of ``free_energy``'s arguments.

    ``columns`` stands in for ``free_energy_columns`` where no transform can have hidden from the
    forward which gradients would be wanted.
    """
    if grad is None:
        return (None,) * 9
    *arguments, slope_y, slope_scale, slope_beta, state = ctx.saved_tensors
    y, decoded, beta, scale, log_weight, latent_energy = arguments
    needs = ctx.needs_input_grad
    slopes = [slope_y, slope_scale, slope_beta]
    if columns is None and any(
        n and slope.dim() == 1 and slope.numel() == 0 != grad.numel()
        for n, slope in zip((needs[0], needs[3], needs[2]), slopes, strict=True)
    ):
        # The forward did not know that this gradient would be wanted (a transform hid it).
        _, *slopes, state = free_energy(
            *arguments, ctx.tol, ctx.backend, [needs[0], needs[3], needs[2]]
        )

    def row(argument: Tensor, slope: Tensor) -> Tensor:
        weight = grad.unsqueeze(-1) if slope.dim() > grad.dim() else grad
        product = weight * slope
        if product.shape != argument.shape:
            product = product.sum_to_size(argument.shape)
        return product if product.dtype is argument.dtype else product.to(argument.dtype)

    grads: list[Tensor | None] = [None] * 6
    for position, slope in zip((0, 3, 2), slopes, strict=True):
        if needs[position]:
            grads[position] = row(arguments[position], slope)
    mask = [needs[1], needs[4], needs[5]]
    if any(mask):
        outputs = (columns or free_energy_columns)(
            grad, state, *arguments, ctx.tol, ctx.backend, mask
        )
        for position, wanted, column in zip((1, 4, 5), mask, outputs, strict=True):
            grads[position] = column if wanted else None
    if torch.is_grad_enabled():
        sources = (grad, *arguments)
        grads = [None if g is None else _FirstOrderOnly.apply(g, *sources) for g in grads]
    return (*grads, None, None, None)


def _refuse(ctx: Any, *_: Any) -> Any:
    raise RuntimeError(_NO_SECOND_ORDER)


# The trailing dimensions of y, decoded, beta, scale, log_weight, latent_energy that are their own.
_RANKS = (2, 2, 1, 2, 1, 1)


def _line_up(
    tensors: tuple[Tensor | None, ...], in_dims: tuple[int | None, ...], ranks: tuple[int, ...]
) -> list[Tensor | None]:
    """Make the mapped dimension the first of the leading ones, the same for every mapped tensor."""
    depth = 0
    for x, dim, rank in zip(tensors, in_dims, ranks, strict=True):
        if x is not None:
            depth = max(depth, x.dim() - (dim is not None) - rank)
    lined_up: list[Tensor | None] = []
    for x, dim, rank in zip(tensors, in_dims, ranks, strict=True):
        if x is not None and dim is not None:
            x = x.movedim(dim, 0)
            x = x.reshape(x.shape[:1] + (1,) * (1 + depth + rank - x.dim()) + x.shape[1:])
        lined_up.append(x)
    return lined_up


def _out_dims(outputs: tuple[Tensor, ...], num_leading: int) -> tuple[int | None, ...]:
    # An output that was not asked for is empty and not mapped.
    return tuple(0 if x.dim() >= num_leading else None for x in outputs)


def _free_energy_vmap(info: Any, in_dims: Any, *args: Any) -> Any:
    tensors = _line_up(args[:6], in_dims[:6], _RANKS)
    outputs = free_energy(*tensors, *args[6:])
    return outputs, _out_dims(outputs, outputs[0].dim())


def _posterior_vmap(info: Any, in_dims: Any, *args: Any) -> Any:
    tensors = _line_up(args[:6], in_dims[:6], _RANKS)
    outputs = torch.ops.lebm_kernels.posterior(*tensors, *args[6:])
    return outputs, _out_dims(outputs, outputs[0].dim())


def _sample_latent_vmap(info: Any, in_dims: Any, *args: Any) -> Any:
    if info.randomness != "different":
        raise RuntimeError(
            "vmap of sample_latent is only available with randomness='different', "
            f"got {info.randomness!r}"
        )
    tensors = _line_up(args[:6], in_dims[:6], _RANKS)
    return torch.ops.lebm_kernels.sample_latent(*tensors, *args[6:]), 0


def _free_energy_backward_vmap(info: Any, in_dims: Any, *args: Any) -> Any:
    tensors, dims, mask = list(args[:8]), list(in_dims[:8]), args[-1]
    latent_side = (3, 6, 7)
    for position, wanted in zip(latent_side, mask, strict=True):
        if wanted and dims[position] is None:
            # One gradient a sample, not their sum: the samples must not share the argument.
            tensors[position] = tensors[position].expand(info.batch_size, *tensors[position].shape)
            dims[position] = 0
    shapes = [
        tensors[position].movedim(dims[position], 0).shape if wanted else None
        for position, wanted in zip(latent_side, mask, strict=True)
    ]
    lined_up = _line_up(tuple(tensors), tuple(dims), (1, 2, *_RANKS))
    outputs = free_energy_columns(*lined_up, *args[8:])
    outputs = tuple(
        x if shape is None else x.reshape(shape) for x, shape in zip(outputs, shapes, strict=True)
    )
    return outputs, tuple(None if shape is None else 0 for shape in shapes)


class _FreeEnergy(torch.autograd.Function):
    """The operator for torch.func: the class that register_autograd makes does not serve there."""

    @staticmethod
    def forward(*args: Any) -> Any:
        return torch.ops.lebm_kernels.free_energy(*args)

    setup_context = staticmethod(_save)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return differentiate(ctx, *grads)

    vmap = staticmethod(_free_energy_vmap)


class _FreeEnergyColumns(torch.autograd.Function):
    """The backward operator for torch.func."""

    @staticmethod
    def forward(*args: Any) -> Any:
        return torch.ops.lebm_kernels.free_energy_backward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    backward = staticmethod(_refuse)
    vmap = staticmethod(_free_energy_backward_vmap)


def _inside_transform() -> bool:
    return (
        not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is not None
    )


def free_energy(*args: Any) -> Any:
    """The operator ``lebm_kernels::free_energy``, inside torch.func's transforms or outside."""
    if _inside_transform():
        return _FreeEnergy.apply(*args)
    return torch.ops.lebm_kernels.free_energy(*args)


def free_energy_columns(*args: Any) -> Any:
    """The operator ``lebm_kernels::free_energy_backward``, in the same way."""
    if _inside_transform():
        return _FreeEnergyColumns.apply(*args)
    return torch.ops.lebm_kernels.free_energy_backward(*args)


def _register(
    name: str, implementation: Any, fake: Any, vmap: Any, backward: Any, save: Any = None
) -> None:
    qualified = f"lebm_kernels::{name}"
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_library)
    torch.library.register_vmap(qualified, vmap, lib=_library)
    torch.library.register_autograd(qualified, backward, setup_context=save, lib=_library)


_register("free_energy", _free_energy, _free_energy_fake, _free_energy_vmap, differentiate, _save)
_register(
    "free_energy_backward",
    _free_energy_backward,
    _free_energy_backward_fake,
    _free_energy_backward_vmap,
    _refuse,
)
_register("posterior", _posterior, _posterior_fake, _posterior_vmap, _refuse)
_register("sample_latent", _sample_latent, _sample_latent_fake, _sample_latent_vmap, _refuse)
