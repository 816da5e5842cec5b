"""The operators' derivatives and batching, once for all backends.

F's gradients are a function of F's arguments too. Its derivative, and forward mode, are the rates
along a direction that ``lebm_kernels::free_energy_second`` computes:

    backward of the gradients, cotangents as the direction: F_dot, and the gradients of sum G F_dot
    jvp of F: F_dot
    jvp of the gradients: the gradients of sum (G F_dot + G_dot F)

The operator of :mod:`lebm_kernels.ops.schemas` serves eager mode and torch.compile. torch.func and
forward mode ignore what an operator registers, so they get an autograd.Function in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lebm_kernels.ops import schemas

_NO_THIRD_ORDER = (
    "third derivatives of free_energy, and second derivatives of posterior, "
    "are only available with backend='reference'"
)
_NO_FORWARD_TWICE = (
    "forward mode over forward mode of free_energy, as in jacfwd(jacfwd) and, a third derivative, "
    "jacfwd(hessian), is only available with backend='reference'; every backend has the second "
    "derivatives of torch.func.hessian, jacrev(jacrev) and jacrev(jacfwd)"
)
_NO_FORWARD_POSTERIOR = (
    "forward-mode derivatives of posterior are only available with backend='reference'"
)


def _transformed() -> bool:
    """Whether torch.func or forward mode may be at work.

    Raises:
        NotImplementedError: they are, in a graph that is being compiled: there the functions that
            know of them cannot be called, and the operators alone would give forward-mode
            derivatives of zero.
    """
    found = forward_ad._current_level >= 0 or _in_torch_func()
    if found and torch.compiler.is_compiling():
        raise NotImplementedError(
            "torch.func and forward-mode derivatives of free_energy and posterior cannot be "
            "compiled: take them outside of torch.compile, or with backend='reference'"
        )
    return found


def _in_torch_func() -> bool:
    """Called while a graph is traced, and not a part of it; PyTorch guards a graph's transforms."""
    return torch._C._functorch.peek_interpreter_stack() is not None


# What torch.compiler.assume_constant_result does, which would import all of the compiler.
_in_torch_func._dynamo_marked_constant = True  # type: ignore[attr-defined]


def free_energy(*args: Any) -> Any:
    """The operator ``lebm_kernels::free_energy``, differentiable in every way."""
    if _transformed():
        return _FreeEnergy.apply(*args)
    return torch.ops.lebm_kernels.free_energy(*args)


def posterior(*args: Any) -> Any:
    """The operator ``lebm_kernels::posterior``, in the same way."""
    if _transformed():
        return _Posterior.apply(*args)
    return torch.ops.lebm_kernels.posterior(*args)


def free_energy_columns(*args: Any) -> Any:
    """The operator ``lebm_kernels::free_energy_backward``; not differentiable by itself."""
    if _transformed():
        return _FreeEnergyColumns.apply(*args)
    return torch.ops.lebm_kernels.free_energy_backward(*args)


def free_energy_second(*args: Any) -> Any:
    """The operator ``lebm_kernels::free_energy_second``; not differentiable."""
    if _transformed():
        return _FreeEnergySecond.apply(*args)
    return torch.ops.lebm_kernels.free_energy_second(*args)


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
    forward which gradients would be wanted, and the gradients are not differentiated.
    """
    if grad is None:
        return (None,) * 9
    *arguments, slope_y, slope_scale, slope_beta, state = ctx.saved_tensors
    needs = ctx.needs_input_grad[:6]
    rest = (slope_y, slope_scale, slope_beta, state, *arguments, ctx.tol, ctx.backend, *needs)
    if columns is None and (torch.is_grad_enabled() or _transformed()):
        found = _Gradients.apply(grad, *rest)
    else:
        found = _gradients(grad, *rest, columns=columns)
    wanted = iter(found)
    return (*(next(wanted) if n else None for n in needs), None, None, None)


def _gradients(
    grad: Tensor,
    slope_y: Tensor,
    slope_scale: Tensor,
    slope_beta: Tensor,
    state: Tensor,
    *rest: Any,
    columns: Callable[..., Any] | None = None,
) -> tuple[Tensor, ...]:
    """The gradients of sum(grad F) by those of the six arguments that are needed.

    ``rest`` is the arguments, tol, backend, and whether each argument's gradient is needed.
    """
    arguments, (tol, backend, *needs) = rest[:6], rest[6:]
    slopes = [slope_y, slope_scale, slope_beta]
    if columns is None and any(
        n and slope.dim() == 1 and slope.numel() == 0
        for n, slope in zip((needs[0], needs[3], needs[2]), slopes, strict=True)
    ):
        # The forward did not know that this gradient would be wanted (a transform hid it).
        _, *slopes, state = free_energy(*arguments, tol, backend, [needs[0], needs[3], needs[2]])

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
        outputs = (columns or free_energy_columns)(grad, state, *arguments, tol, backend, mask)
        for position, column in zip((1, 4, 5), outputs, strict=True):
            grads[position] = column
    return tuple(x for x, n in zip(grads, needs, strict=True) if n and x is not None)


class _Gradients(torch.autograd.Function):
    """:func:`_gradients`, differentiable once more."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return _gradients(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        grad, _, _, _, state, *arguments = inputs[:11]
        ctx.tol, ctx.backend, *ctx.needs = inputs[11:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad, state, *arguments)
        ctx.save_for_forward(grad, state, *arguments)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, state, *arguments = ctx.saved_tensors
        each = iter(cotangents)
        direction = [next(each) if n else None for n in ctx.needs]
        if all(x is None for x in direction):
            return (None,) * 19
        by_grad, *_ = needs = ctx.needs_input_grad
        mask = list(needs[5:11])
        value, *found = free_energy_second(
            grad, None, state, *direction, None, None, *arguments, ctx.tol, ctx.backend, mask
        )
        grads = (x if wanted else None for x, wanted in zip(found, mask, strict=True))
        return (value if by_grad else None, *4 * (None,), *grads, *8 * (None,))

    @staticmethod
    def jvp(ctx: Any, grad_dot: Tensor | None, *tangents: Any) -> tuple[Tensor, ...]:
        grad, state, *arguments = ctx.saved_tensors
        direction, mask = tangents[4:10], list(ctx.needs)
        _, *found = free_energy_second(
            grad, grad_dot, state, *direction, None, None, *arguments, ctx.tol, ctx.backend, mask
        )
        return tuple(x for x, wanted in zip(found, mask, strict=True) if wanted)


class _Rate(torch.autograd.Function):
    """F's rate along a direction: of state, the six arguments and their rates; differentiable."""

    generate_vmap_rule = True

    @staticmethod
    def forward(state: Tensor, *rest: Any) -> Tensor:
        *tensors, tol, backend = rest
        value: Tensor = free_energy_second(
            None, None, state, *tensors[6:], None, None, *tensors[:6], tol, backend, [False] * 6
        )[0]
        return value

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.tol, ctx.backend = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)  # without which vmap does not come as far as the refusal

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        state, *tensors = ctx.saved_tensors
        arguments, direction = tensors[:6], tensors[6:]
        mask, wanted = list(ctx.needs_input_grad[1:7]), list(ctx.needs_input_grad[7:13])
        grads: list[Tensor | None] = [None] * 12
        end = (ctx.tol, ctx.backend)
        if any(mask):
            _, *found = free_energy_second(
                grad, None, state, *direction, None, None, *arguments, *end, mask
            )
            grads[:6] = [x if w else None for x, w in zip(found, mask, strict=True)]
        if any(wanted):
            empty = grad.new_empty(0)
            found = iter(
                _Gradients.apply(grad, empty, empty, empty, state, *arguments, *end, wanted)
            )
            grads[6:] = [next(found) if w else None for w in wanted]
        return (None, *grads, None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError(_NO_FORWARD_TWICE)


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
    outputs = posterior(*tensors, *args[6:])
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


def _free_energy_second_vmap(info: Any, in_dims: Any, *args: Any) -> Any:
    tensors, dims, mask = list(args[:17]), list(in_dims[:17]), args[-1]
    shapes: list[Any] = [None] * 6
    for i, wanted in enumerate(mask):
        at = 11 + i
        # A rate of its own for every sample, a gradient of its own, and an F (by y, at the least).
        if tensors[at] is not None and (wanted or i == 0 or dims[3 + i] is not None):
            if dims[at] is None:
                tensors[at] = tensors[at].expand(info.batch_size, *tensors[at].shape)
                dims[at] = 0
            if wanted:
                shapes[i] = tensors[at].movedim(dims[at], 0).shape
    ranks = (1, 1, 2, *_RANKS, 2, 1, *_RANKS)
    lined_up = _line_up(tuple(tensors), tuple(dims), ranks)
    value, *outputs = free_energy_second(*lined_up, *args[17:])
    outputs = [
        x if shape is None else x.reshape(shape) for x, shape in zip(outputs, shapes, strict=True)
    ]
    return (value, *outputs), (0, *(None if shape is None else 0 for shape in shapes))


class _FreeEnergy(torch.autograd.Function):
    """``lebm_kernels::free_energy``."""

    forward = staticmethod(torch.ops.lebm_kernels.free_energy)
    vmap = staticmethod(_free_energy_vmap)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _save(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:6], *output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return differentiate(ctx, *grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        *arguments, _, _, _, state = ctx.saved_tensors
        value = _Rate.apply(state, *arguments, *tangents[:6], ctx.tol, ctx.backend)
        return value, None, None, None, None


def _refuse(ctx: Any, *_: Any) -> Any:
    raise RuntimeError(_NO_THIRD_ORDER)


def _final(operator: Any, vmap_rule: Any) -> Any:
    """An operator as torch.func wants it, without derivatives."""

    class Final(torch.autograd.Function):
        forward = staticmethod(operator)
        vmap = staticmethod(vmap_rule)
        backward = jvp = staticmethod(_refuse)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

    return Final


_FreeEnergyColumns = _final(torch.ops.lebm_kernels.free_energy_backward, _free_energy_backward_vmap)
_FreeEnergySecond = _final(torch.ops.lebm_kernels.free_energy_second, _free_energy_second_vmap)


def _save_posterior(ctx: Any, inputs: Any, output: Any) -> None:
    *arguments, ctx.tol, ctx.backend = inputs
    *_, index, state = output
    ctx.mark_non_differentiable(index, state)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*arguments, state)


def _differentiate_posterior(
    ctx: Any,
    by_value: Tensor | None,
    by_mean: Tensor | None,
    by_energy: Tensor | None,
    by_entropy: Tensor | None,
    *_: Any,
) -> tuple[Tensor | None, ...]:
    """The gradients of ``posterior``'s arguments.

    <E> = F + beta dF/dbeta and KL = -beta^2 dF/dbeta are F and its rate along beta; the mean's
    cotangent is a direction too. By beta itself, that would cancel when cold: <E> falls by Var(E),
    and KL rises by beta Var(E).
    """
    given = (by_value, by_mean, by_energy, by_entropy)
    if all(x is None for x in given):
        return (None,) * 8
    *arguments, state = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:6])
    beta = arguments[2].to(schemas.accumulation_dtype(arguments[0].dtype))
    cold = beta.square() == torch.inf
    finite = torch.where(cold, 0.0, beta)
    weight, beta_dot, spread = by_value, None, None
    if by_energy is not None:
        weight = by_energy if weight is None else weight + by_energy
        beta_dot, spread = by_energy * finite, torch.where(cold, 0.0, by_energy)
    if by_entropy is not None:
        falling = -by_entropy * finite
        beta_dot = falling * finite if beta_dot is None else beta_dot + falling * finite
        spread = falling if spread is None else spread + falling
    end = (*arguments, ctx.tol, ctx.backend)
    grads: list[Any] = [None] * 6
    mask = [n and i != 2 for i, n in enumerate(needs)]
    if any(mask):
        along_beta = (None, None, beta_dot, None, None, None, by_mean, None)
        _, *found = free_energy_second(None, weight, state, *along_beta, *end, mask)
        grads = [x if n else None for x, n in zip(found, mask, strict=True)]
    if needs[2]:
        along_energy = (*6 * (None,), by_mean, spread)
        mask = [False, False, True, False, False, False]
        grads[2] = free_energy_second(None, by_value, state, *along_energy, *end, mask)[3]
    if needs[4] and by_entropy is not None:
        weight = torch.where(cold, by_entropy, 0.0)
        grads[4] = grads[4] + _by_coldest_entropy(weight, state, *end)
    return (*grads, None, None)


def _by_coldest_entropy(weight: Tensor, state: Tensor, *rest: Any) -> Tensor:
    """The gradient by l of sum_b weight KL at beta = inf, KL = -log sum_n w over the minima."""
    *arguments, tol, backend = rest
    log_weight, latent_energy = arguments[4:]
    zero = torch.zeros_like(log_weight)
    arguments[5] = zero if latent_energy is None else latent_energy + zero
    mask = [False, False, True]
    *_, by_share = free_energy_columns(weight, state, *arguments, tol, backend, mask)
    each = weight.sum(-1, keepdim=True)
    each = each.sum_to_size((*log_weight.shape[:-1], 1)) * log_weight.to(each.dtype).softmax(-1)
    return each.to(log_weight.dtype) - by_share.sum_to_size(log_weight.shape)


class _Posterior(torch.autograd.Function):
    """``lebm_kernels::posterior``."""

    forward = staticmethod(torch.ops.lebm_kernels.posterior)
    vmap = staticmethod(_posterior_vmap)
    setup_context = staticmethod(_save_posterior)
    backward = staticmethod(_differentiate_posterior)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError(_NO_FORWARD_POSTERIOR)


def _register(name: str, vmap: Any, backward: Any, save: Any = None) -> None:
    qualified = f"lebm_kernels::{name}"
    torch.library.register_vmap(qualified, vmap, lib=schemas.library)
    torch.library.register_autograd(qualified, backward, setup_context=save, lib=schemas.library)


_register("free_energy", _free_energy_vmap, differentiate, _save)
_register("free_energy_backward", _free_energy_backward_vmap, _refuse)
_register("free_energy_second", _free_energy_second_vmap, _refuse)
_register("posterior", _posterior_vmap, _differentiate_posterior, _save_posterior)
_register("sample_latent", _sample_latent_vmap, _refuse)
