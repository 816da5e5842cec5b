"""Timing the free energy against other ways to compute it.

A :class:`Case` fixes the sizes and the inputs, a *provider* computes it, :func:`compare` first
checks each provider against float64 and then times all of them in interleaved rounds, so that a
machine whose speed drifts slows every provider alike.

Beside the providers, other work can be timed in the same rounds: that is how a share of the
machine's limit is had.

To add a provider, write a function ``prepare(case) -> step`` and name it in :func:`providers`.
A step takes the gradient arriving at F, ``[M]``, and returns ``(F, *gradients)``, the gradients in
the order of ``case.backward``. A provider that cannot run here raises :class:`NotAvailableError`.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import lebm_kernels

if TYPE_CHECKING:
    from rich.table import Table

Step = Callable[[Tensor], tuple[Tensor, ...]]
Prepare = Callable[["Case"], Step]

#: Arguments that a case can differentiate. Those beyond ``y`` and ``decoded`` are given to the
#: providers only where their gradient is asked for.
ARGUMENTS = ("y", "decoded", "scale", "log_weight", "latent_energy", "beta")

#: Where a case's points lie: all over the plane, or on and near a curve.
LAYOUTS = ("normal", "curve")

#: The half-axes of the ellipse that is the curve, and how far from it the queries are.
_CURVE = (1.0, 0.5)
_CURVE_NOISE = 0.01

#: Relative error beyond which a provider is reported as wrong and not timed.
TOLERANCE = {
    torch.float64: 1e-8,
    torch.float32: 1e-3,
    torch.bfloat16: 1e-1,
    torch.float16: 1e-1,
}

#: Pairs that the float64 check visits, and that the sliced reference holds at once.
_SLICE_PAIRS = 1 << 21

#: A timing shorter than this is repeated within one round until it is as long.
_SHORTEST_SECONDS = 0.01


class NotAvailableError(RuntimeError):
    """A provider cannot run here; the message says why."""


@dataclass(frozen=True)
class Case:
    """One problem to time: F of M queries over N latents of D numbers, and its gradients.

    Attributes:
        M: queries.
        N: latents.
        D: numbers in a query.
        beta: inverse temperature in [0, inf].
        dtype: of every input.
        backward: the arguments whose gradients are taken (see :data:`ARGUMENTS`); none: forward
            alone.
        device: where the inputs live.
        seed: of the random inputs.
        layout: ``normal``: queries and latents normal, independent; ``curve``: latents on an
            ellipse of half-axes 1 and 1/2, queries near it, both in random order (D = 2).

    Raises:
        ValueError: a size below 1, a beta outside [0, inf], an argument without a gradient, an
            unknown layout, a curve in other than two dimensions.
    """

    M: int
    N: int
    D: int
    beta: float = 1.0
    dtype: torch.dtype = torch.float32
    backward: tuple[str, ...] = ()
    device: str = "cpu"
    seed: int = 0
    layout: str = "normal"

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("M", "N", "D"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.beta >= 0:
            raise ValueError(f"beta must lie in [0, inf], got {self.beta}")
        if self.dtype not in TOLERANCE:
            raise ValueError(f"dtype must be one of {list(TOLERANCE)}, got {self.dtype}")
        for name in self.backward:
            if name not in ARGUMENTS:
                raise ValueError(f"backward must name arguments among {ARGUMENTS}, got {name!r}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {LAYOUTS}, got {self.layout!r}")
        if self.layout == "curve" and self.D != 2:
            raise ValueError(f"D must be 2 on a curve, got {self.D}")

    @property
    def direction(self) -> str:
        """``forward``, or ``forward + backward (y, ...)``."""
        return f"forward + backward ({', '.join(self.backward)})" if self.backward else "forward"

    def __str__(self) -> str:
        """Sizes, beta, dtype and any layout that is not the normal one; the direction apart."""
        dtype = str(self.dtype).removeprefix("torch.")
        layout = "" if self.layout == "normal" else f", {self.layout}"
        return f"M={self.M}, N={self.N}, D={self.D}, beta={self.beta:g}, {dtype}{layout}"

    def inputs(self) -> dict[str, Any]:
        """The arguments of :func:`lebm_kernels.free_energy`, equal at each call.

        ``y`` and ``decoded`` stand in no order that a method could profit from.
        """
        generator = torch.Generator().manual_seed(self.seed)
        shapes = {
            "y": (self.M, self.D),
            "decoded": (self.N, self.D),
            "scale": (self.D,),
            "log_weight": (self.N,),
            "latent_energy": (self.N,),
        }
        inputs: dict[str, Any] = {}
        for name, shape in shapes.items():
            # Drawn in float64 whether used or not: a case differs from another in what it says.
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            if name == "scale":
                value = 1 + 0.1 * value
            elif name in ("y", "decoded") and self.layout == "curve":
                # The direction of a normal point is uniform.
                axes = torch.tensor(_CURVE, dtype=torch.float64)
                value = axes * value / value.norm(dim=1, keepdim=True)
                if name == "y":
                    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
                    value = value + _CURVE_NOISE * noise
            if name in ("y", "decoded") or name in self.backward:
                value = value.to(self.device, self.dtype)
                inputs[name] = value.requires_grad_(name in self.backward)
        inputs["beta"] = self.beta
        if "beta" in self.backward:
            inputs["beta"] = torch.tensor(
                self.beta, dtype=self.dtype, device=self.device, requires_grad=True
            )
        return inputs

    def cotangent(self) -> Tensor:
        """A gradient that arrives at F, ``[M]``, in (0.5, 1.5)."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        value = torch.rand(self.M, generator=generator, dtype=torch.float64) + 0.5
        return value.to(self.device, self.dtype)


@dataclass
class Timing:
    """What one provider did with one case.

    Attributes:
        name: of the provider.
        seconds: the time of one step in each round; empty where it was not timed.
        error: largest error against float64, relative to the largest value, over F and the
            gradients; None where the provider could not run.
        failure: why it was not timed; empty where it was.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    error: float | None = None
    failure: str = ""

    @property
    def median(self) -> float:
        """The median time of a step in seconds; NaN where it was not timed."""
        return statistics.median(self.seconds) if self.seconds else math.nan

    @property
    def spread(self) -> float:
        """Width of the middle half of the rounds / median; NaN with fewer than two rounds."""
        if len(self.seconds) < 2:
            return math.nan
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median


@dataclass(frozen=True)
class Comparison:
    """The timings of one case, in the order of the providers; the first is the one compared.

    Attributes:
        case: what was computed.
        timings: of the providers.
        beside: of whatever else ran in the same rounds.
    """

    case: Case
    timings: tuple[Timing, ...]
    beside: tuple[Timing, ...] = ()

    def ratio(self, timing: Timing) -> float:
        """How many times longer this provider takes than the first."""
        return timing.median / self.timings[0].median

    def pairs_per_second(self, timing: Timing) -> float:
        """Pairs (query, latent) in a second."""
        return self.case.M * self.case.N / timing.median


# Providers: ours -------------------------------------------------------------------------------


def default_backend(device: str = "cpu") -> str:
    """The name of the backend that ``backend=None`` takes on this device."""
    return next(row.name for row in lebm_kernels.backends() if device in row.devices)


def _stepper(case: Case, compute: Callable[..., Tensor]) -> Step:
    """The step of anything that autograd differentiates."""
    inputs = case.inputs()
    leaves = [inputs[name] for name in case.backward]

    def step(cotangent: Tensor) -> tuple[Tensor, ...]:
        free_energy = compute(**inputs)
        if not leaves:
            return (free_energy,)
        gradients = torch.autograd.grad(free_energy, leaves, cotangent.to(free_energy.dtype))
        return (free_energy.detach(), *gradients)

    return step


def _prepare_backend(case: Case, backend: str) -> Step:
    status = next(row for row in lebm_kernels.backends() if row.name == backend)
    if case.device not in status.devices:
        raise NotAvailableError(status.reason)
    return _stepper(case, partial(lebm_kernels.free_energy, backend=backend))


def _prepare_reference(case: Case) -> Step:
    """The oracle, a slice of queries at a time: whole, a large case would not fit in memory."""
    inputs = case.inputs()
    y = inputs.pop("y")
    leaves = [inputs[name] for name in case.backward if name != "y"]
    rows = max(1, _SLICE_PAIRS // (case.N * case.D))

    def step(cotangent: Tensor) -> tuple[Tensor, ...]:
        values, grad_y = [], []
        sums = [torch.zeros_like(leaf) for leaf in leaves]
        for start in range(0, case.M, rows):
            part = y[start : start + rows].detach().requires_grad_(y.requires_grad)
            value = lebm_kernels.free_energy(part, backend="reference", **inputs)
            values.append(value.detach())
            if case.backward:
                incoming = cotangent[start : start + rows].to(value.dtype)
                wanted = [part, *leaves] if y.requires_grad else leaves
                gradients = list(torch.autograd.grad(value, wanted, incoming))
                if y.requires_grad:
                    grad_y.append(gradients.pop(0))
                for total, gradient in zip(sums, gradients, strict=True):
                    total += gradient
        others = iter(sums)
        gradients = [torch.cat(grad_y) if n == "y" else next(others) for n in case.backward]
        return (torch.cat(values), *gradients)

    return step


# Providers: peers ------------------------------------------------------------------------------


def _expanded_energy(y: Tensor, decoded: Tensor) -> Tensor:
    square_y = y.square().sum(-1, keepdim=True)
    return square_y - 2 * (y @ decoded.mT) + decoded.square().sum(-1)


def _materialised_energy(y: Tensor, decoded: Tensor) -> Tensor:
    return (y.unsqueeze(-2) - decoded).square().sum(-1)


def _cdist_energy(y: Tensor, decoded: Tensor) -> Tensor:
    return torch.cdist(y, decoded).square()


def _unrolled_energy(y: Tensor, decoded: Tensor) -> Tensor:
    energy = (y[:, None, 0] - decoded[:, 0]).square()
    for d in range(1, y.shape[-1]):
        energy = energy + (y[:, None, d] - decoded[:, d]).square()
    return energy


def _peer(
    energy_form: Callable[[Tensor, Tensor], Tensor],
    y: Tensor,
    decoded: Tensor,
    beta: float | Tensor,
    scale: Tensor | None = None,
    log_weight: Tensor | None = None,
    latent_energy: Tensor | None = None,
) -> Tensor:
    """F as one writes it in plain PyTorch, over a way to write the squared distances."""
    energy = energy_form(y, decoded if scale is None else scale * decoded)
    if latent_energy is not None:
        energy = energy + latent_energy
    # A tensor's value is not looked at, as nobody would in a compiled function: it must be warm.
    number = None if isinstance(beta, Tensor) else beta
    if number == math.inf:
        return energy.amin(-1)
    if number == 0:
        if log_weight is None:
            return energy.mean(-1)
        return (torch.softmax(log_weight, -1) * energy).sum(-1)
    if log_weight is None:
        return (math.log(energy.shape[-1]) - torch.logsumexp(-beta * energy, -1)) / beta
    exponent = log_weight - beta * energy
    return (torch.logsumexp(log_weight, -1) - torch.logsumexp(exponent, -1)) / beta


def _prepare_eager(case: Case, energy_form: Callable[[Tensor, Tensor], Tensor]) -> Step:
    return _stepper(case, partial(_peer, energy_form))


def _prepare_compiled(case: Case, energy_form: Callable[[Tensor, Tensor], Tensor]) -> Step:
    # Without the reset an earlier case would make this one's sizes dynamic, hence slower;
    # without fullgraph, whatever fails to compile would run eagerly and go unnoticed.
    torch.compiler.reset()
    compiled = torch.compile(_peer, fullgraph=True, dynamic=False)
    step = _stepper(case, partial(compiled, energy_form))
    _build(step, case)
    return step


def _build(step: Step, case: Case) -> None:
    """Take a step, in which a provider compiles its code."""
    try:
        step(case.cotangent())
    except Exception as error:  # of many kinds: no compiler, a broken one, an unknown construct
        raise NotAvailableError(_one_line(error)) from error


#: What KeOps has to be told to compile for this processor, and without care for infinities.
_KEOPS_FLAGS = "-march=native -ffast-math"


def _keops() -> Any:
    """``pykeops.torch.Genred``, compiling with :data:`_KEOPS_FLAGS`."""
    # KeOps reads its flags, and whether to tell what it does, when it is imported.
    told = {"CXXFLAGS": _KEOPS_FLAGS, "KEOPS_VERBOSE": "0", "PYKEOPS_VERBOSE": "0"}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        import pykeops
        from pykeops.torch import Genred
    except ImportError as error:
        raise NotAvailableError("pykeops is not installed") from error
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    if _KEOPS_FLAGS not in pykeops.config.pykeops_base.get_cpp_flags():
        raise NotAvailableError(f"pykeops was imported before, without CXXFLAGS={_KEOPS_FLAGS!r}")
    return Genred


def _prepare_keops(case: Case) -> Step:
    """The sum of exponentials as a KeOps reduction: code compiled for the formula, and tiled."""
    genred = _keops()
    if case.beta in (0, math.inf):
        raise NotAvailableError(f"no reduction of KeOps is written here for beta = {case.beta:g}")
    weighted = "log_weight" in case.backward or "latent_energy" in case.backward
    names = ["b = Pm(1)", f"x = Vi({case.D})", f"z = Vj({case.D})"]
    reduce = genred(
        "w - b * SqDist(x, z)" if weighted else "- b * SqDist(x, z)",
        [*names, "w = Vj(1)"] if weighted else names,
        reduction_op="LogSumExp",
        axis=1,
    )

    def compute(
        y: Tensor,
        decoded: Tensor,
        beta: float | Tensor,
        scale: Tensor | None = None,
        log_weight: Tensor | None = None,
        latent_energy: Tensor | None = None,
    ) -> Tensor:
        scaled = decoded if scale is None else scale * decoded
        arguments = [torch.as_tensor(beta, dtype=y.dtype, device=y.device).reshape(1), y, scaled]
        log_sum = math.log(case.N) if log_weight is None else torch.logsumexp(log_weight, 0)
        if weighted:
            exponent = y.new_zeros(case.N) if log_weight is None else log_weight
            if latent_energy is not None:
                exponent = exponent - beta * latent_energy
            arguments.append(exponent[:, None])
        return (log_sum - reduce(*arguments).squeeze(1)) / beta

    step = _stepper(case, compute)
    _build(step, case)
    # GCC makes a library of -ffast-math turn denormal numbers off in whoever loads it.
    torch.set_flush_denormal(False)
    return step


def providers(device: str = "cpu") -> dict[str, Prepare]:
    """Every provider by name: the device's default backend, our others, then the peers."""
    names = [row.name for row in lebm_kernels.backends() if row.name != "reference"]
    default = default_backend(device)
    names.sort(key=lambda name: name != default)
    return {
        **{name: partial(_prepare_backend, backend=name) for name in names},
        "reference": _prepare_reference,
        "eager, expansion (mm)": partial(_prepare_eager, energy_form=_expanded_energy),
        "eager, differences": partial(_prepare_eager, energy_form=_materialised_energy),
        "eager, cdist": partial(_prepare_eager, energy_form=_cdist_energy),
        "torch.compile, expansion (mm)": partial(_prepare_compiled, energy_form=_expanded_energy),
        "torch.compile, unrolled": partial(_prepare_compiled, energy_form=_unrolled_energy),
        "KeOps": _prepare_keops,
    }


# The check and the timer -----------------------------------------------------------------------


class _Truth:
    """The case in float64 on the same rounded inputs, for as many queries as are soon done.

    The gradient that arrives at the other queries is zero, so that the gradients which sum over
    queries can be checked as well.
    """

    def __init__(self, case: Case) -> None:
        self.rows = min(case.M, max(1, _SLICE_PAIRS // case.N))
        self.cotangent = case.cotangent()
        self.cotangent[self.rows :] = 0
        inputs: dict[str, Any] = {
            name: value.detach().double().requires_grad_(value.requires_grad)
            if isinstance(value, Tensor)
            else value
            for name, value in case.inputs().items()
        }
        y = inputs.pop("y")
        value = lebm_kernels.free_energy(y[: self.rows], backend="reference", **inputs)
        self.free_energy = value.detach()
        self.gradients: tuple[Tensor, ...] = ()
        if case.backward:
            leaves = [y if name == "y" else inputs[name] for name in case.backward]
            cotangent = self.cotangent[: self.rows].double()
            self.gradients = torch.autograd.grad(value, leaves, cotangent)

    def error(self, step: Step) -> float:
        """The largest relative error of F and the gradients; NaN where any of them is NaN."""
        free_energy, *gradients = step(self.cotangent)
        found = (free_energy[: self.rows], *gradients)
        expected = (self.free_energy, *self.gradients)
        errors = [
            float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-300))
            for a, b in zip(found, expected, strict=True)
        ]
        return math.nan if any(math.isnan(e) for e in errors) else max(errors)


def _one_line(error: BaseException) -> str:
    """The first line of a message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _time(step: Step, cotangent: Tensor, repeats: int) -> float:
    """Seconds of one step, averaged over consecutive ones."""
    synchronise = torch.cuda.synchronize if cotangent.is_cuda else (lambda: None)
    synchronise()
    start = time.perf_counter()
    for _ in range(repeats):
        step(cotangent)
    synchronise()
    return (time.perf_counter() - start) / repeats


def _call(work: Callable[[], object], cotangent: Tensor) -> tuple[Tensor, ...]:
    """A step of work that is no provider."""
    work()
    return ()


def compare(
    case: Case,
    names: Sequence[str] | None = None,
    *,
    rounds: int = 5,
    budget: float = math.inf,
    patience: float = math.inf,
    beside: Mapping[str, Callable[[], object]] | None = None,
    notify: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Check the providers against float64, then time them in interleaved rounds.

    Each round times each provider once, beginning one further than the round before. A provider
    that cannot run, or whose error exceeds :data:`TOLERANCE`, is reported and not timed.

    Args:
        case: what to compute.
        names: of :func:`providers`, the one to compare with first; None: all of them.
        rounds: how many.
        budget: seconds after which no further round begins; the first always completes.
        patience: seconds; a provider that took longer in the check is not run again, and what it
            took there is its time.
        beside: other work to time in the same rounds, by name; it is not checked.
        notify: told, in a line, what happens next.

    Raises:
        ValueError: an unknown name, or fewer than one round.
    """
    known = providers(case.device)
    names = list(known) if names is None else list(names)
    for name in names:
        if name not in known:
            raise ValueError(f"names must be among {list(known)}, got {name!r}")
    if not names:
        raise ValueError("names must hold at least one provider, got none")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")

    truth = _Truth(case)
    cotangent = case.cotangent()
    timings = tuple(Timing(name) for name in names)
    running: list[tuple[Timing, Step, int]] = []

    def join(timing: Timing, step: Step, once: float) -> None:
        running.append((timing, step, max(1, math.ceil(_SHORTEST_SECONDS / once))))

    for timing in timings:
        notify(f"checking {timing.name}")
        try:
            step = known[timing.name](case)
            start = time.perf_counter()
            timing.error = truth.error(step)
            once = time.perf_counter() - start
            if once < _SHORTEST_SECONDS:  # the check has warmed it up, and was part of the time
                once = _time(step, cotangent, 1)
        except NotAvailableError as error:
            timing.failure = f"not available: {error}"
        except Exception as error:  # whatever stops one provider must not stop the others
            timing.failure = f"failed: {_one_line(error)}"
        else:
            if not timing.error <= TOLERANCE[case.dtype]:
                timing.failure = f"wrong: relative error {timing.error:.1e}"
            elif once > patience:
                timing.seconds.append(once)
            else:
                join(timing, step, once)
    others = tuple(Timing(name) for name in beside or {})
    for timing, work in zip(others, (beside or {}).values(), strict=True):
        notify(f"warming up {timing.name}")
        join(timing, partial(_call, work), _time(partial(_call, work), cotangent, 1))

    deadline = time.perf_counter() + budget
    for turn in range(rounds):
        if turn > 0 and time.perf_counter() > deadline:
            break
        notify(f"round {turn + 1} of {rounds}")
        shift = turn % max(1, len(running))
        for timing, step, repeats in running[shift:] + running[:shift]:
            timing.seconds.append(_time(step, cotangent, repeats))
    return Comparison(case, timings, others)


# The table -------------------------------------------------------------------------------------


def format_seconds(seconds: float) -> str:
    """Three digits and a unit: ``12.3 ms``."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 0.9995 or unit == "us":
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError("unreachable")


def format_pairs(rate: float) -> str:
    """Three digits and a prefix: ``1.23 G/s``."""
    for prefix, factor in (("G", 1e-9), ("M", 1e-6), ("k", 1e-3)):
        if rate * factor >= 0.9995 or prefix == "k":
            return f"{rate * factor:.3g} {prefix}/s"
    raise AssertionError("unreachable")


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """The comparisons one under the other; below them, who was not timed and why (needs rich)."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    first = comparisons[0].case
    table = Table(title=str(first), box=box.SIMPLE_HEAD, caption_justify="left")
    table.add_column("", min_width=max(len(t.name) for t in comparisons[0].timings) + 2)
    for title in ("median", "spread", "pairs", "ratio", "error"):
        table.add_column(title, justify="right", no_wrap=True)
    missing: dict[str, None] = {}
    for comparison in comparisons:
        table.add_section()
        case = comparison.case
        own = [part for part in str(case).split(", ") if part not in str(first).split(", ")]
        title = ", ".join([case.direction, *own])
        table.add_row(f"[bold]{escape(title)}[/bold]")
        for timing in comparison.timings:
            if timing.failure:
                missing[f"{timing.name}: {timing.failure}"] = None
            else:
                table.add_row(f"  {escape(timing.name)}", *_cells(comparison, timing))
    table.caption = escape("\n".join(missing))
    return table


def _cells(comparison: Comparison, timing: Timing) -> list[str]:
    ratio = comparison.ratio(timing)
    return [
        format_seconds(timing.median),
        "-" if math.isnan(timing.spread) else f"{timing.spread:.0%}",
        format_pairs(comparison.pairs_per_second(timing)),
        "-" if math.isnan(ratio) else f"{ratio:.2f}x",
        f"{timing.error:.0e}",
    ]
