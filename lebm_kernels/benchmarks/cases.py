"""The problems that benchmarks time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lebm_kernels.arguments import Arguments
from lebm_kernels.checks import check_count, number

#: Arguments that a case can differentiate. Optional ones are passed to the providers only if a case
#: asks for their gradients.
ARGUMENTS = Arguments._fields

#: Where a case's points lie: all over the space, or on and near a curve.
LAYOUTS = ("normal", "curve")

#: The reductions of F that a loss can be.
LOSSES = ("sum", "mean")

#: The half-axes of the curve, an ellipse, and the standard deviation of the queries around it.
_CURVE = (1.0, 0.5)
_CURVE_NOISE = 0.01

#: Relative error above which a provider is reported as wrong and not timed.
TOLERANCE = {
    torch.float64: 1e-8,
    torch.float32: 1e-3,
    torch.bfloat16: 1e-1,
    torch.float16: 1e-1,
}


@dataclass(frozen=True)
class Case:
    """One problem to time: F of M queries over N latents in D dimensions, and its gradients.

    Attributes:
        M: number of queries.
        N: number of latents.
        D: number of dimensions.
        beta: inverse temperature in [0, inf].
        dtype: of every input.
        backward: the arguments whose gradients are taken, see :data:`ARGUMENTS`; if empty, only the
            forward is computed.
        device: of the inputs.
        seed: of the random inputs.
        loss: ``sum`` or ``mean``, the reduction of F that is differentiated. It sets the size of
            the incoming gradient: about 1, or 1 / M.
        layout: ``normal`` draws queries and latents independently from a normal distribution.
            ``curve`` draws latents on an ellipse with half-axes 1 and 1/2 and queries near it, in
            random order; it needs D = 2.

    Raises:
        ValueError: a field is out of range; the message names it.
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
    loss: str = "sum"

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("M", "N", "D"):
            check_count(name, getattr(self, name), 1)
        if not number(self.beta) >= 0:
            raise ValueError(f"beta must lie in [0, inf], got {self.beta!r}")
        if self.dtype not in TOLERANCE:
            raise ValueError(f"dtype must be one of {list(TOLERANCE)}, got {self.dtype}")
        for name in self.backward:
            if name not in ARGUMENTS:
                raise ValueError(f"backward must name arguments among {ARGUMENTS}, got {name!r}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {LAYOUTS}, got {self.layout!r}")
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {LOSSES}, got {self.loss!r}")
        if self.layout == "curve" and self.D != 2:
            raise ValueError(f"D must be 2 on a curve, got {self.D}")

    @property
    def direction(self) -> str:
        """``forward``, or ``forward + backward (y, ...)``."""
        return f"forward + backward ({', '.join(self.backward)})" if self.backward else "forward"

    def __str__(self) -> str:
        """Sizes, beta, dtype, and the layout unless it is normal; without the direction."""
        dtype = str(self.dtype).removeprefix("torch.")
        layout = "" if self.layout == "normal" else f", {self.layout}"
        return f"M={self.M}, N={self.N}, D={self.D}, beta={self.beta:g}, {dtype}{layout}"

    def inputs(self) -> dict[str, Any]:
        """The arguments of :func:`lebm_kernels.free_energy`, the same at each call.

        ``y`` and ``decoded`` are in random order, so that no method profits from their order.
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
            # All are drawn, in float64, even if unused, so that cases that differ only in dtype or
            # direction have the same points.
            value = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
            if name == "scale":
                value = 1 + 0.1 * value
            elif name in ("y", "decoded") and self.layout == "curve":
                # The direction of a normal point is uniform.
                axes = torch.tensor(_CURVE, dtype=torch.float64, device="cpu")
                value = axes * value / value.norm(dim=1, keepdim=True)
                if name == "y":
                    noise = torch.randn(
                        shape, generator=generator, dtype=torch.float64, device="cpu"
                    )
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
        """The incoming gradient of F, ``[M]``: values in (0.5, 1.5), or these / M for a mean."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        value = torch.rand(self.M, generator=generator, dtype=torch.float64, device="cpu") + 0.5
        if self.loss == "mean":
            value = value / self.M
        return value.to(self.device, self.dtype)
