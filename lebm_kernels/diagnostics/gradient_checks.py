"""Are F and its derivatives right, for every backend that can run here?

In float64 the gradients are held against finite differences (gradcheck), in the other dtypes F and
its gradients against float64 on the same rounded inputs, by the promise on accuracy (README.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

import lebm_kernels
from lebm_kernels import reference
from lebm_kernels.backends import native

#: What a dtype other than float64 is checked for beside the gradients.
VALUE = "F"

#: The second derivatives, all arguments' at once, mixed ones included.
SECOND = "second derivatives"

#: What gradcheck allows, and the step of its differences.
_ABSOLUTE, _RELATIVE, _STEP = 1e-5, 1e-3, 1e-6

#: A beta that finite differences cannot be taken about: one side leaves [0, inf].
_TOO_HOT = 1e-5

#: Smaller than this, a probability in float32 counts as none: kernels end their exponentials at
#: 2^-125, above the smallest normal number.
_UNDERFLOW = 2.0**-124

#: The case whose gradient jumps: a minimum of equals.
_ONCE = "ties, beta inf"

Arguments = dict[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """What is checked: a backend, on an instruction set of the native one where there are several.

    Attributes:
        backend: its name.
        instruction_set: of ``native`` on CPUs; None: the one in use.
        device: where its tensors live.
    """

    backend: str
    instruction_set: str | None = None
    device: str = "cpu"

    def __str__(self) -> str:
        """``native-avx2``, ``chunked``, ``triton-cuda``."""
        device = None if self.device == "cpu" else self.device
        return "-".join(filter(None, (self.backend, self.instruction_set, device)))


@dataclass(frozen=True)
class GradientCheck:
    """The verdict on one argument of one backend.

    Attributes:
        backend: its name.
        argument: the argument of :func:`lebm_kernels.free_energy` differentiated, :data:`VALUE`
            or :data:`SECOND`.
        ok: whether each case passed.
        message: where and how it failed first; empty where it passed.
        subject: the backend with its instruction set.
        dtype: of the arguments.
        cases: how many were checked.
        error: the largest error, as a share of what is allowed there.
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


def subjects(backends: Sequence[str] | None = None) -> list[Subject]:
    """Every backend that can run here, on each of its devices and instruction sets.

    Args:
        backends: names of the only ones to take; one that cannot run is taken, and fails.
    """
    found = []
    known = {row.name: row for row in lebm_kernels.backends()}
    names = [n for n, row in known.items() if row.available] if backends is None else backends
    for name in names:
        devices = known[name].devices if name in known and known[name].available else ("cpu",)
        for device in devices:
            sets: list[str | None] = [None]
            if name == "native" and device == "cpu" and "cpu" in known[name].devices:
                sets = [*native.instruction_sets()]
            found += [Subject(name, instruction_set, device) for instruction_set in sets]
    return found


# The cases -----------------------------------------------------------------------------------


def _problem(generator: torch.Generator, M: int, N: int, D: int, beta: float) -> Arguments:
    """Every argument at once, in float64, normal or near to it."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "y": normal(M, D),
        "decoded": normal(N, D),
        "beta": beta * (1 + 0.1 * normal(M).abs()),
        "scale": 1 + 0.3 * normal(D),
        "log_weight": normal(N),
        "latent_energy": normal(N).abs(),
    }


def standard_cases(seed: int) -> Iterator[tuple[str, Arguments]]:
    """Hot, warm and cold, a scale shared or one a query."""
    generator = torch.Generator().manual_seed(seed)
    for title, beta in (
        ("hot, shared scale", 1e-2),
        ("warm, a scale a query", 0.8),
        ("cold, shared scale", 20.0),
    ):
        arguments = _problem(generator, 3, 5, 2, beta)
        if "query" in title:
            noise = torch.randn(3, 2, generator=generator, dtype=torch.float64)
            arguments["scale"] = 1 + 0.3 * noise
        yield title, arguments


def random_cases(seed: int, count: int) -> Iterator[tuple[str, Arguments]]:
    """Sizes up to 4 queries, 9 latents and 5 dimensions, beta from 1e-3 to 1e3."""
    generator = torch.Generator().manual_seed(seed + 1)
    for number in range(count):
        M, N, D = (int(torch.randint(1, most + 1, (), generator=generator)) for most in (4, 9, 5))
        beta = 10.0 ** (6 * float(torch.rand((), generator=generator)) - 3)
        arguments = _problem(generator, M, N, D, beta)
        yield f"random {number}: {M} x {N}, D {D}, beta {beta:.2g}", arguments


def nasty_cases(seed: int) -> Iterator[tuple[str, Arguments]]:
    """Where kernels go wrong: far, offset, tied, dropped, batched, and the ends of beta."""
    generator = torch.Generator().manual_seed(seed + 2)

    def problem(beta: float) -> Arguments:
        return _problem(generator, 3, 6, 2, beta)

    far = problem(1.0)
    far["y"] = far["y"] + 30
    yield "far queries", far
    offset = problem(1.0)
    offset["y"], offset["decoded"] = offset["y"] + 100, offset["decoded"] + 100
    offset["scale"] = torch.ones_like(offset["scale"])
    yield "data offset by 100", offset
    for beta in (1.0, math.inf):
        tied = problem(beta)
        # Two and no more: at three, the difference quotient of a minimum is not its gradient.
        for name in ("decoded", "log_weight", "latent_energy"):
            tied[name] = torch.cat((tied[name], tied[name]))
        yield f"ties, beta {beta:g}", tied
    dropped = problem(1.0)
    dropped["log_weight"][::2] = -math.inf
    yield "dropped latents", dropped
    for beta in (0.0, 1e-7, 1e4, math.inf):
        yield f"beta {beta:g}", problem(beta)
    batch = problem(1.0)
    shift = torch.randn(3, 1, 1, 1, generator=generator, dtype=torch.float64)
    batch["y"] = torch.stack((batch["y"], batch["y"] + 0.5))
    batch["decoded"] = batch["decoded"] + shift
    yield "batch", batch


# The checks ----------------------------------------------------------------------------------


@contextmanager
def _selected(subject: Subject) -> Iterator[Callable[..., Tensor]]:
    """The free energy by that backend, while its instruction set is in use."""
    function = partial(lebm_kernels.free_energy, backend=subject.backend)
    if subject.instruction_set is None:
        yield function
        return
    native.force_instruction_set(subject.instruction_set)
    try:
        yield function
    finally:
        native.force_instruction_set(None)


def _with_argument(
    function: Callable[..., Tensor], arguments: Arguments, name: str, value: Tensor
) -> Tensor:
    return function(**{**arguments, name: value})


def _weights(shape: torch.Size) -> Tensor:
    """A gradient that arrives at F, in (0.5, 1.5)."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5


def _differentiable(name: str, value: Tensor) -> bool:
    """Whether finite differences can be taken about this value."""
    return name != "beta" or bool(((value > _TOO_HOT) & (value < math.inf)).all())


class _Verdict:
    """The checks of one argument, case by case."""

    def __init__(self) -> None:
        self.message = ""
        self.cases = 0
        self.error = 0.0
        self.place = ""

    def fail(self, title: str, reason: str) -> None:
        self.message = self.message or f"{title}: {reason}"

    def compare(self, title: str, found: Tensor, wanted: Tensor, bound: Tensor) -> None:
        """Hold the error against what is allowed, element by element; a NaN is wrong."""
        share = (found.double() - wanted).abs() / bound
        # 0 / 0: no error where none is allowed.
        share = torch.where(found.double() == wanted, 0.0, share.nan_to_num(nan=math.inf))
        if share.numel() == 0:
            return
        place = int(share.argmax())
        worst = float(share.flatten()[place])
        index = [int(i) for i in torch.unravel_index(torch.tensor(place), share.shape)]
        if worst > self.error:
            self.error, self.place = worst, f"{title}, at {index}"
        if worst > 1:
            got, right = float(found.flatten()[place]), float(wanted.flatten()[place])
            self.fail(title, f"{got:.9g} for {right:.9g} at {index}")


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
            slopes = []
            for i in range(value.numel()):
                step = torch.zeros_like(value).view(-1)
                step[i] = _STEP
                step = step.view_as(value)
                change = of(value + step) - of(value - step)
                slopes.append((weights * change).sum() / (2 * _STEP))
            wanted = torch.stack(slopes).view_as(value)
            verdict.compare(title, found, wanted, _ABSOLUTE + _RELATIVE * wanted.abs())
            torch.autograd.gradcheck(of, (leaf,), eps=_STEP, atol=_ABSOLUTE, rtol=_RELATIVE)
        except Exception as error:  # a verdict on this argument, whatever went wrong
            verdict.fail(title, " ".join(str(error).split()) or type(error).__name__)


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
        # The direction is drawn from the global generator: a seed must repeat it.
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
    except Exception as error:  # a verdict, whatever went wrong
        verdict.fail(title, " ".join(str(error).split()) or type(error).__name__)


def _check_by_precision(
    function: Callable[..., Tensor],
    title: str,
    arguments: Arguments,
    device: str,
    verdicts: dict[str, _Verdict],
) -> None:
    """F and its gradients in the arguments' dtype, against float64 on the same inputs."""
    dtype = arguments["y"].dtype
    truth = {name: value.double() for name, value in arguments.items()}
    sizes = Sizes(truth)
    weights = _weights(sizes.free_energy.shape).float()
    right = _gradients(reference.free_energy, truth, weights.double())
    single = {name: value.float() for name, value in arguments.items()}
    by_reference = _gradients(reference.free_energy, single, weights)
    eps = torch.finfo(torch.float32).eps
    for name in (VALUE, *arguments):
        verdicts.setdefault(name, _Verdict()).cases += 1
    try:
        own = {name: value.to(device) for name, value in arguments.items()}
        value = function(**own).detach().cpu()
        found = _gradients(function, own, weights.to(device))
    except Exception as error:  # a verdict on every argument, whatever went wrong
        for name in (VALUE, *arguments):
            verdicts[name].fail(title, " ".join(str(error).split()) or type(error).__name__)
        return
    verdicts[VALUE].compare(title, value, sizes.free_energy, 16 * eps * sizes.magnitude)
    for name, (magnitude, noise) in sizes.of_gradients(weights.double()).items():
        slip = (by_reference[name].double() - right[name]).abs().max()
        bound = 2 * torch.maximum(slip, eps / 2 * noise) + 16 * eps * magnitude + _UNDERFLOW
        if dtype != torch.float32:
            half = torch.finfo(dtype)
            bound = bound + half.eps * right[name].abs() + half.smallest_normal
            bound = torch.where(right[name].abs() > half.max, math.inf, bound)
        verdicts[name].compare(title, found[name].cpu(), right[name], bound)


def _gradients(function: Callable[..., Tensor], arguments: Arguments, grad: Tensor) -> Arguments:
    """The gradients of sum(grad F) by every argument."""
    leaves = {name: value.detach().requires_grad_() for name, value in arguments.items()}
    found = torch.autograd.grad(function(**leaves), list(leaves.values()), grad)
    return dict(zip(leaves, found, strict=True))


class Sizes:
    """How large the terms are that make up F and its gradients: what the promise is measured by.

    Args:
        arguments: all six, in float64.

    Attributes:
        free_energy: F.
        magnitude: the promise's scale of F.
    """

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        y, g, s = (arguments[name] for name in ("y", "decoded", "scale"))
        self._beta = arguments["beta"].unsqueeze(-1)
        prediction = s.unsqueeze(-2) * g.unsqueeze(-3)
        self._difference = y.unsqueeze(-2) - prediction
        r = arguments["latent_energy"].unsqueeze(-2)
        energy = self._difference.square().sum(-1) + r
        # The product s g is rounded before anything is subtracted from it.
        self._bulk = self._difference.square().sum(-1) + r.abs()
        self._bulk = self._bulk + (self._difference * prediction).abs().sum(-1)
        log_w = torch.log_softmax(arguments["log_weight"], -1).unsqueeze(-2)
        self._log_w = log_w.expand_as(energy)
        self._w = self._log_w.exp()
        leaf = energy.detach().requires_grad_()
        value = reference.softmin(leaf, arguments["beta"], arguments["log_weight"])
        (self._p,) = torch.autograd.grad(value.sum(), leaf)
        self.free_energy: Tensor = value.detach()
        self._above = energy - self.free_energy.unsqueeze(-1)

        kept = self._w > 0
        least, index = torch.where(kept, energy, math.inf).min(-1)
        nearest = index.unsqueeze(-1)
        log_size = -self._log_w.gather(-1, nearest).squeeze(-1)
        log_size = log_size.clamp_min(math.log(energy.shape[-1]))
        spread = torch.where(kept, self._w * energy, 0.0).sum(-1) - least
        at_least = self._bulk.gather(-1, nearest).squeeze(-1)
        by_beta = (1 + log_size) / self._beta.squeeze(-1)
        self.magnitude: Tensor = at_least + torch.minimum(spread, by_beta)

    def of_gradients(self, grad: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """By argument: the sum of a gradient's absolute terms, and what E, wrong by 1, makes of p.

        Args:
            grad: that arrives at F.
        """
        p, w, above, bulk, beta = self._p, self._w, self._above.abs(), self._bulk, self._beta
        G = grad.abs().unsqueeze(-1)
        cold = beta == math.inf
        finite = torch.where(cold, 0.0, beta)
        shaken = bulk + (p * bulk).sum(-1, keepdim=True)
        jitter = finite * shaken
        # p comes from exp(log w - ...): a log-weight of 100, rounded, moves it by 100 eps.
        blur = 1 + torch.where(w > 0, self._log_w.abs(), 0.0) / 16
        pull = G.unsqueeze(-1) * 2 * (p.unsqueeze(-1) * self._difference).abs()
        g, s = self._arguments["decoded"].unsqueeze(-3), self._arguments["scale"].unsqueeze(-2)
        by_weight = torch.fmin((p + w) / beta, torch.maximum(w, p) * (above + bulk))
        hot = (finite * above <= 0.5).all(-1, keepdim=True) & ~cold
        in_general = ((p * blur * bulk).sum(-1) + self.magnitude).unsqueeze(-1) / beta
        squares = ((w + p) * above * bulk).sum(-1, keepdim=True)
        by_beta = torch.where(hot, squares, in_general)
        beta_noise = torch.where(cold, 0.0, p * above * shaken).sum(-1, keepdim=True)
        wide = jitter.unsqueeze(-1)
        terms = {
            "y": (pull, pull * wide, -2),
            "decoded": (pull * s.abs(), pull * s.abs() * wide, -3),
            "beta": (G * by_beta, G * beta_noise, -1),
            "scale": (pull * g.abs(), pull * g.abs() * wide, -2),
            "log_weight": (G * blur * by_weight, G * torch.where(cold, 0.0, p * shaken), -2),
            "latent_energy": (G * p, G * p * jitter, -2),
        }
        return {
            name: (
                magnitude.sum(dim).sum_to_size(self._arguments[name].shape),
                noise.sum(dim).sum_to_size(self._arguments[name].shape),
            )
            for name, (magnitude, noise, dim) in terms.items()
        }


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
    with _selected(subject) as function:
        for title, arguments in cases:
            if dtype == torch.float64:
                own = {name: value.to(subject.device) for name, value in arguments.items()}
                _check_by_differences(function, title, own, verdicts)
                if twice and not title.startswith(_ONCE):
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
        backends: names to check; None: all that can run here.
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


# Accuracy ------------------------------------------------------------------------------------

#: Where the accuracy is told, from hot to cold.
BETAS = (0.0, *(10.0**k for k in range(-12, 13)), math.inf)


def accuracy(subject: Subject | None, seed: int = 0) -> list[float]:
    """The largest error of F in float32 at each of :data:`BETAS`, in ulp of the promise's scale.

    The queries are near, far and, with the latents, offset by 100.

    Args:
        subject: whose F; None: the expansion |y|^2 - 2 y g + |g|^2 in plain PyTorch.
        seed: of the data.
    """
    generator = torch.Generator().manual_seed(seed)
    errors = []
    eps = torch.finfo(torch.float32).eps
    problems = []
    for far, offset in ((0.0, 0.0), (30.0, 0.0), (0.0, 100.0)):
        y = torch.randn(64, 2, generator=generator) + far + offset
        decoded = torch.randn(257, 2, generator=generator) + offset
        problems.append((y, decoded))
    for beta in BETAS:
        worst = 0.0
        for y, decoded in problems:
            one = {
                "y": y.double(),
                "decoded": decoded.double(),
                "beta": torch.full((len(y),), beta, dtype=torch.float64),
            }
            right, scale = _value_and_scale(**one)
            if subject is None:
                found = _expanded(y, decoded, beta)
            else:
                with _selected(subject) as function:
                    own = (y.to(subject.device), decoded.to(subject.device), beta)
                    found = function(*own).cpu()
            error = (found.double() - right).abs() / (eps * scale)
            worst = max(worst, float(error.nan_to_num(nan=math.inf).max()))
        errors.append(worst)
    return errors


def _value_and_scale(y: Tensor, decoded: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """F in float64 and the scale of its promise, without scales and weights."""
    energy = reference.energies(y, decoded)
    least = energy.amin(-1)
    spread = torch.minimum(energy.mean(-1) - least, (1 + math.log(energy.shape[-1])) / beta)
    return reference.free_energy(y, decoded, beta), least + spread


def _expanded(y: Tensor, decoded: Tensor, beta: float) -> Tensor:
    energy = y.square().sum(-1, keepdim=True) - 2 * y @ decoded.T + decoded.square().sum(-1)
    if beta == math.inf:
        return energy.amin(-1)
    if beta == 0:
        return energy.mean(-1)
    return (math.log(energy.shape[-1]) - torch.logsumexp(-beta * energy, -1)) / beta
