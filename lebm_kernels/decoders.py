"""Decoders: from the latent z, and a condition x, to the plane of the observations.

Both models decode to ``radii * [cos z, sin z]``. The circle is fixed and the radii are learned, so
the free energy takes the circle as ``decoded`` and the radii as ``scale``: no gradient is needed
for the grid, and one pass over the pairs gives the value and every gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def circle(z: Tensor) -> Tensor:
    """The unit circle ``[cos z, sin z]``: angles ``z[...]`` in radians to points ``[..., 2]``."""
    return torch.stack([torch.cos(z), torch.sin(z)], dim=-1)


class EllipseDecoder(nn.Module):
    """An axis-aligned ellipse, ``z -> radii * [cos z, sin z]``, with two learned radii.

    The sign of a radius is a symmetry of the ellipse: only ``radii.abs()`` has a meaning.

    Args:
        radii: the first values, ``[2]``; drawn from N(0, 1) if absent.
        generator: source of the draw; the global generator if absent.

    Raises:
        ValueError: ``radii`` doesn't have shape [2].
    """

    def __init__(
        self, radii: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if radii is None:
            radii = torch.randn(2, generator=generator)
        elif radii.shape != (2,):
            raise ValueError(f"radii must have shape [2], got {list(radii.shape)}")
        self.radii = nn.Parameter(radii.detach().clone())

    def forward(self, z: Tensor) -> Tensor:
        """Decode angles ``z[...]`` to points ``[..., 2]``."""
        return self.radii * circle(z)


class HornPredictor(nn.Module):
    """The radii of the horn's section at x: a network x -> 8 -> 8 -> 2 with ReLU, 106 parameters.

    Eight rectified units can die, and a radius that passes through zero between two x of the data
    is a local minimum, since either sign fits as well. The initialisation avoids both: each first
    unit bends inside the domain of x, and both radii start near 1 for every x.

    Args:
        domain: interval of x that the first units' bends are spread over.
        generator: source of the draws; the global generator if absent.

    Raises:
        ValueError: ``domain`` isn't an increasing pair of finite numbers.
    """

    def __init__(
        self,
        domain: tuple[float, float] = (0.0, 1.0),
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        low, high = domain
        if not (-math.inf < low < high < math.inf):
            raise ValueError(f"domain must be (low, high) with low < high, got {domain}")
        # PyTorch's own initialisation, skipped here, would draw from the global generator.
        sizes = ((1, 8), (8, 8), (8, 2))
        bend, hidden, last = (nn.utils.skip_init(nn.Linear, *size) for size in sizes)
        self.layers = nn.Sequential(bend, nn.ReLU(), hidden, nn.ReLU(), last)
        self._initialise(low, high, generator)

    @torch.no_grad()
    def _initialise(self, low: float, high: float, generator: torch.Generator | None) -> None:
        bend, hidden, last = (layer for layer in self.layers if isinstance(layer, nn.Linear))
        # relu(w (x - bend)): slopes of either sign and of size 1 to 2 over the domain's length.
        sign = torch.randint(0, 2, bend.weight.shape, generator=generator) * 2 - 1
        slope = sign * (1.0 + torch.rand(bend.weight.shape, generator=generator)) / (high - low)
        # One bend in each eighth of the domain, at a random place there.
        eighth = torch.arange(bend.out_features) / bend.out_features
        place = eighth + torch.rand(bend.bias.shape, generator=generator) / bend.out_features
        where = low + (high - low) * place
        bend.weight.copy_(slope)
        bend.bias.copy_(-slope.squeeze(1) * where)
        nn.init.kaiming_uniform_(hidden.weight, nonlinearity="relu", generator=generator)
        # A small positive offset keeps most of the second layer alive.
        hidden.bias.fill_(0.1)
        nn.init.kaiming_uniform_(last.weight, nonlinearity="relu", generator=generator)
        last.weight.mul_(0.3)
        last.bias.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Radii ``[..., 2]`` of the sections at ``x[...]``."""
        return self.layers(x.unsqueeze(-1))
