"""Whether F and its derivatives are right, for every backend that can run here.

In float64, gradients are compared with finite differences (gradcheck). In the other dtypes, F and
its gradients are compared with the oracle, and keep the promise on accuracy (promise.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

import lebm_kernels
from lebm_kernels import reference
from lebm_kernels.diagnostics import promise
from lebm_kernels.diagnostics.gradient_cases import TIED_MINIMA, Arguments, standard_cases
from lebm_kernels.diagnostics.oracle import every_pair, exact, to_array
from lebm_kernels.diagnostics.promise import Array
from lebm_kernels.diagnostics.subjects import Subject, selected

VALUE = "F"
"""Stands for F among the arguments; F is checked in dtypes other than float64."""

SECOND = "second derivatives"
"""Stands for the second derivatives by all arguments, mixed ones included."""

# The tolerances of gradcheck, and the step of its differences.
_ABSOLUTE, _RELATIVE, _STEP = 1e-5, 1e-3, 1e-6

# At a smaller beta, one side of a finite difference may leave [0, inf].
_TOO_HOT = 1e-5

# A gradient smaller than this counts as 0: products near the smallest normal number of float32
# lose their digits.
_UNDERFLOW = 2.0**-124


@dataclass(frozen=True)
class GradientCheck:
    """The verdict on one argument of one backend.

    Attributes:
        backend: its name.
        argument: the argument of :func:`lebm_kernels.free_energy` differentiated, :data:`VALUE`
            or :data:`SECOND`.
        ok: whether each case passed.
        message: where and how the first case failed; empty if all passed.
        subject: the backend with its instruction set.
        dtype: of the arguments.
        cases: how many were checked.
        error: the largest error, divided by the error allowed there.
        place: the case and the element of that error.
    """

    backend: str
    argument: str
    ok: bool
    message: str
    subject: Subject = field(default=Subject(""))
    dtype: torch.dtype = torch.float64
    cases: int = 0
    error: float = 0.0
    place: str = ""


@dataclass
class _Verdict:
    """The checks of one argument, case by case."""

    message: str = ""
    cases: int = 0
    error: float = 0.0
    place: str = ""

    def fail(self, title: str, reason: str | Exception) -> None:
        text = " ".join(str(reason).split()) or type(reason).__name__
        self.message = self.message or f"{title}: {text}"

    def compare(self, title: str, found: Tensor, wanted: Array, bound: Array) -> None:
        """Compare each element's error with its bound; a NaN is wrong."""
        got = to_array(found.cpu())
        if got.size == 0:
            return
        with np.errstate(all="ignore"):
            ratio = np.abs(got - wanted) / bound
        # Equal numbers are right where the bound is 0, too.
        ratio = np.where(got == wanted, 0.0, np.where(np.isnan(ratio), np.inf, ratio))
        index = np.unravel_index(ratio.argmax(), ratio.shape)
        worst, place = float(ratio[index]), [int(i) for i in index]
        if worst > self.error:
            self.error, self.place = worst, f"{title}, at {place}"
        if worst > 1:
            self.fail(title, f"{got[index]:.9g} for {wanted[index]:.9g} at {place}")


def check_subject(
    subject: Subject,
    cases: Sequence[tuple[str, Arguments]],
    dtype: torch.dtype,
    *,
    twice: bool = False,
) -> list[GradientCheck]:
    """The verdict on each argument over these cases, whose arguments are in float64.

    Args:
        subject: what is checked.
        cases: titles and arguments.
        dtype: that the arguments are rounded to.
        twice: whether to check second derivatives as well, in float64.
    """
    verdicts: dict[str, _Verdict] = {}
    with selected(subject) as function:
        for title, arguments in cases:
            if dtype == torch.float64:
                own = {name: value.to(subject.device) for name, value in arguments.items()}
                _check_by_differences(function, title, own, verdicts)
                if twice and title != TIED_MINIMA:
                    _check_twice(function, title, own, verdicts.setdefault(SECOND, _Verdict()))
            else:
                own = {name: value.to(dtype) for name, value in arguments.items()}
                _check_by_precision(function, title, own, subject.device, verdicts)
    return [
        GradientCheck(
            subject.backend,
            name,
            ok=not verdict.message,
            message=verdict.message,
            subject=subject,
            dtype=dtype,
            cases=verdict.cases,
            error=verdict.error,
            place=verdict.place,
        )
        for name, verdict in verdicts.items()
    ]


def check_gradients(backends: Sequence[str] | None = None, seed: int = 0) -> list[GradientCheck]:
    """Run gradcheck in float64 over every differentiable argument of ``free_energy``.

    Args:
        backends: names to check; None for all that can run here.
        seed: of the random cases.

    Returns:
        One verdict for each backend and argument, in that order.
    """
    if backends is None:
        backends = [row.name for row in lebm_kernels.backends() if row.available]
    cases = list(standard_cases(seed))
    return [
        check
        for backend in backends
        for check in check_subject(Subject(backend), cases, torch.float64)
    ]


def _check_by_differences(
    function: Callable[..., Tensor], title: str, arguments: Arguments, verdicts: dict[str, _Verdict]
) -> None:
    """Gradcheck for each argument, and the largest error of the gradient of sum(G F)."""
    for name, value in arguments.items():
        verdict = verdicts.setdefault(name, _Verdict())
        if not _differentiable(name, value):
            continue
        verdict.cases += 1
        of = partial(_with_argument, function, arguments, name)
        try:
            leaf = value.clone().requires_grad_()
            result = of(leaf)
            weights = _weights(result.shape).to(result.device)
            (found,) = torch.autograd.grad(result, leaf, weights)
            wanted = to_array(_differences(of, value, weights).cpu())
            verdict.compare(title, found, wanted, _ABSOLUTE + _RELATIVE * np.abs(wanted))
            torch.autograd.gradcheck(of, (leaf,), eps=_STEP, atol=_ABSOLUTE, rtol=_RELATIVE)
        except Exception as error:  # the verdict on this argument, whatever went wrong
            verdict.fail(title, error)


def _differences(of: Callable[[Tensor], Tensor], value: Tensor, weights: Tensor) -> Tensor:
    """The gradient of sum(weights of(value)) by central differences."""
    slopes = []
    for i in range(value.numel()):
        step = torch.zeros_like(value).view(-1)
        step[i] = _STEP
        step = step.view_as(value)
        change = of(value + step) - of(value - step)
        slopes.append((weights * change).sum() / (2 * _STEP))
    return torch.stack(slopes).view_as(value)


def _check_twice(
    function: Callable[..., Tensor], title: str, arguments: Arguments, verdict: _Verdict
) -> None:
    """Gradgradcheck in a random direction through all the arguments."""
    leaves = {
        name: value.clone().requires_grad_()
        for name, value in arguments.items()
        if _differentiable(name, value)
    }

    def of(*values: Tensor) -> Tensor:
        return function(**{**arguments, **dict(zip(leaves, values, strict=True))})

    verdict.cases += 1
    try:
        grad = _weights(of(*leaves.values()).shape).to(arguments["y"].device).requires_grad_()
        # gradgradcheck draws the direction from the global generator; the seed makes it repeatable.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            torch.autograd.gradgradcheck(
                of,
                tuple(leaves.values()),
                grad,
                eps=_STEP,
                atol=_ABSOLUTE,
                rtol=_RELATIVE,
                fast_mode=True,
            )
    except Exception as error:  # the verdict, whatever went wrong
        verdict.fail(title, error)


def _check_by_precision(
    function: Callable[..., Tensor],
    title: str,
    arguments: Arguments,
    device: str,
    verdicts: dict[str, _Verdict],
) -> None:
    """F and its gradients in the arguments' dtype, compared with the oracle."""
    for name in (VALUE, *arguments):
        verdicts.setdefault(name, _Verdict()).cases += 1
    pairs = every_pair(arguments)
    weights = _weights(pairs.index.shape).float()
    truth = exact(arguments, weights, pairs=pairs)
    single = {name: value.float() for name, value in arguments.items()}
    by_reference = _gradients(reference.free_energy, single, weights)
    try:
        own = {name: value.to(device) for name, value in arguments.items()}
        value = function(**own).detach()
        found = _gradients(function, own, weights.to(device))
    except Exception as error:  # the verdict on every argument, whatever went wrong
        for name in (VALUE, *arguments):
            verdicts[name].fail(title, error)
        return
    bound = promise.allowed(truth.magnitude, value.dtype)
    verdicts[VALUE].compare(title, value, truth.free_energy, bound)
    for name, wanted in truth.gradients.items():
        bound = promise.gradient_bound(
            wanted,
            to_array(by_reference[name]),
            truth.gradient_magnitudes[name],
            truth.gradient_noises[name],
            arguments[name].dtype,
            truth.gradient_remnants[name] + _UNDERFLOW,
        )
        verdicts[name].compare(title, found[name], wanted, bound)


def _gradients(function: Callable[..., Tensor], arguments: Arguments, grad: Tensor) -> Arguments:
    """The gradients of sum(grad F) by every argument."""
    leaves = {name: value.detach().requires_grad_() for name, value in arguments.items()}
    found = torch.autograd.grad(function(**leaves), list(leaves.values()), grad)
    return dict(zip(leaves, found, strict=True))


def _with_argument(
    function: Callable[..., Tensor], arguments: Arguments, name: str, value: Tensor
) -> Tensor:
    return function(**{**arguments, name: value})


def _weights(shape: tuple[int, ...]) -> Tensor:
    """A gradient that arrives at F, in (0.5, 1.5)."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu") + 0.5


def _differentiable(name: str, value: Tensor) -> bool:
    """Whether finite differences can be taken about this value."""
    return name != "beta" or bool(((value > _TOO_HOT) & (value < math.inf)).all())
