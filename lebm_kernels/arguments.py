"""The tensor arguments of a free energy, and every check of the public functions' arguments.

:data:`TENSORS` is the one table of the tensor arguments: the operators' schemas, their derivatives,
the broadcasting rules and the checks are derived from it. A new argument is one row there and one
field of :class:`Arguments`.

The checks come in two speeds. :func:`plain` recognises the common case, one grid of dense CPU
tensors of one dtype, in a few microseconds. :func:`check` handles everything else, and names the
argument that is wrong.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lebm_kernels.checks import MOST, check_generator, is_integer, is_real, number
from lebm_kernels.torch_internals import is_traced_tensor


class Arguments(NamedTuple):
    """The tensor arguments of a free energy in the caller's own shapes, leading dimensions and all.

    A backend gets them in canonical form, as a :class:`lebm_kernels.backends.contract.Problem`.
    """

    y: Tensor
    decoded: Tensor
    beta: Tensor
    scale: Tensor | None
    log_weight: Tensor | None
    latent_energy: Tensor | None


class TensorArgument(NamedTuple):
    """One row of :data:`TENSORS`.

    Attributes:
        name: its name in Python, in the schemas and in C++.
        dims: its own dimensions: ``M`` queries, ``N`` latents, ``D`` numbers. Those before them
            are leading dimensions, which broadcast.
        form: its shape in the words of an error message.
        optional: whether it may be None.
    """

    name: str
    dims: tuple[str, ...]
    form: str
    optional: bool

    @property
    def of_queries(self) -> bool:
        """Whether it belongs to the queries, and so broadcasts with F, or to the latents."""
        return self.dims[0] == "M"


TENSORS = (
    TensorArgument("y", ("M", "D"), "[..., M, D]", optional=False),
    TensorArgument("decoded", ("N", "D"), "[..., N, D]", optional=False),
    TensorArgument("beta", ("M",), "[] or [..., M]", optional=False),
    TensorArgument("scale", ("M", "D"), "[D] or [..., M, D]", optional=True),
    TensorArgument("log_weight", ("N",), "[..., N]", optional=True),
    TensorArgument("latent_energy", ("N",), "[..., N]", optional=True),
)
"""The tensor arguments, in the order of :class:`Arguments`."""

_QUERY_SIDE = tuple((i, row) for i, row in enumerate(TENSORS) if row.of_queries)
_LATENT_SIDE = tuple((i, row) for i, row in enumerate(TENSORS) if not row.of_queries)
_OPTIONAL = tuple(row for row in TENSORS if row.optional)

# What autocast casts to float32, and what F can be computed from.
_CAST = (torch.float16, torch.bfloat16, torch.float32)
_DTYPES = (*_CAST, torch.float64)

_PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a free energy of ``dtype`` inputs is computed and returned in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast_dtype(dtype: torch.dtype, device_type: str) -> torch.dtype:
    """The dtype to compare in place of ``dtype``: float32 for all that autocast may cast."""
    cast = dtype in _CAST and torch.is_autocast_enabled(device_type)
    return torch.float32 if cast else dtype


def value_shape(given: Arguments) -> torch.Size:
    """The shape of F: ``[..., M]`` with every argument's leading dimensions broadcast."""
    shapes: list[tuple[int, ...]] = []
    for i, row in _QUERY_SIDE:
        x = given[i]
        if x is not None:
            shapes.append(x.shape[: x.dim() - len(row.dims) + 1])
    for i, row in _LATENT_SIDE:
        x = given[i]
        if x is not None and x.dim() > len(row.dims):
            shapes.append((*x.shape[: -len(row.dims)], 1))
    return torch.broadcast_shapes(*shapes)


@functools.lru_cache(maxsize=64)
def _beta_tensor(beta: float, dtype: torch.dtype, inference: bool) -> Tensor:
    """A kept tensor of one number, never to be written to: making it takes a tenth of a call.

    Autograd cannot save a tensor that was made in inference mode: each mode has its own.
    """
    return torch.scalar_tensor(beta, dtype=dtype, device="cpu")


def plain(
    y: Tensor,
    decoded: Tensor,
    beta: float | Tensor,
    scale: Tensor | None,
    log_weight: Tensor | None,
    latent_energy: Tensor | None,
) -> Arguments | None:
    """The arguments where they are the common case and valid, else None.

    The common case: y ``[M, D]``, decoded ``[N, D]``, beta a number or ``[]`` or ``[M]``, scale
    ``[D]`` or ``[M, D]``, log_weight and latent_energy ``[N]``; all dense, on the CPU, and of one
    dtype, float32 or float64.
    """
    dtype = y.dtype if type(y) in _PLAIN_TYPES else None
    if (dtype is not torch.float32 and dtype is not torch.float64) or decoded is None:
        return None
    if not isinstance(beta, Tensor):
        if type(beta) not in (float, int) or not (0 <= beta < 1e38 or beta == torch.inf):
            return None
        beta = _beta_tensor(float(beta), dtype, torch.is_inference_mode_enabled())
    given = Arguments(y, decoded, beta, scale, log_weight, latent_energy)
    for x in given:
        if x is not None and not (
            type(x) in _PLAIN_TYPES and x.dtype is dtype and x.is_cpu and x.layout is torch.strided
        ):
            return None
    try:
        if y.dim() != 2 or decoded.dim() != 2:
            return None
        (M, D), (N, width) = y.shape, decoded.shape
        if width != D or N == 0 or D == 0 or (beta.dim() > 0 and beta.shape != (M,)):
            return None
        if scale is not None and scale.shape != (D,) and scale.shape != (M, D):
            return None
        for row in (log_weight, latent_energy):
            if row is not None and row.shape != (N,):
                return None
    except RuntimeError:
        # A nested tensor has no shape. Looking for one first would cost every call.
        return None
    return given


def check(
    y: Tensor,
    decoded: Tensor,
    beta: float | Tensor,
    scale: Tensor | None,
    log_weight: Tensor | None,
    latent_energy: Tensor | None,
) -> Arguments:
    """The arguments of a free energy, cast as autocast asks, with beta as a tensor.

    Raises:
        TypeError: an argument is not a dense tensor, or has the wrong dtype.
        ValueError: a shape, device or value does not fit; the message names the argument.
    """
    _check_tensor("y", y, "[..., M, D]", 2)
    cast = _autocast(y, decoded, beta, scale, log_weight, latent_energy)
    y = _check_tensor("y", cast[0], "[..., M, D]", 2)
    if y.dtype not in _DTYPES:
        raise TypeError(f"y must be float16, bfloat16, float32 or float64, got {y.dtype}")
    decoded = _check_tensor("decoded", cast[1], "[..., N, D]", 2)
    _check_sizes(y, decoded)
    sizes = {"N": (decoded.shape[-2], "decoded"), "D": (y.shape[-1], "y")}
    optional = [(row, x) for row, x in zip(_OPTIONAL, cast[3:], strict=True) if x is not None]
    for row, x in optional:
        _check_tensor(row.name, x, row.form, 1)
        size, owner = sizes[row.dims[-1]]
        if x.shape[-1] != size:
            raise ValueError(
                f"{row.name} must be {row.form} with {row.dims[-1]} = {size} as {owner} has, "
                f"got shape {list(x.shape)}"
            )
    for row, x in ((TENSORS[1], decoded), *optional):
        if x.dtype != y.dtype:
            raise TypeError(f"{row.name} must be {y.dtype} as y is, got {x.dtype}")
        if x.device != y.device:
            raise ValueError(f"{row.name} must be on {y.device} as y is, got {x.device}")
    beta = _check_beta(cast[2], accumulation_dtype(y.dtype), "y", y)
    checked = Arguments(y, decoded, beta, *cast[3:])
    _check_leading(checked)
    return checked


def check_tol(tol: float | None) -> float | None:
    """``tol`` as the operators take it."""
    if tol is None:
        return None
    if not is_real(tol):
        raise TypeError(f"tol must be None or a number in [0, 1), got {type(tol).__name__}")
    if not 0 <= tol < 1:
        raise ValueError(f"tol must be None or a number in [0, 1), got {tol!r}")
    return float(tol)


def check_draws(num_samples: Any, generator: torch.Generator | None, device: torch.device) -> int:
    """``num_samples`` as the operator takes it; the generator must be on ``device``."""
    if not is_integer(num_samples):
        raise TypeError(f"num_samples must be an integer >= 0, got {type(num_samples).__name__}")
    if num_samples < 0:
        raise ValueError(f"num_samples must be an integer >= 0, got {num_samples}")
    if num_samples > MOST:
        raise ValueError(f"num_samples must be at most 2^40, got {num_samples}")
    if not isinstance(num_samples, int):  # a NumPy integer
        num_samples = int(num_samples)
    check_generator("generator", generator)
    if generator is not None and generator.device.type != device.type:
        raise ValueError(f"generator must be on {device} as y is, got {generator.device}")
    return num_samples


def check_energy(
    energy: Tensor, beta: float | Tensor, dim: int, log_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``energy`` with ``dim`` moved last, beta and ``log_weight``, in the accumulation dtype."""
    _check_tensor("energy", energy, "[..., N, ...]", 1)
    if energy.dtype not in _DTYPES:
        raise TypeError(f"energy must be float16, bfloat16, float32 or float64, got {energy.dtype}")
    if not is_integer(dim):
        raise TypeError(f"dim must be an integer, one dimension of energy, got {dim!r}")
    if not -energy.dim() <= dim < energy.dim():
        raise ValueError(f"dim must index energy {list(energy.shape)}, got {dim}")
    if energy.shape[dim] == 0:
        raise ValueError(f"energy must have at least one latent in dim {dim}, got none")
    energy = energy.movedim(dim, -1)
    dtype = accumulation_dtype(energy.dtype)
    beta = _check_beta(beta, dtype, "energy", energy)
    shape = _broadcast("beta", beta, "[...]", "[...]", beta.shape, energy.shape[:-1], "energy")
    if log_weight is not None:
        _check_tensor("log_weight", log_weight, "[..., N]", 1)
        if log_weight.dtype != energy.dtype:
            raise TypeError(f"log_weight must be {energy.dtype}, got {log_weight.dtype}")
        if log_weight.device != energy.device:
            raise ValueError(
                f"log_weight must be on {energy.device} as energy is, got {log_weight.device}"
            )
        if log_weight.shape[-1] != energy.shape[-1]:
            raise ValueError(
                f"log_weight must be [..., N] with N = {energy.shape[-1]}, "
                f"got shape {list(log_weight.shape)}"
            )
        leading = log_weight.shape[:-1]
        _broadcast("log_weight", log_weight, "[..., N]", "[...]", leading, shape, "energy, beta")
        log_weight = log_weight.to(dtype)
    return energy.to(dtype), beta.to(dtype), log_weight


class PlainEnergy(NamedTuple):
    """The arguments of a soft minimum as the extension takes them: dense, contiguous, of one dtype.

    Attributes:
        energy: ``[..., N, ...]``.
        betas: ``[]``, or one for each result; None where beta is a number.
        log_weight: ``[N]``, or ``[..., N]`` with a row for each result, in their order.
        beta: the number, meaningless beside ``betas``.
        dim: the place of N, not negative.
    """

    energy: Tensor
    betas: Tensor | None
    log_weight: Tensor | None
    beta: float
    dim: int


def plain_energy(
    energy: Tensor, beta: float | Tensor, dim: int, log_weight: Tensor | None
) -> PlainEnergy | None:
    """The arguments where they are the common case and valid, else None.

    The common case: contiguous tensors on the CPU of one dtype, float32 or float64, with
    log-weights ``[N]``.
    """
    dtype = energy.dtype if type(energy) in _PLAIN_TYPES else None
    if (dtype is not torch.float32 and dtype is not torch.float64) or type(dim) is not int:
        return None
    if not _is_plain(energy, dtype) or energy.numel() == 0:
        return None
    dims = energy.dim()
    if not -dims <= dim < dims:
        return None
    dim %= dims
    if log_weight is not None and not (
        _is_plain(log_weight, dtype) and log_weight.shape == energy.shape[dim : dim + 1]
    ):
        return None
    if not isinstance(beta, Tensor):
        if type(beta) not in (float, int) or not (0 <= beta < 1e38 or beta == math.inf):
            return None
        return PlainEnergy(energy, None, log_weight, float(beta), dim)
    if not _is_plain(beta, dtype):
        return None
    if beta.dim() > 0 and beta.shape != energy.shape[:dim] + energy.shape[dim + 1 :]:
        return None
    return PlainEnergy(energy, beta, log_weight, 0.0, dim)


def _is_plain(x: Any, dtype: torch.dtype) -> bool:
    return (
        type(x) in _PLAIN_TYPES
        and x.dtype is dtype
        and x.is_cpu
        and x.layout is torch.strided
        and not x.is_nested
        and x.is_contiguous()
    )


def _check_tensor(name: str, x: object, form: str, min_dims: int) -> Tensor:
    """The argument, if it is a dense tensor of numbers with at least that many dimensions."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor {form}, got {type(x).__name__}")
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor {form}, got layout {x.layout}")
    if x.is_nested:  # the older kind, whose layout is strided; it has no shape to print
        raise TypeError(f"{name} must be a dense tensor {form}, got a nested tensor")
    if type(x) not in _PLAIN_TYPES:
        _check_subclass(name, x, form)
    if x.is_meta:
        raise ValueError(
            f"{name} must hold numbers, got a tensor of shape {list(x.shape)} on the meta device"
        )
    if x.dim() < min_dims:
        raise ValueError(f"{name} must be {form}, got shape {list(x.shape)}")
    return x


def _check_subclass(name: str, x: Tensor, form: str) -> None:
    """Refuse tensor subclasses that a kernel cannot read.

    A class with its own ``__torch_dispatch__`` decides what an operator does. Masked and
    distributed tensors do not know this package's operators. The classes that PyTorch traces with
    do.
    """
    if torch.nn.parameter.is_lazy(x):
        raise ValueError(f"{name} must be a tensor {form}, got an uninitialized parameter")
    kind = type(x)
    if kind.__torch_dispatch__ is Tensor.__torch_dispatch__:
        return
    if not is_traced_tensor(kind):
        raise TypeError(f"{name} must be a plain tensor {form}, got {kind.__name__}")


def _check_sizes(y: Tensor, decoded: Tensor) -> None:
    """Refuse sizes of queries and latents that do not go together."""
    N, D = decoded.shape[-2:]
    if y.shape[-1] != D:
        raise ValueError(
            f"decoded must be [..., N, D] with D = {y.shape[-1]} as y {list(y.shape)} has, "
            f"got shape {list(decoded.shape)}"
        )
    if D == 0:
        raise ValueError(f"y must have D >= 1 dimensions, got shape {list(y.shape)}")
    if N == 0:
        raise ValueError(
            f"decoded must have N >= 1 latents, got shape {list(decoded.shape)}: "
            "a free energy over no latents does not exist"
        )


def _check_beta(beta: float | Tensor, dtype: torch.dtype, owner: str, like: Tensor) -> Tensor:
    """Beta as a tensor on the device of ``like``; ``owner`` is the name of ``like``."""
    if not isinstance(beta, Tensor):
        if not is_real(beta):
            raise TypeError(f"beta must be a number or a tensor, got {type(beta).__name__}")
        if torch.compiler.is_compiling():
            if not beta >= 0:
                # A symbol cannot be printed: the message would be about that instead.
                raise ValueError("beta must lie in [0, inf], got a number below 0 or NaN")
            # torch.compile keeps a number symbolic through a product. full() would compile again
            # for every new beta.
            one = torch.ones((), dtype=torch.float64, device=like.device)
            return (one * beta).to(dtype)
        if not beta >= 0:  # NaN included
            raise ValueError(f"beta must lie in [0, inf], got {beta}")
        value = number(beta)
        if value > torch.finfo(dtype).max:
            value = math.inf
        return torch.full((), value, dtype=dtype, device=like.device)
    _check_tensor("beta", beta, "that broadcasts with the result", 0)
    if beta.dtype not in (dtype, like.dtype):
        either = dtype if like.dtype == dtype else f"{dtype} or {like.dtype}"
        raise TypeError(f"beta must be {either} for {owner} of {like.dtype}, got {beta.dtype}")
    if beta.device != like.device:
        raise ValueError(f"beta must be on {like.device} as {owner} is, got {beta.device}")
    return beta


def _check_leading(given: Arguments) -> None:
    """Name the first argument whose leading dimensions do not broadcast with those before it."""
    shape, before = given.y.shape[:-1], "y"
    for i, row in _QUERY_SIDE[1:]:
        x, own = given[i], len(row.dims) - 1
        if x is not None and x.dim() > own:
            leading = x.shape[: x.dim() - own]
            shape = _broadcast(row.name, x, row.form, "[..., M]", leading, shape, before)
            before = f"{before}, {row.name}"
    batch = shape[:-1]
    for i, row in _LATENT_SIDE:
        x, own = given[i], len(row.dims)
        if x is not None and x.dim() > own:
            leading = x.shape[: x.dim() - own]
            batch = _broadcast(row.name, x, row.form, "[...]", leading, batch, before)
            before = f"{before}, {row.name}"


def _broadcast(
    name: str,
    x: Tensor,
    form: str,
    part: str,
    leading: torch.Size,
    shape: torch.Size,
    before: str,
) -> torch.Size:
    """``leading`` broadcast with ``shape``, the ``part`` that the arguments ``before`` have."""
    try:
        return torch.broadcast_shapes(shape, leading)
    except RuntimeError:
        raise ValueError(
            f"{name} must be {form} where {part} broadcasts with {list(shape)} (from {before}), "
            f"got shape {list(x.shape)}"
        ) from None


def _autocast(*given: Any) -> tuple[Any, ...]:
    """Under autocast, what may be cast becomes float32, as for :func:`torch.cdist`."""
    y = given[0]
    if not isinstance(y, Tensor) or not torch.is_autocast_enabled(y.device.type):
        return given
    return tuple(x.float() if isinstance(x, Tensor) and x.dtype in _CAST else x for x in given)
