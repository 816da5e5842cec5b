"""The public functions: check the arguments, choose a backend, call the operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from lebm_kernels import reference, soft_eager, soft_minimum
from lebm_kernels.arguments import (
    Arguments,
    accumulation_dtype,
    check,
    check_draws,
    check_energy,
    check_tol,
    plain,
    plain_energy,
    value_shape,
)
from lebm_kernels.backends import choose
from lebm_kernels.backends.hindrances import raise_explained, too_many_pairs
from lebm_kernels.ops import derivatives, eager, schemas
from lebm_kernels.reference import Posterior

_Result = TypeVar("_Result")


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

    F is the minimum of E over the latents at ``beta = inf`` (zero temperature, "cold") and their
    weighted mean at ``beta = 0`` ("hot"). In between it is -1/beta times the log of the marginal
    over the latents. F is continuous and non-increasing in beta, and differentiable in every tensor
    argument. Memory is O((M + N) D), forward and backward, on every backend but ``reference``.
    Leading dimensions broadcast as in :func:`torch.cdist`. Under autocast, float16, bfloat16 and
    float32 may be mixed: all are computed in float32, and each gradient comes back in its tensor's
    dtype.

    Args:
        y: queries, ``[..., M, D]``, float16, bfloat16, float32 or float64. float16 and bfloat16
            are computed in float32: F is float32, and gradients come back in the input's dtype.
        decoded: g, the decoder's output on the grid, ``[..., N, D]``, dtype of ``y``.
        beta: inverse temperature, a number in [0, inf], or a tensor that broadcasts with F. Where
            an element of the tensor is negative or NaN, F is NaN.
        scale: s, broadcasts with ``y``: ``[D]`` for all queries, or ``[..., M, D]``.
        log_weight: l, log-weights of the latents, ``[..., N]``, normalised away. -inf drops a
            latent.
        latent_energy: r, ``[..., N]``, a regulariser that belongs to the energy.
        tol: the fraction of a query's sum that may be pruned, in [0, 1); None prunes only what
            rounding hides. F rises by at most -log(1 - tol)/beta. Its gradient in y changes by at
            most 2 tol times the diameter of the scaled latents. Only ``native`` on CPU prunes, at
            D <= 4 and without log-weights.
        backend: one of ``backends()``, or None for the first that can run on y's device.

    Returns:
        F, ``[..., M]``, in squared units of ``y``; float32, or float64 where ``y`` is.

    Raises:
        TypeError: an argument is not a tensor, or has the wrong dtype.
        ValueError: a shape, device or value does not fit; the message names the argument.
            ``docs/bad_input.md`` lists every case, and the results for NaN and infinities.
        RuntimeError: the named backend cannot run here; the message says why and what would help.
        torch.OutOfMemoryError: (a RuntimeError) the backend's arrays do not fit in memory; the
            message gives their size and what to do.

    Warns:
        UserWarning: once a process and device type, where ``backend`` is None and only the slow
            ``chunked`` can run; the message gives the reasons. Not inside compiled graphs.

    Example:
        >>> y = torch.tensor([[3.0, 0.0]])
        >>> decoded = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> free_energy(y, decoded, beta=float("inf"))
        tensor([4.])
    """
    if tol is None and (backend is None or backend == "native") and eager.can_run():
        given = plain(y, decoded, beta, scale, log_weight, latent_energy)
        if given is not None:
            return eager.free_energy(given)
    given = check(y, decoded, beta, scale, log_weight, latent_energy)
    tol, name = check_tol(tol), choose(backend, given.y.device.type)
    if name == "reference":
        return _by_reference(reference.free_energy, given)
    tracked = torch.is_grad_enabled()
    slopes = [tracked and x is not None and x.requires_grad for x in schemas.with_slopes(given)]
    result: Tensor = derivatives.free_energy(*given, tol, name, slopes)[0]
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
    given = check(y, decoded, beta, scale, log_weight, latent_energy)
    tol, name = check_tol(tol), choose(backend, given.y.device.type)
    if name == "reference":
        return _by_reference(reference.posterior, given)
    return Posterior(*derivatives.posterior(*given, tol, name)[:5])


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
) -> Tensor:
    """Independent draws of latents from the posterior of every query.

    Plain PyTorch draws them tile by tile on any device, so there is no backend to choose and
    nothing is pruned. The tensor arguments and errors are those of :func:`free_energy`, and:

    Args:
        y: see :func:`free_energy`.
        decoded: see :func:`free_energy`.
        beta: see :func:`free_energy`; at ``inf`` the draws are among the exact minima.
        num_samples: how many draws a query, at least 0.
        generator: source of the randomness, on y's device; None for PyTorch's default.
        scale: see :func:`free_energy`.
        log_weight: see :func:`free_energy`.
        latent_energy: see :func:`free_energy`.

    Returns:
        Indices of latents, ``[..., M, num_samples]``, int64.

    Raises:
        TypeError: also where ``num_samples`` or ``generator`` is of the wrong type.
        ValueError: also where a query has no posterior: its energies are NaN or all infinite.

    Example:
        >>> y, decoded = torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> sample_latent(y, decoded, float("inf"), num_samples=3)
        tensor([[0, 0, 0]])
    """
    given = check(y, decoded, beta, scale, log_weight, latent_energy)
    num_samples = check_draws(num_samples, generator, given.y.device)
    with torch.no_grad():
        index: Tensor = torch.ops.lebm_kernels.sample_latent(*given, num_samples, generator)
        return index


def softmin(
    energy: Tensor, beta: float | Tensor, dim: int, log_weight: Tensor | None = None
) -> Tensor:
    r"""softmin_beta[E] = -1/beta log sum_n w exp(-beta E) over ``dim``: a free energy.

    Args:
        energy: energies that one already has, float16, bfloat16, float32 or float64. float16 and
            bfloat16 are computed in float32; the result and the gradients have their dtype.
        beta: inverse temperature in [0, inf]: a number, or a tensor that broadcasts
            with the result, in the dtype of ``energy`` or float32 beside float16 and bfloat16.
            Where an element of the tensor is negative or NaN, the result is NaN.
        dim: the dimension of the latents.
        log_weight: log-weights, ``[N]`` or ``[..., N]``, which broadcast with ``energy`` with
            ``dim`` last in all but N; dtype of ``energy``. They are normalised. -inf drops a
            latent.

    Returns:
        ``energy``'s shape without ``dim``, and its dtype.

    Raises:
        TypeError: ``energy``, ``beta`` or ``log_weight`` is of the wrong type or dtype.
        ValueError: a shape or value does not fit. ``docs/bad_input.md`` has a table of the results
            for NaN and infinities.

    Example:
        >>> softmin(torch.tensor([1.0, 2.0]), float("inf"), dim=0)
        tensor(1.)
    """
    return _softmin(energy, beta, dim, log_weight, sign=1)


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
    return _softmin(energy, beta, dim, log_weight, sign=-1)


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


def _softmin(
    energy: Tensor, beta: float | Tensor, dim: int, log_weight: Tensor | None, sign: int
) -> Tensor:
    by_extension = soft_eager.can_run()
    given = plain_energy(energy, beta, dim, log_weight) if by_extension else None
    if given is not None:
        return soft_eager.softmin(given, sign < 0)
    last, beta, log_weight = check_energy(energy, beta, dim, log_weight)
    if by_extension and last.is_cpu:
        given = soft_eager.laid_out(last, beta, log_weight)
        return soft_eager.softmin(given, sign < 0).to(energy.dtype)
    if sign > 0:
        return soft_minimum.softmin(last, beta, log_weight).to(energy.dtype)
    return soft_minimum.softmin(-last, beta, log_weight).neg().to(energy.dtype)


def _softargmin(
    energy: Tensor, beta: float | Tensor, dim: int, log_weight: Tensor | None, sign: int
) -> Tensor:
    by_extension = soft_eager.can_run()
    given = plain_energy(energy, beta, dim, log_weight) if by_extension else None
    if given is not None:
        return soft_eager.softargmin(given, sign < 0)
    last, beta, log_weight = check_energy(energy, beta, dim, log_weight)
    if by_extension and last.is_cpu:
        p = soft_eager.softargmin(soft_eager.laid_out(last, beta, log_weight), sign < 0)
    else:
        p = soft_minimum.softargmin(last if sign > 0 else -last, beta, log_weight)
    # Counted from the end: several betas at once add dimensions in front.
    place = dim if dim < 0 else dim - energy.dim()
    return p.movedim(-1, place).to(energy.dtype)


def _by_reference(function: Callable[..., _Result], given: Arguments) -> _Result:
    """That function of :mod:`lebm_kernels.reference`, whose arrays may not fit in memory."""
    dtype = accumulation_dtype(given.y.dtype)
    wide = [None if x is None else x.to(dtype) for x in given]
    if torch.compiler.is_compiling():
        return function(*wide)
    try:
        return function(*wide)
    except (RuntimeError, MemoryError) as error:
        raise_explained(error, lambda: too_many_pairs(given.y, given.decoded, value_shape(given)))
