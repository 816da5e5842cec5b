"""The operators' derivatives and batching, once for all backends.

F's gradients depend on F's arguments too. Their derivatives, and forward mode, are rates along a
direction, which ``lebm_kernels::free_energy_second`` computes:

    backward of the gradients    F_dot and the gradients of sum G F_dot, along the cotangents
    jvp of F                     F_dot
    jvp of the gradients         the gradients of sum (G F_dot + G_dot F)

All are linear in the rates, and can be differentiated by them: to differentiate a backward pass by
its cotangents is how torch.autograd.functional computes jvp and hvp.

The operator of :mod:`lebm_kernels.ops.schemas` serves eager mode and torch.compile. torch.func and
forward mode ignore what an operator registers, so they get an autograd.Function in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lebm_kernels.arguments import TENSORS, Arguments
from lebm_kernels.ops import schemas
from lebm_kernels.ops.schemas import COLUMNS, SLOPES
from lebm_kernels.ops.second_order import Direction
from lebm_kernels.torch_internals import (
    in_forward_mode,
    in_jit_trace,
    in_torch_func,
    replaced_library,
)

# How many tensor arguments there are, and how many rates a direction has.
_GIVEN, _RATES = len(TENSORS), len(Direction._fields)
_BETA = Arguments._fields.index("beta")
_LOG_WEIGHT = Arguments._fields.index("log_weight")

_NO_THIRD_ORDER = (
    "third derivatives of free_energy, and derivatives of its second derivatives by the factors of "
    "F, are only available with backend='reference'"
)
_NO_SECOND_ORDER_POSTERIOR = (
    "second derivatives of posterior, and derivatives of its gradients by their cotangents as "
    "torch.autograd.functional.jvp takes them, are only available with backend='reference'"
)
_NO_FORWARD_TWICE = (
    "forward mode over forward mode of free_energy, as in jacfwd(jacfwd) and, a third derivative, "
    "jacfwd(hessian), is only available with backend='reference'; every backend has the second "
    "derivatives of torch.func.hessian, jacrev(jacrev) and jacrev(jacfwd)"
)
_NO_FORWARD_POSTERIOR = (
    "forward-mode derivatives of posterior are only available with backend='reference'"
)

_NO_TRACE = (
    "torch.jit.trace cannot record free_energy: use torch.compile or torch.export, "
    "or backend='reference'"
)


def _transformed() -> bool:
    """Whether torch.func or forward mode may be active.

    Raises:
        NotImplementedError: they are, in a graph that is being compiled. The functions that handle
            them cannot be called there, and the operators alone would give forward-mode derivatives
            of zero.
    """
    found = in_forward_mode() or in_torch_func()
    if found and torch.compiler.is_compiling():
        raise NotImplementedError(
            "torch.func and forward-mode derivatives of free_energy and posterior cannot be "
            "compiled: take them outside of torch.compile, or with backend='reference'"
        )
    return found


def _differentiated() -> bool:
    """Whether what a backward pass computes may be differentiated again."""
    return torch.is_grad_enabled() or _transformed()


def free_energy(*args: Any) -> Any:
    """The operator ``lebm_kernels::free_energy``, differentiable in every way.

    Raises:
        NotImplementedError: torch.jit.trace is recording.
    """
    if not torch.compiler.is_compiling() and in_jit_trace():
        raise NotImplementedError(_NO_TRACE)  # PyTorch cannot record a list of booleans
    if _transformed():
        return _FreeEnergy.apply(*args)
    return torch.ops.lebm_kernels.free_energy(*args)


def posterior(*args: Any) -> Any:
    """The operator ``lebm_kernels::posterior``, differentiable once."""
    if _transformed():
        return _Posterior.apply(*args)
    return torch.ops.lebm_kernels.posterior(*args)


def free_energy_columns(*args: Any) -> Any:
    """The operator ``lebm_kernels::free_energy_backward``; not differentiable."""
    if _transformed():
        return _FreeEnergyColumns.apply(*args)
    return torch.ops.lebm_kernels.free_energy_backward(*args)


def free_energy_second(*args: Any) -> Any:
    """The operator ``lebm_kernels::free_energy_second``; not differentiable."""
    if _transformed():
        return _FreeEnergySecond.apply(*args)
    return torch.ops.lebm_kernels.free_energy_second(*args)


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    *given, ctx.tol, ctx.backend, _ = inputs
    _, *slopes, state = output
    ctx.mark_non_differentiable(*slopes, state)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*given, *slopes, state)


def differentiate(
    ctx: Any, grad: Tensor | None, *_: Any, columns: Callable[..., Any] | None = None
) -> tuple[Tensor | None, ...]:
    """The gradients of ``free_energy``'s arguments.

    ``columns`` replaces ``free_energy_columns``. Two conditions must hold: the forward pass knew
    which gradients are wanted, which a transform can hide, and the gradients are not
    differentiated.
    """
    if grad is None:
        return _absent(ctx)
    given, slopes, state = _unpack(ctx.saved_tensors)
    needs = ctx.needs_input_grad[:_GIVEN]
    rest = (*slopes, state, *given, ctx.tol, ctx.backend, *needs)
    if columns is None and _differentiated():
        found = _Gradients.apply(grad, *rest)
    else:
        found = _gradients(grad, *rest, columns=columns)
    return _padded(ctx, _spread(found, needs))


def _unpack(saved: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor], Tensor]:
    """The arguments, the slopes and the state of what :func:`_save` saved."""
    return saved[:_GIVEN], saved[_GIVEN:-1], saved[-1]


def _absent(ctx: Any) -> tuple[None, ...]:
    """No gradient for any input of the function."""
    return (None,) * len(ctx.needs_input_grad)


def _padded(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The gradients of the first inputs, and None for the rest, which are options."""
    return (*grads, *_absent(ctx)[len(grads) :])


def _spread(found: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    """The gradients found, each at the place of the argument that wants it."""
    each = iter(found)
    return [next(each) if w else None for w in wanted]


def _masked(found: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of the arguments that want theirs; an operator's others are empty."""
    return [x if w else None for x, w in zip(found, wanted, strict=True)]


def _gradients(
    grad: Tensor, *rest: Any, columns: Callable[..., Any] | None = None
) -> tuple[Tensor, ...]:
    """The gradients of sum(grad F) by the arguments that need theirs.

    ``rest`` is the slopes, the state, the arguments, tol, backend, and for each argument whether
    its gradient is needed.
    """
    slopes, rest = rest[: len(SLOPES)], rest[len(SLOPES) :]
    state, *given = rest[: 1 + _GIVEN]
    tol, backend, *needs = rest[1 + _GIVEN :]
    asked = schemas.with_slopes(needs)
    if columns is None and any(
        n and slope.dim() == 1 and slope.numel() == 0
        for n, slope in zip(asked, slopes, strict=True)
    ):
        # Because of a transform, the forward pass did not know that this gradient is wanted.
        _, *slopes, state = free_energy(*given, tol, backend, asked)

    def by_query(argument: Tensor, slope: Tensor) -> Tensor:
        weight = grad.unsqueeze(-1) if slope.dim() > grad.dim() else grad
        product = weight * slope
        if product.shape != argument.shape:
            product = product.sum_to_size(argument.shape)
        return product if product.dtype is argument.dtype else product.to(argument.dtype)

    grads: list[Tensor | None] = [None] * _GIVEN
    for i, slope in zip(SLOPES, slopes, strict=True):
        if needs[i]:
            grads[i] = by_query(given[i], slope)
    mask = [needs[i] for i in COLUMNS]
    if any(mask):
        outputs = (columns or free_energy_columns)(grad, state, *given, tol, backend, mask)
        for i, column in zip(COLUMNS, outputs, strict=True):
            grads[i] = column
    return tuple(x for x, n in zip(grads, needs, strict=True) if n and x is not None)


class _Gradients(torch.autograd.Function):
    """:func:`_gradients`, differentiable once more."""

    # The places of the state and of the arguments among the inputs, after the gradient and slopes.
    STATE = 1 + len(SLOPES)
    GIVEN = slice(STATE + 1, STATE + 1 + _GIVEN)

    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return _gradients(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        kept = (inputs[0], inputs[_Gradients.STATE], *inputs[_Gradients.GIVEN])
        ctx.tol, ctx.backend, *ctx.needs = inputs[_Gradients.GIVEN.stop :]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, state, *given = ctx.saved_tensors
        direction = _spread(cotangents, ctx.needs)  # type: ignore[arg-type]
        if all(x is None for x in direction):
            return _absent(ctx)
        mask = list(ctx.needs_input_grad[_Gradients.GIVEN])
        by_grad: Tensor | None = None
        if _differentiated():
            if ctx.needs_input_grad[0]:
                by_grad = _Rate.apply(state, *given, *direction, ctx.tol, ctx.backend)
            found = _second(grad, None, state, direction, given, ctx.tol, ctx.backend, mask)
        else:
            by_grad, *outputs = free_energy_second(
                grad, None, state, *Direction(*direction), *given, mask
            )
            found = _masked(outputs, mask)
        between = (None,) * (_Gradients.GIVEN.start - 1)
        return _padded(ctx, (by_grad, *between, *found))

    @staticmethod
    def jvp(ctx: Any, grad_dot: Tensor | None, *tangents: Any) -> tuple[Tensor, ...]:
        grad, state, *given = ctx.saved_tensors
        direction = (None, *tangents)[_Gradients.GIVEN]
        found = _second(
            grad, grad_dot, state, direction, given, ctx.tol, ctx.backend, list(ctx.needs)
        )
        return tuple(x for x in found if x is not None)


class _Last(torch.autograd.Function):
    """A tensor whose derivatives are refused, but only where they are taken.

    The double-backward trick differentiates by a cotangent alone what depends on tensors that
    require gradients too.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(_NO_THIRD_ORDER)

    jvp = backward


class _Second(torch.autograd.Function):
    """The wanted gradients of sum(G F_dot + G_dot F), differentiable in G_dot and the rates.

    They are linear in both. The Hessian of sum(G F) is symmetric, so that the gradient by the rates
    is its product with the cotangents, another call of this function.
    """

    # The places of G_dot, the rates and the arguments among the inputs.
    GRAD_DOT = 1
    RATES = slice(3, 3 + _GIVEN)
    GIVEN = slice(3 + _GIVEN, 3 + 2 * _GIVEN)

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, grad_dot: Tensor | None, state: Tensor, *rest: Any) -> Any:
        direction, given, mask = rest[:_GIVEN], rest[_GIVEN : 2 * _GIVEN], rest[2 * _GIVEN + 2 :]
        _, *found = free_energy_second(
            grad, grad_dot, state, *Direction(*direction), *given, list(mask)
        )
        return tuple(x for x, wanted in zip(found, mask, strict=True) if wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        kept = (inputs[0], inputs[2], *inputs[_Second.GIVEN])
        ctx.tol, ctx.backend, *ctx.mask = inputs[_Second.GIVEN.stop :]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, state, *given = ctx.saved_tensors
        direction = _spread(cotangents, ctx.mask)  # type: ignore[arg-type]
        if all(x is None for x in direction):
            return _absent(ctx)
        by_grad_dot = None
        if ctx.needs_input_grad[_Second.GRAD_DOT]:
            by_grad_dot = _Rate.apply(state, *given, *direction, ctx.tol, ctx.backend)
        mask = list(ctx.needs_input_grad[_Second.RATES])
        by_rates = _second(grad, None, state, direction, given, ctx.tol, ctx.backend, mask)
        return _padded(ctx, (None, by_grad_dot, None, *by_rates))

    @staticmethod
    def jvp(ctx: Any, _: None, grad_dot: Tensor | None, *tangents: Any) -> tuple[Tensor, ...]:
        grad, state, *given = ctx.saved_tensors
        rates = tangents[1 : 1 + _GIVEN]
        found = _second(grad, grad_dot, state, rates, given, ctx.tol, ctx.backend, ctx.mask)
        return tuple(x for x in found if x is not None)


def _second(
    grad: Tensor,
    grad_dot: Tensor | None,
    state: Tensor,
    direction: Sequence[Tensor | None],
    given: Sequence[Tensor | None],
    tol: float | None,
    backend: str,
    mask: list[bool],
) -> list[Tensor | None]:
    """The gradients of sum(G F_dot + G_dot F) by the arguments that ``mask`` names."""
    if not any(mask):
        return [None] * _GIVEN
    last = [None if x is None else _Last.apply(x) for x in given]
    found = _Second.apply(
        _Last.apply(grad), grad_dot, state, *direction, *last, tol, backend, *mask
    )
    return _spread(found, mask)


class _Rate(torch.autograd.Function):
    """F's rate along a direction: of the state, the arguments and their rates; differentiable."""

    generate_vmap_rule = True

    @staticmethod
    def forward(state: Tensor, *rest: Any) -> Tensor:
        given, rates = rest[:_GIVEN], rest[_GIVEN : 2 * _GIVEN]
        value: Tensor = free_energy_second(
            None, None, state, *Direction(*rates), *given, [False] * _GIVEN
        )[0]
        return value

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.tol, ctx.backend = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return _absent(ctx)
        state, *tensors = ctx.saved_tensors
        given, rates = tensors[:_GIVEN], tensors[_GIVEN:]
        _, *needs, _, _ = ctx.needs_input_grad
        by_given, by_rates = needs[:_GIVEN], needs[_GIVEN:]
        grads: list[Tensor | None] = [None] * len(needs)
        if any(by_given):
            grads[:_GIVEN] = _second(
                grad, None, state, rates, given, ctx.tol, ctx.backend, list(by_given)
            )
        if any(by_rates):
            slopes = [grad.new_empty(0)] * len(SLOPES)
            end = (ctx.tol, ctx.backend, *by_rates)
            found = _Gradients.apply(grad, *slopes, state, *given, *end)
            grads[_GIVEN:] = _spread(found, by_rates)
        return (None, *grads, None, None)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> Tensor:
        if any(x is not None for x in tangents[:_GIVEN]):
            raise RuntimeError(_NO_FORWARD_TWICE)
        state, *tensors = ctx.saved_tensors
        given, rates = tensors[:_GIVEN], tangents[_GIVEN : 2 * _GIVEN]
        value: Tensor = _Rate.apply(state, *given, *rates, ctx.tol, ctx.backend)
        return value


# How many dimensions are not leading ones: of each argument, of each rate, of G and of a state.
_RANKS = tuple(len(row.dims) for row in TENSORS)
_RATE_RANKS = (*_RANKS, 2, 1, 1)
_GRAD_RANK, _STATE_RANK = 1, 2


def _line_up(
    tensors: tuple[Tensor | None, ...], in_dims: tuple[int | None, ...], ranks: tuple[int, ...]
) -> list[Tensor | None]:
    """Make the mapped dimension the first leading one, at the same place in every mapped tensor."""
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
    # An output that was not asked for is empty, and not mapped.
    return tuple(0 if x.dim() >= num_leading else None for x in outputs)


def _free_energy_vmap(info: Any, in_dims: Any, *args: Any) -> Any:
    tensors = _line_up(args[:_GIVEN], in_dims[:_GIVEN], _RANKS)
    outputs = free_energy(*tensors, *args[_GIVEN:])
    return outputs, _out_dims(outputs, outputs[0].dim())


def _posterior_vmap(info: Any, in_dims: Any, *args: Any) -> Any:
    tensors = _line_up(args[:_GIVEN], in_dims[:_GIVEN], _RANKS)
    outputs = posterior(*tensors, *args[_GIVEN:])
    return outputs, _out_dims(outputs, outputs[0].dim())


def _sample_latent_vmap(info: Any, in_dims: Any, *args: Any) -> Any:
    if info.randomness != "different":
        raise RuntimeError(
            "vmap of sample_latent is only available with randomness='different', "
            f"got {info.randomness!r}"
        )
    tensors = _line_up(args[:_GIVEN], in_dims[:_GIVEN], _RANKS)
    return torch.ops.lebm_kernels.sample_latent(*tensors, *args[_GIVEN:]), 0


def _own_each(
    info: Any, tensors: list[Any], dims: list[Any], positions: Sequence[int], wanted: Sequence[bool]
) -> list[torch.Size | None]:
    """Expand the arguments whose gradients are wanted to one per sample; return gradients' shapes.

    Samples that shared an argument would get the sum of their gradients.
    """
    shapes: list[torch.Size | None] = []
    for at, w in zip(positions, wanted, strict=True):
        if w and dims[at] is None:
            tensors[at] = tensors[at].expand(info.batch_size, *tensors[at].shape)
            dims[at] = 0
        shapes.append(tensors[at].movedim(dims[at], 0).shape if w else None)
    return shapes


def _reshaped(
    outputs: Sequence[Tensor], shapes: Sequence[torch.Size | None]
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """The gradients in their shapes, and which are mapped."""
    pairs = list(zip(outputs, shapes, strict=True))
    return (
        tuple(x if shape is None else x.reshape(shape) for x, shape in pairs),
        tuple(None if shape is None else 0 for shape in shapes),
    )


def _free_energy_backward_vmap(info: Any, in_dims: Any, *args: Any) -> Any:
    end = 2 + _GIVEN
    tensors, dims, mask = list(args[:end]), list(in_dims[:end]), args[-1]
    shapes = _own_each(info, tensors, dims, [2 + i for i in COLUMNS], mask)
    ranks = (_GRAD_RANK, _STATE_RANK, *_RANKS)
    lined_up = _line_up(tuple(tensors), tuple(dims), ranks)
    return _reshaped(free_energy_columns(*lined_up, *args[end:]), shapes)


def _free_energy_second_vmap(info: Any, in_dims: Any, *args: Any) -> Any:
    first, end = 3 + _RATES, 3 + _RATES + _GIVEN
    tensors, dims, mask = list(args[:end]), list(in_dims[:end]), args[-1]
    # y is mapped so that F_dot is; an argument is where its rate is.
    own = [
        tensors[first + i] is not None and (wanted or i == 0 or dims[3 + i] is not None)
        for i, wanted in enumerate(mask)
    ]
    found = _own_each(info, tensors, dims, range(first, end), own)
    shapes = [shape if wanted else None for shape, wanted in zip(found, mask, strict=True)]
    ranks = (_GRAD_RANK, _GRAD_RANK, _STATE_RANK, *_RATE_RANKS, *_RANKS)
    lined_up = _line_up(tuple(tensors), tuple(dims), ranks)
    value, *outputs = free_energy_second(*lined_up, *args[end:])
    gradients, out_dims = _reshaped(outputs, shapes)
    return (value, *gradients), (0, *out_dims)


class _FreeEnergy(torch.autograd.Function):
    """``lebm_kernels::free_energy``."""

    forward = staticmethod(torch.ops.lebm_kernels.free_energy)
    vmap = staticmethod(_free_energy_vmap)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _save(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:_GIVEN], *output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return differentiate(ctx, *grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        given, slopes, state = _unpack(ctx.saved_tensors)
        value = _Rate.apply(state, *given, *tangents[:_GIVEN], ctx.tol, ctx.backend)
        return (value, *len(slopes) * (None,), None)


def _refuse(ctx: Any, *_: Any) -> Any:
    # Only the gradients of posterior call an operator where PyTorch may differentiate it.
    raise RuntimeError(_NO_SECOND_ORDER_POSTERIOR)


def _final(operator: Any, vmap_rule: Any) -> Any:
    """An operator for torch.func, without derivatives."""

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
    *given, ctx.tol, ctx.backend = inputs
    *_, index, state = output
    ctx.mark_non_differentiable(index, state)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*given, state)


def _differentiate_posterior(
    ctx: Any,
    by_value: Tensor | None,
    by_mean: Tensor | None,
    by_energy: Tensor | None,
    by_entropy: Tensor | None,
    *_: Any,
) -> tuple[Tensor | None, ...]:
    """The gradients of ``posterior``'s arguments.

    <E> = F + dF/dlog beta and KL = -beta dF/dlog beta are made of F and its rate along log beta;
    the mean's cotangent is a direction too.
    """
    if all(x is None for x in (by_value, by_mean, by_energy, by_entropy)):
        return _absent(ctx)
    *given, state = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:_GIVEN])
    cold = given[_BETA] == torch.inf
    weight = by_value
    if by_energy is not None:
        weight = by_energy if weight is None else weight + by_energy
    along = Direction(mean=by_mean, energy=by_energy, relative_entropy=by_entropy)
    grads: list[Any] = [None] * _GIVEN
    mask = [n and i != _BETA for i, n in enumerate(needs)]
    if any(mask):
        _, *found = free_energy_second(None, weight, state, *along, *given, mask)
        grads = _masked(found, mask)
    if needs[_BETA]:
        mask = [i == _BETA for i in range(_GIVEN)]
        _, *found = free_energy_second(None, by_value, state, *along, *given, mask)
        grads[_BETA] = found[_BETA]
    if needs[_LOG_WEIGHT] and by_entropy is not None:
        weight = torch.where(cold, by_entropy, 0.0)
        by_minima = _by_minimum_entropy(weight, state, Arguments(*given), ctx.tol, ctx.backend)
        grads[_LOG_WEIGHT] = grads[_LOG_WEIGHT] + by_minima
    return _padded(ctx, grads)


def _by_minimum_entropy(
    weight: Tensor, state: Tensor, given: Arguments, tol: float | None, backend: str
) -> Tensor:
    """The gradient by l of sum_b weight KL at beta = inf: KL = -log sum_n w over the minima."""
    log_weight, latent_energy = given.log_weight, given.latent_energy
    assert log_weight is not None
    zero = torch.zeros_like(log_weight)
    # sum_b weight p is the gradient by a latent energy: pass one, of l's shape.
    energy = zero if latent_energy is None else latent_energy + zero
    mask = [TENSORS[i].name == "latent_energy" for i in COLUMNS]
    found = free_energy_columns(
        weight, state, *given._replace(latent_energy=energy), tol, backend, mask
    )
    each = weight.sum(-1, keepdim=True)
    each = each.sum_to_size((*log_weight.shape[:-1], 1)) * log_weight.to(each.dtype).softmax(-1)
    by_weights: Tensor = found[mask.index(True)]
    return each.to(log_weight.dtype) - by_weights.sum_to_size(log_weight.shape)


class _Posterior(torch.autograd.Function):
    """``lebm_kernels::posterior``."""

    forward = staticmethod(torch.ops.lebm_kernels.posterior)
    vmap = staticmethod(_posterior_vmap)
    setup_context = staticmethod(_save_posterior)
    backward = staticmethod(_differentiate_posterior)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError(_NO_FORWARD_POSTERIOR)


_LIBRARY = replaced_library("derivatives")


def _register(name: str, vmap: Any, backward: Any, save: Any = None) -> None:
    qualified = f"lebm_kernels::{name}"
    torch.library.register_vmap(qualified, vmap, lib=_LIBRARY)
    torch.library.register_autograd(qualified, backward, setup_context=save, lib=_LIBRARY)


_register("free_energy", _free_energy_vmap, differentiate, _save)
_register("free_energy_backward", _free_energy_backward_vmap, _refuse)
_register("free_energy_second", _free_energy_second_vmap, _refuse)
_register("posterior", _posterior_vmap, _differentiate_posterior, _save_posterior)
_register("sample_latent", _sample_latent_vmap, _refuse)
