"""Every private name of PyTorch that the package uses, in one file.

PyTorch may change them without notice: a new version is tried here first.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._library.custom_ops import get_library_allowing_overwrite
from torch.autograd import forward_ad


def in_forward_mode() -> bool:
    """Whether a level of forward-mode differentiation is active."""
    return forward_ad._current_level >= 0


def in_torch_func() -> bool:
    """Whether a transform of torch.func is active.

    torch.compile runs it while it traces a graph and takes the result as a constant: PyTorch guards
    the graph by its transforms.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None


# What torch.compiler.assume_constant_result does. That function would import the whole compiler.
in_torch_func._dynamo_marked_constant = True  # type: ignore[attr-defined]


def in_jit_trace() -> bool:
    """Whether torch.jit.trace is recording."""
    return torch._C._get_tracing_state() is not None


def in_plain_eager_mode() -> bool:
    """Whether an operator may be bypassed: no tracing, transform, mode or autocast is active."""
    return not (
        torch.compiler.is_compiling()
        or in_forward_mode()
        or in_torch_func()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._get_tracing_state()
        or torch.is_autocast_enabled("cpu")
    )


def is_traced_tensor(kind: type) -> bool:
    """Whether it is one of the tensor classes that PyTorch itself traces with, as FakeTensor is."""
    return kind.__module__.startswith("torch._subclasses.")


def has_cuda_kernel(operator: str) -> bool:
    """Whether an implementation for CUDA is registered of ``namespace::operator``."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(operator, "CUDA")


def softmax_backward(grad: Tensor, p: Tensor) -> Tensor:
    """The gradient of the exponents of p = torch.softmax(exponents, -1): p (grad - sum p grad)."""
    return torch._softmax_backward_data(grad, p, -1, p.dtype)


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """What scaled_dot_product_attention returns, and the log-sum-exp that its backward keeps.

    The tensors are ``[batch, heads, rows, dimensions]``, on the CPU or on a GPU; the log-sum-exp is
    ``[batch, heads, rows]``, on GPUs with more rows.
    """
    if query.is_cpu:
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, scale=scale
        )
    else:
        found = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, None, True, scale=scale
        )
    return found[:2]


def schema_of(operator: str) -> str | None:
    """The schema of ``namespace::operator``, or None where it is not defined."""
    namespace, name = operator.split("::")
    packet = getattr(getattr(torch.ops, namespace), name, None)
    return None if packet is None else str(packet.default._schema)


def replaced_library(part: str) -> torch.library.Library:
    """An empty library of the namespace ``lebm_kernels``, in place of the last one of that name.

    PyTorch keeps it for the module that registers again, when that is imported a second time.
    """
    return get_library_allowing_overwrite("lebm_kernels", part)
