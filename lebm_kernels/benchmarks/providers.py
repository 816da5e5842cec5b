"""Providers of free energies: our backends, and peers to compare them with.

A *provider* is a function ``prepare(case) -> step``; :func:`providers` lists them by name. A step
takes the incoming gradient of F, ``[M]``, and returns ``(F, *gradients)``, with the gradients in
the order of ``case.backward``. A provider that cannot run here raises :class:`NotAvailableError`.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

import lebm_kernels
from lebm_kernels.backends import preferred
from lebm_kernels.benchmarks.cases import Case
from lebm_kernels.torch_internals import attention

Step = Callable[[Tensor], tuple[Tensor, ...]]
Prepare = Callable[[Case], Step]

#: Differences y - g, pairs times dimensions, that the check in float64 holds, and the sliced
#: reference at once.
SLICE_NUMBERS = 1 << 23


class NotAvailableError(RuntimeError):
    """A provider cannot run here; the message says why."""


def one_line(error: BaseException) -> str:
    """The first non-empty line of the error's message, or else its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# Providers: ours -------------------------------------------------------------------------------


def stepper(case: Case, compute: Callable[..., Tensor]) -> Step:
    """The step of a function that autograd differentiates."""
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
    step = stepper(case, partial(lebm_kernels.free_energy, backend=backend))
    if backend == "triton":
        step(case.cotangent())  # compiles the kernels
    return step


def _prepare_reference(case: Case) -> Step:
    """The reference, on slices of queries, because a large case would not fit in memory."""
    inputs = case.inputs()
    y = inputs.pop("y")
    leaves = [inputs[name] for name in case.backward if name != "y"]
    slice_size = max(1, SLICE_NUMBERS // (case.N * case.D))

    def step(cotangent: Tensor) -> tuple[Tensor, ...]:
        values, grad_y = [], []
        sums = [torch.zeros_like(leaf) for leaf in leaves]
        for start in range(0, case.M, slice_size):
            part = y[start : start + slice_size].detach().requires_grad_(y.requires_grad)
            value = lebm_kernels.free_energy(part, backend="reference", **inputs)
            values.append(value.detach())
            if case.backward:
                incoming = cotangent[start : start + slice_size].to(value.dtype)
                differentiated = [part, *leaves] if y.requires_grad else leaves
                gradients = list(torch.autograd.grad(value, differentiated, incoming))
                if y.requires_grad:
                    grad_y.append(gradients.pop(0))
                for total, gradient in zip(sums, gradients, strict=True):
                    total += gradient
        others = iter(sums)
        gradients = [torch.cat(grad_y) if n == "y" else next(others) for n in case.backward]
        return (torch.cat(values), *gradients)

    return step


# Providers: peers ------------------------------------------------------------------------------


def _imported(module: str, distribution: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if importlib.util.find_spec(module.partition(".")[0]) is not None:
            raise NotAvailableError(
                f"this version of {distribution} has no {module}, or cannot import it"
            ) from error
        raise NotAvailableError(f"{distribution} is not installed") from error


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
    """F in plain PyTorch, with one of the functions above for the squared distances."""
    energy = energy_form(y, decoded if scale is None else scale * decoded)
    if latent_energy is not None:
        energy = energy + latent_energy
    # The value of a tensor is not inspected, because that would break a compiled function. A tensor
    # must therefore be warm.
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
    return stepper(case, partial(_peer, energy_form))


def _prepare_compiled(case: Case, energy_form: Callable[[Tensor, Tensor], Tensor]) -> Step:
    # Without the reset, an earlier case would make this case's sizes dynamic, which is slower.
    # Without fullgraph, code that fails to compile would silently run eagerly.
    torch.compiler.reset()
    compiled = torch.compile(_peer, fullgraph=True, dynamic=False)
    step = stepper(case, partial(compiled, energy_form))
    _build(step, case)
    return step


def _build(step: Step, case: Case) -> None:
    """Take a first step, in which the provider compiles its code."""
    try:
        step(case.cotangent())
    except Exception as error:  # such as no compiler, a broken one, or unsupported code
        raise NotAvailableError(one_line(error)) from error


#: Compiler flags for KeOps: for this processor, and for speed at the cost of infinities.
_KEOPS_FLAGS = "-march=native -ffast-math"


def _keops() -> Any:
    """``pykeops.torch.Genred``, compiling with :data:`_KEOPS_FLAGS`."""
    # KeOps reads its flags and its verbosity from the environment when it is imported.
    variables = {"CXXFLAGS": _KEOPS_FLAGS, "KEOPS_VERBOSE": "0", "PYKEOPS_VERBOSE": "0"}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
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
    """The sum of exponentials as a KeOps reduction, which compiles tiled code for the formula."""
    genred = _keops()
    if case.beta in (0, math.inf):
        raise NotAvailableError(f"no KeOps reduction is implemented here for beta = {case.beta:g}")
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

    step = stepper(case, compute)
    _build(step, case)
    # Loading a library that GCC compiled with -ffast-math turns denormal numbers off: undo this.
    torch.set_flush_denormal(False)
    return step


def _prepare_flash_sinkhorn(case: Case) -> Step:
    """F as the shifted potential of one half-step of FlashSinkhorn; forward only.

    FlashSinkhorn has gradients of the whole of Sinkhorn's algorithm, but not of a half-step. TF32,
    its default, is turned off.
    """
    kernels = _imported("flash_sinkhorn.kernels.sinkhorn_flashstyle_sqeuclid", "flash-sinkhorn")
    if not hasattr(kernels, "flashsinkhorn_lse"):
        raise NotAvailableError("this version of flash-sinkhorn has no flashsinkhorn_lse")
    if case.device == "cpu" or case.backward or case.beta in (0, math.inf):
        raise NotAvailableError("FlashSinkhorn has only a forward, on GPUs, at finite beta > 0")

    def compute(y: Tensor, decoded: Tensor, beta: float | Tensor) -> Tensor:
        bias = -beta * decoded.square().sum(-1) - math.log(case.N)
        shifted = kernels.flashsinkhorn_lse(y, decoded, bias, 1 / float(beta), allow_tf32=False)
        return y.square().sum(-1) + shifted

    step = stepper(case, compute)
    _build(step, case)
    return step


def _geomloss_softmin() -> Any:
    """``softmin_tensorized``, whose module depends on the version of GeomLoss."""
    if importlib.util.find_spec("geomloss") is None:
        raise NotAvailableError("geomloss is not installed")
    for name in ("geomloss.sinkhorn_samples", "geomloss._legacy.sinkhorn_samples"):
        try:
            return importlib.import_module(name).softmin_tensorized
        except ImportError:
            continue
    raise NotAvailableError("this version of geomloss has no softmin_tensorized")


def _prepare_geomloss(case: Case) -> Step:
    """F as a half-step of GeomLoss's Sinkhorn loops, with the matrix of costs in memory."""
    with suppress(NotAvailableError):  # GeomLoss imports KeOps, which must have its flags by then
        _keops()
    softmin = _geomloss_softmin()
    _require_finite_beta(case, "GeomLoss's half-step")

    def compute(
        y: Tensor,
        decoded: Tensor,
        beta: float | Tensor,
        scale: Tensor | None = None,
        log_weight: Tensor | None = None,
        latent_energy: Tensor | None = None,
    ) -> Tensor:
        energy = _expanded_energy(y, decoded if scale is None else scale * decoded)
        if latent_energy is not None:
            energy = energy + latent_energy
        if log_weight is None:
            log_w = y.new_full((case.N,), -math.log(case.N))
        else:
            log_w = torch.log_softmax(log_weight, 0)
        return softmin(1 / beta, energy[None], log_w[None]).squeeze(0)

    return stepper(case, compute)


def _require_finite_beta(case: Case, method: str) -> None:
    if case.beta in (0, math.inf):
        raise NotAvailableError(f"{method} cannot compute beta = {case.beta:g}")


def _prepare_attention(case: Case) -> Step:
    """F from the log-sum-exp that scaled_dot_product_attention's kernels keep for their backward.

    The query is (y, 1), the key (2 g, -|g|^2) and the scale beta: their product is
    beta (|y|^2 - E), and |y|^2 is added to F afterwards. With the keys as values, the output is the
    posterior mean, which gives the gradient of y. Other gradients are not available.
    """
    _require_finite_beta(case, "attention")
    if set(case.backward) - {"y"}:
        raise NotAvailableError("attention's log-sum-exp has only a forward and the gradient of y")
    inputs = case.inputs()
    y, decoded = inputs["y"].detach(), inputs["decoded"]
    # The GPU kernels need rows of a multiple of 16 bytes.
    padding = -(case.D + 1) % 8

    def attend() -> tuple[Tensor, Tensor]:
        query = torch.cat((y, y.new_ones(case.M, 1), y.new_zeros(case.M, padding)), 1)
        square = decoded.square().sum(1, keepdim=True)
        key = torch.cat((2 * decoded, -square, y.new_zeros(case.N, padding)), 1)
        return attention(query[None, None], key[None, None], key[None, None], case.beta)

    def step(cotangent: Tensor) -> tuple[Tensor, ...]:
        mean, log_sum = attend()
        square = y.square().sum(1)
        value = square - (log_sum[0, 0, : case.M].to(y.dtype) - math.log(case.N)) / case.beta
        if not case.backward:
            return (value,)
        return value, cotangent[:, None] * (2 * y - mean[0, 0, :, : case.D])

    return step


#: Relative tolerance of scikit-learn's tree, a thousandth of what the check allows.
_TREE_TOLERANCE = 1e-6


def _prepare_kernel_density(case: Case) -> Step:
    """F as the log-density of scikit-learn's KernelDensity.

    Each step builds the tree again, because g changes between the steps of training.
    """
    neighbors = _imported("sklearn.neighbors", "scikit-learn")
    if case.device != "cpu" or case.backward:
        raise NotAvailableError("KernelDensity has only a forward, on CPUs")
    if case.dtype not in (torch.float32, torch.float64):
        dtype = str(case.dtype).removeprefix("torch.")
        raise NotAvailableError(f"KernelDensity does not support {dtype}")
    _require_finite_beta(case, "KernelDensity")
    inputs = case.inputs()
    y, decoded = inputs["y"].numpy(), inputs["decoded"].numpy()
    density = neighbors.KernelDensity(bandwidth=(2 * case.beta) ** -0.5, rtol=_TREE_TOLERANCE)
    norm = case.D / 2 * math.log(math.pi / case.beta)

    def step(cotangent: Tensor) -> tuple[Tensor, ...]:
        score = torch.from_numpy(density.fit(decoded).score_samples(y))
        return ((-(score + norm) / case.beta).to(cotangent.dtype),)

    return step


def _prepare_jax(case: Case) -> Step:
    """F and its gradients as one function compiled by JAX; up to D = 8 the sum is unrolled."""
    jax = _imported("jax", "jax")
    if case.device != "cpu" and jax.default_backend() == "cpu":
        raise NotAvailableError("jax sees no GPU")
    _require_finite_beta(case, "the JAX function")
    # Without this, JAX would silently convert float64 to float32.
    jax.config.update("jax_enable_x64", True)
    jnp: Any = jax.numpy
    inputs = case.inputs()
    inputs["beta"] = torch.as_tensor(inputs["beta"], dtype=case.dtype, device=case.device)
    arrays = {name: jax.dlpack.from_dlpack(x.detach()) for name, x in inputs.items()}

    def free_energy(arguments: dict[str, Any]) -> Any:
        y, decoded, beta = (arguments[name] for name in ("y", "decoded", "beta"))
        if "scale" in arguments:
            decoded = arguments["scale"] * decoded
        if case.D <= 8:
            energy = sum((y[:, d, None] - decoded[:, d]) ** 2 for d in range(case.D))
        else:
            energy = ((y[:, None] - decoded) ** 2).sum(-1)
        if "latent_energy" in arguments:
            energy = energy + arguments["latent_energy"]
        log_w = arguments.get("log_weight", jnp.zeros(case.N, y.dtype))
        log_sum = jax.scipy.special.logsumexp(log_w - beta * energy, axis=1)
        return (jax.scipy.special.logsumexp(log_w) - log_sum) / beta

    @jax.jit
    def run(differentiated: dict[str, Any], rest: dict[str, Any], cotangent: Any) -> Any:
        value, pull = jax.vjp(lambda leaves: free_energy({**rest, **leaves}), differentiated)
        return value, pull(cotangent)[0] if differentiated else {}

    leaves = {name: arrays.pop(name) for name in case.backward}

    def step(cotangent: Tensor) -> tuple[Tensor, ...]:
        value, gradients = run(leaves, arrays, jax.dlpack.from_dlpack(cotangent))
        found = (value, *(gradients[name] for name in case.backward))
        return tuple(torch.utils.dlpack.from_dlpack(x) for x in jax.block_until_ready(found))

    _build(step, case)
    return step


# Memory and names -----------------------------------------------------------------------------


def needed_bytes(name: str, case: Case) -> int:
    """An estimate of a provider's peak memory in bytes: some matrices of queries x latents."""
    differences = (2 * case.D + 2, 3 * case.D + 4)
    forward, backward = {
        "eager, expansion (mm)": (4, 6),
        "eager, differences": differences,
        "eager, cdist": (4, 6),
        "torch.compile, expansion (mm)": (2, 4),
        # It fuses the differences into their sum only at few dimensions, and into no gradient.
        "torch.compile, differences": (case.D + 2, differences[1]),
        "torch.compile, unrolled": (1, 3),
        "GeomLoss": (4, 6),
        "JAX": (1, 3) if case.D <= 8 else (2, 4),
    }.get(name, (0, 0))
    return case.M * case.N * case.dtype.itemsize * (backward if case.backward else forward)


def providers(device: str = "cpu") -> dict[str, Prepare]:
    """All providers by name: the device's default backend, our other backends, then the peers."""
    names = [row.name for row in lebm_kernels.backends() if row.name != "reference"]
    default = preferred(device)
    names.sort(key=lambda name: name != default)
    return {
        **{name: partial(_prepare_backend, backend=name) for name in names},
        "reference": _prepare_reference,
        "eager, expansion (mm)": partial(_prepare_eager, energy_form=_expanded_energy),
        "eager, differences": partial(_prepare_eager, energy_form=_materialised_energy),
        "eager, cdist": partial(_prepare_eager, energy_form=_cdist_energy),
        "torch.compile, expansion (mm)": partial(_prepare_compiled, energy_form=_expanded_energy),
        "torch.compile, differences": partial(_prepare_compiled, energy_form=_materialised_energy),
        "torch.compile, unrolled": partial(_prepare_compiled, energy_form=_unrolled_energy),
        "KeOps": _prepare_keops,
        "GeomLoss": _prepare_geomloss,
        "JAX": _prepare_jax,
        "attention's log-sum-exp": _prepare_attention,
        "KernelDensity": _prepare_kernel_density,
        "FlashSinkhorn": _prepare_flash_sinkhorn,
    }
