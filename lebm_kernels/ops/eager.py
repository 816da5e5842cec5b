"""The shortest way to a free energy, for the calls of which most are made.

At a few queries and latents a call takes as long as its way to the kernel does, and through an
operator registered from Python that is long. Plain tensors in eager mode, one grid and the native
backend on CPU need none of it: an autograd.Function calls the extension. Whatever is out of the
ordinary, an error included, goes through :mod:`lebm_kernels.functional` and the operator, which
give the same results to the bit.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lebm_kernels.backends import native
from lebm_kernels.backends.hindrances import is_out_of_memory, too_large
from lebm_kernels.ops import derivatives

_PLAIN = (Tensor, torch.nn.Parameter)


def _fits(x: float | Tensor, dtype: torch.dtype) -> TypeGuard[Tensor]:
    return (
        isinstance(x, Tensor)
        and type(x) in _PLAIN
        and x.dtype is dtype
        and x.is_cpu
        and x.layout is torch.strided
    )


class _Direct(torch.autograd.Function):
    """As ``derivatives.free_energy``, for what :func:`free_energy` lets through."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        y, _, beta, scale, _, _ = ctx.needs_input_grad
        value, state, *slopes = native.call_rows(*arguments, None, y, scale, beta, False, False)
        wanted = (x if w else None for x, w in zip(slopes, (y, scale, beta), strict=False))
        ctx.save_for_backward(*arguments, *wanted, state)
        ctx.set_materialize_grads(False)
        ctx.tol, ctx.backend = None, "native"
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if type(grad) is not Tensor or torch.is_grad_enabled() or not unattended():
            return derivatives.differentiate(ctx, grad)[:6]
        _, by_decoded, _, _, by_log_weight, by_latent_energy = ctx.needs_input_grad
        if by_decoded or by_log_weight or by_latent_energy:
            return derivatives.differentiate(ctx, grad, columns=_columns)[:6]
        return _weighted_slopes(ctx, grad)


def _weighted_slopes(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """As ``derivatives.differentiate`` where no latent-side gradient is wanted, in as few calls."""
    _, _, beta, scale, _, _, slope_y, slope_scale, slope_beta, _ = ctx.saved_tensors
    column = grad.unsqueeze(-1)
    by_y = by_beta = by_scale = None
    if slope_y is not None:
        by_y = column * slope_y
    if slope_beta is not None:
        by_beta = grad * slope_beta
        if beta.dim() == 0:
            by_beta = by_beta.sum()
    if slope_scale is not None:
        by_scale = column * slope_scale
        if scale.dim() == 1:
            by_scale = by_scale.sum(0)
    return by_y, None, by_beta, by_scale, None, None


def _columns(grad: Tensor, state: Tensor, *rest: Any) -> Any:
    """As ``derivatives.free_energy_columns``."""
    *arguments, tol, _, mask = rest
    try:
        return native.call_columns(grad, state, *arguments, tol, *mask)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(too_large("native", *arguments[:2])) from error


def unattended() -> bool:
    """Whether no mode or transform of PyTorch's waits for the operator."""
    return not (
        torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._get_tracing_state()
        or torch.is_autocast_enabled("cpu")
    )


def free_energy(
    y: Tensor,
    decoded: Tensor,
    beta: float | Tensor,
    scale: Tensor | None,
    log_weight: Tensor | None,
    latent_energy: Tensor | None,
) -> Tensor | None:
    """F of plain arguments, or None for any others.

    That is y ``[M, D]``, decoded ``[N, D]``, beta a number or ``[]`` or ``[M]``, scale ``[D]`` or
    ``[M, D]``, log_weight and latent_energy ``[N]``: dense, on the CPU, all float32 or all float64.
    """
    dtype = y.dtype if type(y) in _PLAIN else None
    if (dtype is not torch.float32 and dtype is not torch.float64) or not unattended():
        return None
    if not isinstance(beta, Tensor):
        # A number of another type, or out of range, is for the checks of the longer way.
        if type(beta) not in (float, int) or not (0 <= beta < 1e38 or beta == torch.inf):
            return None
        beta = torch.scalar_tensor(beta, dtype=dtype)
    if y.dim() != 2 or not _fits(decoded, dtype) or not _fits(beta, dtype) or decoded.dim() != 2:
        return None
    try:
        (M, D), (N, width) = y.shape, decoded.shape
        if width != D or N == 0 or D == 0 or (beta.dim() > 0 and beta.shape != (M,)):
            return None
        if scale is not None and not (_fits(scale, dtype) and scale.shape in ((D,), (M, D))):
            return None
        for row in (log_weight, latent_energy):
            if row is not None and not (_fits(row, dtype) and row.shape == (N,)):
                return None
    except RuntimeError:
        # A nested tensor has no shape. To look for one first would cost every call.
        return None
    if not y.is_cpu or y.layout is not torch.strided or native.call_rows is None:
        return None
    arguments = (y, decoded, beta, scale, log_weight, latent_energy)
    try:
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in arguments):
            value: Tensor = _Direct.apply(*arguments)
        else:
            value = native.call_rows(*arguments, None, False, False, False, False, False)[0]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(too_large("native", y, decoded)) from error
    return value
