"""The public functions: check the arguments, choose a backend, call the operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from lebm_kernels import reference
from lebm_kernels.backends import choose
from lebm_kernels.backends.hindrances import is_out_of_memory, too_many_pairs
from lebm_kernels.checks import is_integer, is_real, number
from lebm_kernels.ops import derivatives, eager, schemas
from lebm_kernels.ops.schemas import Arguments
from lebm_kernels.reference import Posterior

_Result = TypeVar("_Result")

_CAST = (torch.float16, torch.bfloat16, torch.float32)
_DTYPES = (*_CAST, torch.float64)


def free_energy(
    y: Tensor,
    decoded: Tensor,
    beta: float | Tensor = 1.0,
    *,
    scale: Tensor | None = None,
    log_weight: Tensor | None = None,
    latent_energy: Tensor | None = None,
    tol: float | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""The free energy of every query over a grid of latents.

    .. math::
        E[b,n] = \sum_d (y[b,d] - s[b,d]\, g[n,d])^2 + r[n] \qquad
        F[b] = -\tfrac1\beta \log \sum_n w[n] e^{-\beta E[b,n]}, \quad w = softmax(l)

    The minimum over the latents at ``beta = inf`` (zero temperature, "cold"), their weighted mean
    at ``beta = 0`` ("hot"), the marginal in between; continuous and non-increasing in beta.
    Differentiable in every tensor argument. Memory is O((M + N) D), forward and backward, on every
    backend but ``reference``. Leading dimensions broadcast as in :func:`torch.cdist`. Under
    autocast, float16, bfloat16 and float32 may be mixed: all are computed in float32, and each
    gradient comes back in its tensor's dtype.

    Args:
        y: queries, ``[..., M, D]``, float16, bfloat16, float32 or float64. The halves are
            computed, and F is returned, in float32; gradients come back in the input's dtype.
        decoded: g, the decoder's output on the grid, ``[..., N, D]``, dtype of ``y``.
        beta: inverse temperature, a number in [0, inf], or a tensor that broadcasts with F. In a
            tensor, an element that is negative or NaN gives a NaN in its place.
        scale: s, broadcasts with ``y``: ``[D]`` for all queries, or ``[..., M, D]``.
        log_weight: l, log-weights of the latents, ``[..., N]``, normalised away; -inf drops one.
        latent_energy: r, ``[..., N]``, a regulariser that belongs to the energy.
        tol: the share of a query's sum that may be pruned, in [0, 1); None prunes nothing that the
            dtype could show. F rises by at most -log(1 - tol)/beta, its gradient in y moves by at
            most 2 tol times the diameter of the scaled latents. Only ``native`` on CPU prunes, at
            D <= 4 and without log-weights; elsewhere nothing is left out.
        backend: one of ``backends()``, or None for the first that can run on y's device.

    Returns:
        F, ``[..., M]``, in squared units of ``y``; float32, or float64 where ``y`` is.

    Raises:
        TypeError: an argument is no tensor, or of the wrong dtype.
        ValueError: a shape, device or value does not fit; the message names the argument.
            ``docs/bad_input.md`` has every case, and what bad numbers give.
        RuntimeError: the named backend cannot run here; the message says why, and what would help.
        torch.OutOfMemoryError: (a RuntimeError) the arrays that the backend holds do not fit; the
            message says how large they are, and what is smaller.

    Example:
        >>> y = torch.tensor([[3.0, 0.0]])
        >>> decoded = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> free_energy(y, decoded, beta=float("inf"))
        tensor([4.])
    """
    if tol is None and (backend is None or backend == "native"):
        value = eager.free_energy(y, decoded, beta, scale, log_weight, latent_energy)
        if value is not None:
            return value
    arguments = _checked(y, decoded, beta, scale, log_weight, latent_energy)
    tol, name = _options(arguments.y, tol, backend)
    if name == "reference":
        return _by_reference(reference.free_energy, arguments)
    tracked = torch.is_grad_enabled()
    slopes = [
        tracked and x is not None and x.requires_grad
        for x in (arguments.y, arguments.scale, arguments.beta)
    ]
    result: Tensor = derivatives.free_energy(*arguments, tol, name, slopes)[0]
    return result


def posterior(
    y: Tensor,
    decoded: Tensor,
    beta: float | Tensor = 1.0,
    *,
    scale: Tensor | None = None,
    log_weight: Tensor | None = None,
    latent_energy: Tensor | None = None,
    tol: float | None = None,
    backend: str | None = None,
) -> Posterior:
    r"""Expectations under the posterior p[b,n] = w[n] exp(-beta E[b,n]) / sum_n (same).

    Arguments and errors are those of :func:`free_energy`. All but ``index`` are differentiable in
    every tensor argument, once.

    Returns:
        A :class:`Posterior`: ``free_energy [..., M]``; ``mean [..., M, D]`` = sum_n p g (of the
        decoded latents, not scaled); ``energy [..., M]`` = sum_n p E; ``relative_entropy
        [..., M]`` = KL(p | w) in nats; ``index [..., M]``, int64, the latent of least energy (the
        first of equals), so that ``decoded[index]``, times a scale where given, is the restored y.

    Example:
        >>> y, decoded = torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> posterior(y, decoded, beta=0.0).mean
        tensor([[0.5000, 0.5000]])
    """
    arguments = _checked(y, decoded, beta, scale, log_weight, latent_energy)
    tol, name = _options(arguments.y, tol, backend)
    if name == "reference":
        return _by_reference(reference.posterior, arguments)
    return Posterior(*derivatives.posterior(*arguments, tol, name)[:5])


def sample_latent(
    y: Tensor,
    decoded: Tensor,
    beta: float | Tensor = 1.0,
    *,
    num_samples: int,
    generator: torch.Generator | None = None,
    scale: Tensor | None = None,
    log_weight: Tensor | None = None,
    latent_energy: Tensor | None = None,
    tol: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Independent draws of latents from the posterior of every query.

    Arguments and errors are those of :func:`free_energy`, and:

    Args:
        y: see :func:`free_energy`.
        decoded: see :func:`free_energy`.
        beta: see :func:`free_energy`; at ``inf`` the draws are among the exact minima.
        num_samples: how many draws a query, at least 0.
        generator: source of the randomness, on y's device; None for PyTorch's default.
        scale: see :func:`free_energy`.
        log_weight: see :func:`free_energy`.
        latent_energy: see :func:`free_energy`.
        tol: see :func:`free_energy`.
        backend: see :func:`free_energy`; every backend but ``reference`` draws tile by tile.

    Returns:
        Indices of latents, ``[..., M, num_samples]``, int64.

    Raises:
        TypeError: also where ``num_samples`` or ``generator`` is of the wrong type.
        ValueError: also where a query has no posterior.

    Example:
        >>> y, decoded = torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> sample_latent(y, decoded, float("inf"), num_samples=3)
        tensor([[0, 0, 0]])
    """
    arguments = _checked(y, decoded, beta, scale, log_weight, latent_energy)
    _, name = _options(arguments.y, tol, backend)
    num_samples = _draws(num_samples, generator, arguments.y.device)
    with torch.no_grad():
        if name == "reference":
            return _by_reference(reference.sample_latent, arguments, num_samples, generator)
        index: Tensor = torch.ops.lebm_kernels.sample_latent(*arguments, num_samples, generator)
        return index


def softmin(
    energy: Tensor, beta: float | Tensor, dim: int, log_weight: Tensor | None = None
) -> Tensor:
    r"""softmin_beta[E] = -1/beta log sum_n w exp(-beta E) over ``dim``: a free energy.

    Args:
        energy: energies that one already has, floating point.
        beta: inverse temperature in [0, inf]: a number, or a tensor that broadcasts
            with the result.
        dim: the dimension of the latents.
        log_weight: log-weights, ``[N]`` or broadcastable to ``energy`` with ``dim`` last;
            normalised away.

    Returns:
        ``energy``'s shape without ``dim``.

    Raises:
        TypeError: ``energy``, ``beta`` or ``log_weight`` is of the wrong type or dtype.
        ValueError: a shape or value does not fit.

    Example:
        >>> softmin(torch.tensor([1.0, 2.0]), float("inf"), dim=0)
        tensor(1.)
    """
    energy, beta = _checked_energy(energy, beta, dim, log_weight)
    return reference.softmin(energy, beta, log_weight)


def softmax(
    energy: Tensor, beta: float | Tensor, dim: int, log_weight: Tensor | None = None
) -> Tensor:
    r"""softmax_beta[E] = 1/beta log sum_n w exp(beta E) = -softmin_beta[-E]: a scalar.

    Not what :func:`torch.softmax` computes: that is :func:`softargmax`. Arguments and errors are
    those of :func:`softmin`.

    Example:
        >>> softmax(torch.tensor([1.0, 2.0]), float("inf"), dim=0)
        tensor(2.)
    """
    energy, beta = _checked_energy(energy, beta, dim, log_weight)
    return -reference.softmin(-energy, beta, log_weight)


def softargmin(
    energy: Tensor, beta: float | Tensor, dim: int, log_weight: Tensor | None = None
) -> Tensor:
    r"""softargmin_beta[E] = w exp(-beta E) / sum_n (same): the posterior of the latents.

    Arguments and errors are those of :func:`softmin`.

    Returns:
        ``energy``'s shape; sums to one over ``dim``. At ``beta = inf`` the exact minima share it.

    Example:
        >>> softargmin(torch.tensor([1.0, 2.0, 1.0]), float("inf"), dim=0)
        tensor([0.5000, 0.0000, 0.5000])
    """
    return _softargmin(energy, beta, dim, log_weight, sign=1)


def softargmax(
    energy: Tensor, beta: float | Tensor, dim: int, log_weight: Tensor | None = None
) -> Tensor:
    r"""softargmax_beta[E] = w exp(beta E) / sum_n (same) = softargmin_beta[-E].

    Arguments and errors are those of :func:`softmin`.

    Example:
        >>> softargmax(torch.tensor([1.0, 2.0]), float("inf"), dim=0)
        tensor([0., 1.])
    """
    return _softargmin(energy, beta, dim, log_weight, sign=-1)


def _softargmin(
    energy: Tensor, beta: float | Tensor, dim: int, log_weight: Tensor | None, sign: int
) -> Tensor:
    last, beta = _checked_energy(energy, beta, dim, log_weight)
    # Counted from the end, where several betas at once leave it.
    place = dim if dim < 0 else dim - energy.dim()
    return reference.softargmin(sign * last, beta, log_weight).movedim(-1, place)


def _tensor(name: str, x: object, shape: str, min_dims: int) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor {shape}, got {type(x).__name__}")
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor {shape}, got layout {x.layout}")
    if x.is_nested:  # of the older kind, whose layout does not tell; it has no shape to print
        raise TypeError(f"{name} must be a dense tensor {shape}, got a nested tensor")
    if type(x) not in (Tensor, torch.nn.Parameter):
        _check_subclass(name, x, shape)
    if x.is_meta:
        raise ValueError(
            f"{name} must hold numbers, got a tensor of shape {list(x.shape)} on the meta device"
        )
    if x.dim() < min_dims:
        raise ValueError(f"{name} must be {shape}, got shape {list(x.shape)}")
    return x


def _check_subclass(name: str, x: Tensor, shape: str) -> None:
    """Refuse what is a tensor to PyTorch and no array of numbers to a kernel.

    A class with its own ``__torch_dispatch__`` decides what an operator does: masked and
    distributed tensors know none of this package's. Those of PyTorch's tracing do.
    """
    if torch.nn.parameter.is_lazy(x):
        raise ValueError(f"{name} must be a tensor {shape}, got an uninitialized parameter")
    kind = type(x)
    if kind.__torch_dispatch__ is Tensor.__torch_dispatch__:
        return
    if not kind.__module__.startswith("torch._subclasses."):
        raise TypeError(f"{name} must be a plain tensor {shape}, got {kind.__name__}")


def _temperature(beta: float | Tensor, dtype: torch.dtype, of: str, like: Tensor) -> Tensor:
    """Beta as a tensor; ``of`` is the name of what it must be like."""
    if not isinstance(beta, Tensor):
        if not is_real(beta):
            raise TypeError(f"beta must be a number or a tensor, got {type(beta).__name__}")
        if torch.compiler.is_compiling():
            if not beta >= 0:
                # A symbol cannot be printed: the message would be about that instead.
                raise ValueError("beta must lie in [0, inf], got a number below 0 or NaN")
            # A product is what torch.compile can keep a number symbolic in: full() would compile
            # again for every new beta.
            one = torch.ones((), dtype=torch.float64, device=like.device)
            return (one * beta).to(dtype)
        if not beta >= 0:  # NaN included
            raise ValueError(f"beta must lie in [0, inf], got {beta}")
        value = number(beta)
        if value > torch.finfo(dtype).max:
            value = math.inf
        return torch.full((), value, dtype=dtype, device=like.device)
    _tensor("beta", beta, "that broadcasts with the result", 0)
    if beta.dtype not in (dtype, like.dtype):
        raise TypeError(f"beta must be {dtype}, like the free energy, got {beta.dtype}")
    if beta.device != like.device:
        raise ValueError(f"beta must be on {like.device} as {of} is, got {beta.device}")
    return beta


def _checked(
    y: Tensor,
    decoded: Tensor,
    beta: float | Tensor,
    scale: Tensor | None,
    log_weight: Tensor | None,
    latent_energy: Tensor | None,
) -> Arguments:
    _tensor("y", y, "[..., M, D]", 2)
    cast = _autocast(y, decoded, scale, log_weight, latent_energy, beta)
    scale, log_weight, latent_energy = cast[2:5]
    beta = cast[5]
    y = _tensor("y", cast[0], "[..., M, D]", 2)
    if y.dtype not in _DTYPES:
        raise TypeError(f"y must be float16, bfloat16, float32 or float64, got {y.dtype}")
    decoded = _tensor("decoded", cast[1], "[..., N, D]", 2)
    num_latents, num_dims = decoded.shape[-2:]
    if num_dims != y.shape[-1]:
        raise ValueError(
            f"decoded must be [..., N, D] with D = {y.shape[-1]} as y {list(y.shape)} has, "
            f"got shape {list(decoded.shape)}"
        )
    if num_dims == 0:
        raise ValueError(f"y must have D >= 1 dimensions, got shape {list(y.shape)}")
    if num_latents == 0:
        raise ValueError(
            f"decoded must have N >= 1 latents, got shape {list(decoded.shape)}: "
            "a free energy over no latents does not exist"
        )
    if scale is not None:
        _tensor("scale", scale, "[D] or [..., M, D]", 1)
        if scale.shape[-1] != num_dims:
            raise ValueError(
                f"scale must be [{num_dims}] or [..., M, {num_dims}], got shape {list(scale.shape)}"
            )
    for name, row in (("log_weight", log_weight), ("latent_energy", latent_energy)):
        if row is not None:
            _tensor(name, row, "[..., N]", 1)
            if row.shape[-1] != num_latents:
                raise ValueError(
                    f"{name} must be [..., N] with N = {num_latents} as decoded has, "
                    f"got shape {list(row.shape)}"
                )
    others = (
        ("decoded", decoded),
        ("scale", scale),
        ("log_weight", log_weight),
        ("latent_energy", latent_energy),
    )
    for name, x in others:
        if x is not None and x.dtype != y.dtype:
            raise TypeError(f"{name} must be {y.dtype} as y is, got {x.dtype}")
        if x is not None and x.device != y.device:
            raise ValueError(f"{name} must be on {y.device} as y is, got {x.device}")
    beta = _temperature(beta, schemas.accumulation_dtype(y.dtype), "y", y)
    checked = Arguments(y, decoded, beta, scale, log_weight, latent_energy)
    _check_leading(checked)
    return checked


def _check_leading(arguments: Arguments) -> None:
    """Name the first argument whose leading dimensions don't broadcast with those before it."""
    y, decoded, beta, scale, log_weight, latent_energy = arguments
    shape, before = y.shape[:-1], "y"
    queries = (("scale", scale, 1, "[D] or [..., M, D]"), ("beta", beta, 0, "[] or [..., M]"))
    for name, x, own, form in queries:
        if x is not None and x.dim() > own:
            leading = x.shape[: x.dim() - own]
            shape = _broadcast(name, x, form, "[..., M]", leading, shape, before)
            before = f"{before}, {name}"
    batch = shape[:-1]
    latents = (
        ("decoded", decoded, 2, "[..., N, D]"),
        ("log_weight", log_weight, 1, "[..., N]"),
        ("latent_energy", latent_energy, 1, "[..., N]"),
    )
    for name, x, own, form in latents:
        if x is not None and x.dim() > own:
            leading = x.shape[: x.dim() - own]
            batch = _broadcast(name, x, form, "[...]", leading, batch, before)
            before = f"{before}, {name}"


def _broadcast(
    name: str,
    x: Tensor,
    form: str,
    part: str,
    leading: torch.Size,
    shape: torch.Size,
    before: str,
) -> torch.Size:
    """``shape``, the ``part`` of the arguments ``before``, broadcast with x's, ``leading``."""
    try:
        return torch.broadcast_shapes(shape, leading)
    except RuntimeError:
        raise ValueError(
            f"{name} must be {form} where {part} broadcasts with {list(shape)} (from {before}), "
            f"got shape {list(x.shape)}"
        ) from None


def autocast_dtype(dtype: torch.dtype, device_type: str) -> torch.dtype:
    """What stands for it in a comparison of dtypes: float32 for all that autocast may cast."""
    cast = dtype in _CAST and torch.is_autocast_enabled(device_type)
    return torch.float32 if cast else dtype


def _autocast(*arguments: Any) -> tuple[Any, ...]:
    """Under autocast, what may be cast becomes float32, as for :func:`torch.cdist`."""
    y = arguments[0]
    if not isinstance(y, Tensor) or not torch.is_autocast_enabled(y.device.type):
        return arguments
    return tuple(x.float() if isinstance(x, Tensor) and x.dtype in _CAST else x for x in arguments)


def _widened(arguments: Arguments) -> Arguments:
    """The arguments in the dtype that F is computed in."""
    dtype = schemas.accumulation_dtype(arguments.y.dtype)
    y, decoded, beta, scale, log_weight, latent_energy = arguments
    return Arguments(
        y.to(dtype),
        decoded.to(dtype),
        beta.to(dtype),
        None if scale is None else scale.to(dtype),
        None if log_weight is None else log_weight.to(dtype),
        None if latent_energy is None else latent_energy.to(dtype),
    )


def _by_reference(function: Callable[..., _Result], arguments: Arguments, *rest: Any) -> _Result:
    """That function of :mod:`lebm_kernels.reference`, whose arrays may not fit in memory."""
    if torch.compiler.is_compiling():
        return function(*_widened(arguments), *rest)
    try:
        return function(*_widened(arguments), *rest)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        why = too_many_pairs(arguments.y, arguments.decoded, schemas.value_shape(arguments))
        raise torch.OutOfMemoryError(why) from error


def _options(y: Tensor, tol: float | None, backend: str | None) -> tuple[float | None, str]:
    """``tol`` as the operators take it, and the backend's name."""
    if tol is not None:
        if not is_real(tol):
            raise TypeError(f"tol must be None or a number in [0, 1), got {type(tol).__name__}")
        if not 0 <= tol < 1:
            raise ValueError(f"tol must be None or a number in [0, 1), got {tol!r}")
        tol = float(tol)
    return tol, choose(backend, y.device.type)


def _draws(num_samples: Any, generator: torch.Generator | None, device: torch.device) -> int:
    """``num_samples`` as the operator takes it."""
    if not is_integer(num_samples):
        raise TypeError(f"num_samples must be an integer >= 0, got {type(num_samples).__name__}")
    if num_samples < 0:
        raise ValueError(f"num_samples must be an integer >= 0, got {num_samples}")
    if not isinstance(num_samples, int):  # one of NumPy's
        num_samples = int(num_samples)
    if generator is None:
        return num_samples
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be None or a torch.Generator, got {type(generator).__name__}"
        )
    if generator.device.type != device.type:
        raise ValueError(f"generator must be on {device} as y is, got {generator.device}")
    return num_samples


def _checked_energy(
    energy: Tensor, beta: float | Tensor, dim: int, log_weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``energy`` with ``dim`` last, and beta as a tensor."""
    _tensor("energy", energy, "[..., N, ...]", 1)
    if not energy.is_floating_point():
        raise TypeError(f"energy must be floating point, got {energy.dtype}")
    if not is_integer(dim):
        raise TypeError(f"dim must be an integer, one dimension of energy, got {dim!r}")
    if not -energy.dim() <= dim < energy.dim():
        raise ValueError(f"dim must index energy {list(energy.shape)}, got {dim}")
    if energy.shape[dim] == 0:
        raise ValueError(f"energy must have at least one latent in dim {dim}, got none")
    energy = energy.movedim(dim, -1)
    beta = _temperature(beta, energy.dtype, "energy", energy)
    shape = _broadcast("beta", beta, "[...]", "[...]", beta.shape, energy.shape[:-1], "energy")
    if log_weight is not None:
        _tensor("log_weight", log_weight, "[..., N]", 1)
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
    return energy, beta
