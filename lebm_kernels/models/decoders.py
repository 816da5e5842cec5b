"""Decoders: functions of the latent z, and of a condition x, to the space of the observations.

The ellipse and the horn decode to ``radii * [cos z, sin z]``, where only the radii are learned. The
free energy takes the circle as ``decoded`` and the radii as ``scale``. The grid then needs no
gradient, and one row pass yields the value and all gradients. The other decoders learn the shape
itself, and their output on the grid needs a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lebm_kernels.arguments import autocast_dtype
from lebm_kernels.checks import (
    check_count,
    check_floating,
    check_interval,
    check_kind,
    check_positive,
    shown,
)
from lebm_kernels.models.placing import drawing_device


def circle(z: Tensor) -> Tensor:
    """Points ``[cos z, sin z]`` of the unit circle, ``[..., 2]``, at angles ``z[...]`` in radians.

    Example:
        >>> circle(torch.tensor([0.0]))
        tensor([[1., 0.]])
    """
    check_kind("z", z, Tensor, "a tensor of angles [...]")
    return torch.stack([torch.cos(z), torch.sin(z)], dim=-1)


class EllipseDecoder(nn.Module):
    """An axis-aligned ellipse, ``z -> radii * [cos z, sin z]``, with two learned radii.

    The ellipse does not depend on the signs of the radii: only ``radii.abs()`` has a meaning.

    Args:
        radii: the first values, ``[2]``, floating point; drawn from N(0, 1) if absent.
        generator: source of the draw; the global generator if absent.

    Raises:
        TypeError: ``radii`` isn't a floating-point tensor.
        ValueError: ``radii`` doesn't have shape [2].

    Example:
        >>> EllipseDecoder(torch.tensor([2.0, 1.5]))(torch.zeros(1)).detach()
        tensor([[2., 0.]])
    """

    def __init__(
        self, radii: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        device = drawing_device(generator)
        if radii is None:
            drawn = torch.randn(2, generator=generator, device=device)
            radii = drawn.to(torch.get_default_device())
        check_floating("radii", radii, "[2]")
        if radii.shape != (2,):
            raise ValueError(f"radii must have shape [2], got {list(radii.shape)}")
        self.radii: nn.Parameter = nn.Parameter(radii.detach().clone())

    def forward(self, z: Tensor) -> Tensor:
        """Decode angles ``z[...]`` to points ``[..., 2]``."""
        return self.radii * circle(z)


class HornPredictor(nn.Module):
    """A network x -> 8 -> 8 -> outputs with ReLU.

    With two outputs, the radii of the horn's section at x, it has 106 parameters. With any number
    of outputs it serves as f(x) of a decoder g(f(x), z).

    Two things can go wrong in training. Rectified units can die. And a radius that changes sign
    between two x of the data is a local minimum, because both signs fit equally well. The
    initialisation avoids both: each unit of the first layer has its kink inside the domain of x,
    and every output starts near 1 at every x.

    Args:
        domain: interval of x that the kinks of the first layer are spread over.
        outputs: number of outputs, dim(f), at least 1.
        generator: source of the draws; the global generator if absent.

    Raises:
        ValueError: ``domain`` isn't two finite numbers in increasing order, or ``outputs`` is
            below 1.
    """

    def __init__(
        self,
        domain: tuple[float, float] = (0.0, 1.0),
        *,
        outputs: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_interval("domain", domain)
        # PyTorch's own initialisation, skipped here, would draw from the global generator.
        check_count("outputs", outputs, 1)
        sizes = ((1, 8), (8, 8), (8, outputs))
        device = drawing_device(generator)
        first, hidden, last = (
            nn.utils.skip_init(nn.Linear, *size, device=device) for size in sizes
        )
        self.layers: nn.Sequential = nn.Sequential(first, nn.ReLU(), hidden, nn.ReLU(), last)
        self._initialise(*domain, generator)
        self.to(torch.get_default_device())

    @torch.no_grad()
    def _initialise(self, low: float, high: float, generator: torch.Generator | None) -> None:
        first, hidden, last = (layer for layer in self.layers if isinstance(layer, nn.Linear))
        # Units relu(slope (x - kink)). The slopes have random signs; each changes its unit by 1 to
        # 2 over the domain.
        drawn: dict[str, Any] = {"generator": generator, "device": first.weight.device}
        sign = torch.randint(0, 2, first.weight.shape, **drawn) * 2 - 1
        slope = sign * (1.0 + torch.rand(first.weight.shape, **drawn)) / (high - low)
        # One kink in each eighth of the domain, at a random place there.
        eighth = torch.arange(first.out_features, device=first.weight.device)
        place = (eighth + torch.rand(first.bias.shape, **drawn)) / first.out_features
        kink = low + (high - low) * place
        first.weight.copy_(slope)
        first.bias.copy_(-slope.squeeze(1) * kink)
        nn.init.kaiming_uniform_(hidden.weight, nonlinearity="relu", generator=generator)
        # A small positive offset keeps most of the second layer alive.
        hidden.bias.fill_(0.1)
        nn.init.kaiming_uniform_(last.weight, nonlinearity="relu", generator=generator)
        last.weight.mul_(0.3)
        last.bias.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[..., outputs]``, such as radii, at conditions ``x[...]``.

        Raises:
            TypeError: ``x`` isn't a tensor of the network's dtype.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor of conditions, got {type(x).__name__}")
        weight: Any = self.layers[0].weight
        dtype = autocast_dtype(weight.dtype, x.device.type)
        if autocast_dtype(x.dtype, x.device.type) != dtype:
            raise TypeError(f"x must be {dtype} as the network of x is, got {x.dtype}")
        return self.layers(x.unsqueeze(-1))


class NeuralDecoder(nn.Module):
    """A network g(f, z) of the latent and a code: K + dim(f) -> hidden -> ... -> D, with tanh.

    Nothing in it is periodic: a closed curve has to be learned, and so has its closing point. The
    first layer multiplies z and f separately and adds the results, so N latents and M codes cost
    N + M products.

    Args:
        latent_dim: K, the number of latent dimensions.
        outputs: D, the number of dimensions of the observations.
        code_dim: dim(f), the size of the code; 0 for an unconditional decoder.
        hidden: numbers of units of the hidden layers; at least one layer.
        domain: interval of each dimension of z; it is mapped to [-1, 1].
        generator: source of the first weights; the global generator if absent.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        latent_dim: int = 1,
        outputs: int = 2,
        *,
        code_dim: int = 0,
        hidden: Sequence[int] = (32, 32),
        domain: tuple[float, float] = (0.0, 2.0 * math.pi),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_count("latent_dim", latent_dim, 1)
        check_count("outputs", outputs, 1)
        check_count("code_dim", code_dim, 0)
        check_interval("domain", domain)
        if not isinstance(hidden, Sequence) or not hidden:
            raise ValueError(f"hidden must be the layers' numbers of units, got {shown(hidden)}")
        for units in hidden:
            check_count("hidden", units, 1)
        self.domain = domain
        # PyTorch's own initialisation, skipped here, would draw from the global generator.
        device = drawing_device(generator)
        self.of_latent: nn.Linear = nn.utils.skip_init(
            nn.Linear, latent_dim, hidden[0], device=device
        )
        self.of_code: nn.Linear | None = (
            nn.utils.skip_init(nn.Linear, code_dim, hidden[0], bias=False, device=device)
            if code_dim
            else None
        )
        sizes = [*hidden, outputs]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Tanh(), nn.utils.skip_init(nn.Linear, fan_in, fan_out, device=device)]
        self.layers: nn.Sequential = nn.Sequential(*layers)
        self._initialise(generator)
        self.to(torch.get_default_device())

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator | None) -> None:
        # The units are steep enough to bend inside [-1, 1], and their centres are spread over it.
        fan_in = self.of_latent.in_features
        nn.init.normal_(self.of_latent.weight, std=2.0 / math.sqrt(fan_in), generator=generator)
        nn.init.uniform_(self.of_latent.bias, -2.0, 2.0, generator=generator)
        rest = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        for layer in rest if self.of_code is None else [self.of_code, *rest]:
            nn.init.xavier_normal_(layer.weight, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor, code: Tensor | None = None) -> Tensor:
        """Decode points ``z[..., N, K]`` at codes ``[..., dim(f)]`` to ``[..., N, D]``.

        Raises:
            ValueError: ``code`` is absent though code_dim > 0, or given though code_dim is 0.
        """
        if (code is None) != (self.of_code is None):
            raise ValueError(
                "code is missing: code_dim is above 0"
                if code is None
                else f"code must be absent as code_dim is 0, got shape {list(code.shape)}"
            )
        low, high = self.domain
        hidden = self.of_latent((z - low) * (2.0 / (high - low)) - 1.0)
        if self.of_code is not None and code is not None:
            hidden = hidden + self.of_code(code).unsqueeze(-2)
        return self.layers(hidden)


class RBFDecoder(nn.Module):
    """A topographic mapping's decoder g(z) = phi(z) W: Gaussian bumps phi and a constant.

    ``phi_k(z) = exp(-|z - centre_k|^2 / (2 width^2))``, and the last phi is 1. W starts at zero.

    Args:
        centres: the bumps' centres, ``[B, K]``, floating point.
        width: the bumps' standard deviation, in units of z, positive. Its square must be a normal
            number of the dtype of ``centres``.
        outputs: D, the number of dimensions of the observations.

    Raises:
        TypeError: ``centres`` is not a floating-point tensor.
        ValueError: an argument is out of range.
    """

    centres: Tensor
    """The bumps' centres, ``[B, K]``, which are not learned."""

    def __init__(self, centres: Tensor, width: float, outputs: int) -> None:
        super().__init__()
        check_floating("centres", centres, "[B, K]")
        if centres.dim() != 2 or centres.numel() == 0:
            raise ValueError(f"centres must have shape [B, K], got {list(centres.shape)}")
        check_positive("width", width)
        info = torch.finfo(centres.dtype)
        if not info.tiny <= width * width <= info.max:
            raise ValueError(
                f"width must have a square that {centres.dtype} can represent, got {width!r}"
            )
        check_count("outputs", outputs, 1)
        self.width = width
        self.register_buffer("centres", centres.detach().clone(), persistent=False)
        self.weight: nn.Parameter = nn.Parameter(centres.new_zeros(len(centres) + 1, outputs))
        """W, ``[B + 1, D]``; the last row multiplies the constant."""

    def features(self, z: Tensor) -> Tensor:
        """phi, the bumps and the constant, ``[N, B + 1]``, at points ``z[N, K]``."""
        square = (z.unsqueeze(-2) - self.centres).square().sum(-1)
        bumps = torch.exp(square / (-2.0 * self.width**2))
        return torch.cat([bumps, torch.ones_like(bumps[..., :1])], dim=-1)

    def forward(self, z: Tensor) -> Tensor:
        """Decode points ``z[N, K]`` to ``[N, D]``."""
        return self.features(z) @ self.weight
