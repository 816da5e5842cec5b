"""Soft minima of given energies by the C++ extension, in plain eager mode on the CPU.

The extension reads contiguous energies ``[..., N, ...]`` where they lie. The gradient of softmin in
the energies is softargmin, computed anew in the backward: that takes less time than keeping it.
Gradients in beta and the log-weights, and derivatives beyond the first, come from the formulas of
:mod:`lebm_kernels.soft_minimum`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lebm_kernels import reference, soft_minimum
from lebm_kernels.arguments import PlainEnergy
from lebm_kernels.backends import native
from lebm_kernels.torch_internals import in_plain_eager_mode


def can_run() -> bool:
    """Whether the extension is there, and no mode or transform of PyTorch is active."""
    return native.call_softmin is not None and in_plain_eager_mode()


def laid_out(energy: Tensor, beta: Tensor, log_weight: Tensor | None) -> PlainEnergy:
    """Checked arguments, N last in the energies, as the extension takes them."""
    energy, beta = reference.broadcast(energy, beta, log_weight)
    if log_weight is not None:
        shape = energy.shape if log_weight.dim() > 1 else log_weight.shape
        log_weight = log_weight.expand(shape).contiguous()
    return PlainEnergy(energy.contiguous(), beta.contiguous(), log_weight, 0.0, energy.dim() - 1)


def softmin(given: PlainEnergy, largest: bool) -> Tensor:
    """The soft minimum, or the soft maximum where ``largest``."""
    energy, betas, log_weight, beta, dim = given
    value: Tensor
    if _is_tracked(energy, betas, log_weight):
        value = _Softmin.apply(*given, largest)
    else:
        value = native.call_softmin(energy, dim, beta, betas, log_weight, largest)
    return value


def softargmin(given: PlainEnergy, largest: bool) -> Tensor:
    """The distribution of the soft minimum, or of the maximum, in the shape of the energies."""
    energy, betas, log_weight, beta, dim = given
    p: Tensor
    if _is_tracked(energy, betas, log_weight):
        p = _Softargmin.apply(*given, largest)
    else:
        p = native.call_softargmin(energy, dim, beta, betas, log_weight, largest, None)
    return p


def _is_tracked(energy: Tensor, betas: Tensor | None, log_weight: Tensor | None) -> bool:
    return torch.is_grad_enabled() and (
        energy.requires_grad
        or (betas is not None and betas.requires_grad)
        or (log_weight is not None and log_weight.requires_grad)
    )


class _Softmin(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        energy: Tensor,
        betas: Tensor | None,
        log_weight: Tensor | None,
        beta: float,
        dim: int,
        largest: bool,
    ) -> Tensor:
        ctx.save_for_backward(energy, betas, log_weight)
        ctx.others = beta, dim, largest
        value: Tensor = native.call_softmin(energy, dim, beta, betas, log_weight, largest)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        energy, betas, log_weight = ctx.saved_tensors
        beta, dim, largest = ctx.others
        if _needs_formulas(ctx, grad):
            return _by_formulas(soft_minimum.differentiate_softmin, ctx, grad)
        grad = grad.contiguous()
        slope = native.call_softargmin(energy, dim, beta, betas, log_weight, largest, grad)
        return slope, None, None, None, None, None


class _Softargmin(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        energy: Tensor,
        betas: Tensor | None,
        log_weight: Tensor | None,
        beta: float,
        dim: int,
        largest: bool,
    ) -> Tensor:
        p: Tensor = native.call_softargmin(energy, dim, beta, betas, log_weight, largest, None)
        ctx.save_for_backward(energy, betas, log_weight, p)
        ctx.others = beta, dim, largest
        return p

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, betas, _, p = ctx.saved_tensors
        beta, dim, largest = ctx.others
        if _needs_formulas(ctx, grad):
            return _by_formulas(soft_minimum.differentiate_softargmin, ctx, grad)
        slope = native.call_softargmin_slopes(p, grad.contiguous(), dim, beta, betas, largest)
        return slope, None, None, None, None, None


def _needs_formulas(ctx: Any, grad: Tensor) -> bool:
    """Whether the backward must use the formulas.

    It must where a gradient in beta or the log-weights is wanted, where the backward itself is
    differentiated, and under a mode or a transform of PyTorch.
    """
    others = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
    return (
        others or torch.is_grad_enabled() or type(grad) is not Tensor or not in_plain_eager_mode()
    )


def _by_formulas(differentiate: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of one of the functions by plain PyTorch."""
    energy, betas, log_weight, *p = ctx.saved_tensors
    beta, dim, largest = ctx.others
    if betas is None:
        betas = torch.full((), beta, dtype=energy.dtype, device=energy.device)
    sign = -1 if largest else 1
    needed = ctx.needs_input_grad[:3]
    slopes = differentiate(energy, betas, log_weight, *p, dim, sign, needed, grad)
    return *slopes, None, None, None
