"""The contract between the operators and a backend.

A backend is a module with four functions; the last two take one canonical :class:`Problem`:

``unavailable(device)``
    None if it can run on tensors of that device type, otherwise the reason as a sentence. If it can
    run on some devices of the type only, None; on the others rows() and columns() raise.
``describe()``
    How it runs here, in one line; called only where it can run.
``rows(problem, want)``
    The row pass, a traversal of the pairs that sums over latents: the free energy and all that
    ``want`` asks for.
``columns(problem, grad, state, want)``
    The column pass, a traversal that sums over queries: the gradients of the latent-side arguments.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from torch import Tensor


class Problem(NamedTuple):
    """The arguments in canonical form: three-dimensional, broadcast, float32 or float64.

    Broadcast dimensions have stride 0 where possible. Where beta or scale has leading dimensions
    that y lacks, y is repeated: it then has D numbers for each element of F.

    Attributes:
        y: ``[B, M, D]``.
        decoded: ``[B, N, D]``.
        beta: ``[B, M]``.
        scale: ``[B, M, D]`` or None.
        log_weight: ``[B, N]`` or None; not normalised.
        latent_energy: ``[B, N]`` or None.
        tol: the fraction of a query's sum that may be pruned; None prunes only what rounding hides.
    """

    y: Tensor
    decoded: Tensor
    beta: Tensor
    scale: Tensor | None
    log_weight: Tensor | None
    latent_energy: Tensor | None
    tol: float | None


class StateField(IntEnum):
    """The numbers of a query's state, in their order: see :class:`Rows`."""

    SHIFT = 0
    LOG_NORMALISER = 1
    GAP = 2
    REST = 3


STATE_SIZE = len(StateField)
"""How many numbers a query's state has."""


class RowWants(NamedTuple):
    """What a row pass computes in addition to the free energy; the other fields stay None."""

    slope_y: bool = False
    slope_scale: bool = False
    slope_beta: bool = False
    mean: bool = False
    energy: bool = False
    relative_entropy: bool = False
    index: bool = False  # type: ignore[assignment]


class Rows(NamedTuple):
    """What a row pass returns.

    Attributes:
        free_energy: F, ``[B, M]``, the problem's dtype.
        state: ``[B, M, 4]``, float64: the numbers of :class:`StateField`. From them
            p = w exp(-beta (E - m) - L) can be computed again, which is not possible from F, since
            F is rounded. Where F is finite:

            - the shift m is an energy: near the least where beta is large, the least at beta = inf;
            - the log-normaliser is L = log sum_n w exp(-beta (E - m)), with normalised w; it may be
              0 where the exponents are below rounding, and is 0 at beta = 0;
            - the gap F - m is -L/beta; where L is 0 or has lost it to rounding, sum_n w (E - m);
              0 at beta = inf;
            - the rest is, at beta = inf, log2 of the minima's total weight up to an integer, in the
              units in which the backend has its weights; 0 at finite beta. Where weights differ by
              hundreds of orders of magnitude, L rounds it away.

            Where F is inf or NaN, m + gap is too. Which of the two is not finite is unspecified, as
            are L and the rest: the backends differ.

            A column pass gets what the row pass of the same backend has stored, and may rely on
            all of that; only it reads the rest. Second derivatives get the state of any backend.
        slope_y: dF/dy, ``[B, M, D]``.
        slope_scale: dF/dscale, ``[B, M, D]``.
        slope_beta: dF/dbeta, ``[B, M]``, float64, whose range has room for the square of an energy;
            0 at beta = inf, -Var_w(E)/2 at beta = 0.
        mean: sum_n p g, ``[B, M, D]``.
        energy: <E> = sum_n p E, ``[B, M]``, never below the least energy.
        relative_entropy: KL(p|w), ``[B, M]``, never negative. Neither is a difference of F and
            the other slopes: where one is small beside F, the difference is only rounding.
            GPU kernels take KL = -beta <E - m> - L unless all exponents are small; it then has the
            rounding of L.
        index: argmin_n E, the first of equals, ``[B, M]``, int64.
    """

    free_energy: Tensor
    state: Tensor
    slope_y: Tensor | None = None
    slope_scale: Tensor | None = None
    slope_beta: Tensor | None = None
    mean: Tensor | None = None
    energy: Tensor | None = None
    relative_entropy: Tensor | None = None
    index: Tensor | None = None  # type: ignore[assignment]


class ColumnWants(NamedTuple):
    """Which latent-side gradients a column pass computes; the others stay None."""

    decoded: bool = False
    log_weight: bool = False
    latent_energy: bool = False


class Columns(NamedTuple):
    """What a column pass returns, in the problem's dtype: ``[B, N, D]``, ``[B, N]``, ``[B, N]``."""

    decoded: Tensor | None = None
    log_weight: Tensor | None = None
    latent_energy: Tensor | None = None
