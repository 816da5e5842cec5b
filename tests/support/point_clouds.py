"""Queries and latents as applications have them, near and far, structured and not."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Cloud = Callable[[int, int, int, torch.Generator], tuple[Tensor, Tensor]]
"""M, N, D and a generator to y ``[M, D]`` and decoded ``[N, D]``, in float32."""


def _normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def normal(M: int, N: int, D: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return _normal(M, D, generator=generator), _normal(N, D, generator=generator)


def near(M: int, N: int, D: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each query is 1e-3 from a latent in each dimension."""
    decoded = _normal(N, D, generator=generator)
    chosen = torch.randint(N, (M,), generator=generator)
    return decoded[chosen] + 1e-3 * _normal(M, D, generator=generator), decoded


def far(M: int, N: int, D: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    y, decoded = normal(M, N, D, generator)
    return y + 30, decoded


def offset(M: int, N: int, D: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    y, decoded = normal(M, N, D, generator)
    return y + 100, decoded + 100


def islands(M: int, N: int, D: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Latents 0, 1, ... N - 1 pass from one group to the next, 30 away in each dimension.

    Each query is close to one of the groups.
    """
    groups = 30 * torch.arange(-(-N // 1024))
    y, decoded = normal(M, N, D, generator)
    chosen = torch.arange(M) % len(groups)
    return y + groups[chosen, None], decoded + groups.repeat_interleave(1024)[:N, None]


def two_groups(M: int, N: int, D: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each query and latent is in one of two groups, 1.1 to each side of 0 in each dimension.

    Within a group, all terms of u . v tend to be positive: what is cut off adds up.
    """
    y, decoded = normal(M, N, D, generator)
    sides = 1.1 * (-1) ** torch.arange(max(M, N))[:, None]
    return y + sides[:M], decoded + sides[:N]


def manifold(M: int, N: int, D: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A curved surface in D dimensions; the queries have noise of 0.05 in each."""
    axes = _normal(6, D, generator=generator) / math.sqrt(6)

    def decode(z: Tensor) -> Tensor:
        a, b = z.unbind(1)
        twice = 2 * z
        return torch.stack((*twice.sin().T, *twice.cos().T, a * b, a - b), 1) @ axes

    y = decode(_uniform(M, generator))
    return y + 0.05 * _normal(M, D, generator=generator), decode(_square(N))


def digits(M: int, N: int, D: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures of a stroke, mostly empty, in [0, 1]; the queries have noise of 0.05."""
    side = math.isqrt(D)
    across = torch.linspace(0, 1, side)
    place = torch.linspace(0, 1, 12)

    def decode(z: Tensor) -> Tensor:
        a, b = z[:, :1], z[:, 1:]
        x = 0.5 + 0.3 * torch.cos(2 * math.pi * place * (0.5 + 0.5 * a) + 2 * b)
        y = 0.5 + 0.35 * torch.sin(2 * math.pi * place + 3 * a) * (0.6 + 0.4 * b)
        ink = torch.exp(-((across - x[..., None]) ** 2) / (2 * 0.07**2))
        rows = torch.exp(-((across - y[..., None]) ** 2) / (2 * 0.07**2))
        picture = (rows.mT @ ink).clamp(0, 1)
        return torch.nn.functional.pad(picture.flatten(1), (0, D - side * side))

    y = decode(_uniform(M, generator))
    return y + 0.05 * _normal(M, D, generator=generator), decode(_square(N))


def in_squares(decoded: Tensor) -> Tensor:
    """A grid of 4^k latents, which came row by row, in Morton order: neighbours in both axes."""
    side = math.isqrt(len(decoded))
    row, column = torch.arange(side)[:, None], torch.arange(side)
    place = torch.zeros(side, side, dtype=torch.long)
    for bit in range(side.bit_length()):
        place += (row >> bit & 1) << (2 * bit + 1)
        place += (column >> bit & 1) << (2 * bit)
    return decoded[place.flatten().argsort()]


def _uniform(M: int, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(M, 2, generator=generator) - 1


def _square(N: int) -> Tensor:
    """N points of a grid on [-1, 1]^2, row by row."""
    axis = torch.linspace(-1, 1, math.ceil(math.sqrt(N)))
    return torch.cartesian_prod(axis, axis)[:N]


CLOUDS: tuple[Cloud, ...] = (normal, near, far, offset, two_groups, manifold, digits)
