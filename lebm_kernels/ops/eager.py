"""The short way to a free energy, for small calls.

With few queries and latents, the call itself costs more than the kernel, and an operator registered
from Python costs most of that. Plain CPU tensors in eager mode do not need the operator: an
autograd.Function calls the extension. Everything else goes through the operator of
:mod:`lebm_kernels.ops.schemas`, which gives the same results to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lebm_kernels.arguments import TENSORS, Arguments
from lebm_kernels.backends import native
from lebm_kernels.backends.contract import RowWants
from lebm_kernels.backends.hindrances import raise_explained, too_large
from lebm_kernels.ops import derivatives
from lebm_kernels.ops.schemas import COLUMNS, SLOPES
from lebm_kernels.torch_internals import in_plain_eager_mode

_NO_SLOPES = RowWants()


def can_run() -> bool:
    """Whether the extension is there, and no mode or transform of PyTorch needs the operator."""
    return native.call_rows is not None and in_plain_eager_mode()


def free_energy(given: Arguments) -> Tensor:
    """F of arguments that :func:`lebm_kernels.arguments.plain` let through, ``[M]``."""
    try:
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given):
            value: Tensor = _FreeEnergy.apply(*given)
        else:
            value = native.call_rows(*given, None, *_NO_SLOPES)[0]
    except (RuntimeError, MemoryError) as error:
        raise_explained(error, lambda: too_large("native", given.y, given.decoded))
    return value


class _FreeEnergy(torch.autograd.Function):
    """F and its derivatives, as :func:`lebm_kernels.ops.derivatives.free_energy` has them."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        needs = ctx.needs_input_grad
        wanted = [needs[i] for i in SLOPES]
        value, state, *slopes = native.call_rows(*given, None, *RowWants(*wanted))
        kept = (x if w else None for x, w in zip(slopes, wanted, strict=False))
        ctx.save_for_backward(*given, *kept, state)
        ctx.set_materialize_grads(False)
        ctx.tol, ctx.backend = None, "native"
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if type(grad) is not Tensor or torch.is_grad_enabled() or not in_plain_eager_mode():
            return derivatives.differentiate(ctx, grad)[: len(TENSORS)]
        if any(ctx.needs_input_grad[i] for i in COLUMNS):
            return derivatives.differentiate(ctx, grad, columns=_columns)[: len(TENSORS)]
        return _weighted_slopes(ctx, grad)


def _weighted_slopes(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients where no latent-side one is wanted, in as few calls as possible."""
    saved = ctx.saved_tensors
    column = grad.unsqueeze(-1)
    grads: list[Tensor | None] = [None] * len(TENSORS)
    for i, slope in zip(SLOPES, saved[len(TENSORS) :], strict=False):
        if slope is not None:
            product = (column if slope.dim() == 2 else grad) * slope
            # One beta, or one scale, for all queries.
            product = product.sum(0) if saved[i].dim() < slope.dim() else product
            dtype = saved[i].dtype
            # The slope of beta is float64.
            grads[i] = product if product.dtype is dtype else product.to(dtype)
    return tuple(grads)


def _columns(grad: Tensor, state: Tensor, *rest: Any) -> Any:
    """The column pass, as :func:`lebm_kernels.ops.derivatives.free_energy_columns` calls it."""
    *given, tol, _, mask = rest
    try:
        return native.call_columns(grad, state, *given, tol, *mask)
    except (RuntimeError, MemoryError) as error:
        raise_explained(error, lambda: too_large("native", given[0], given[1]))
