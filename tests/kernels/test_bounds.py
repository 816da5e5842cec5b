"""What bounds say of whole blocks must hold for each of their latents: where a block reaches far
but has one latent near, where energies are negative, and where a sum is as small as it can be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from support.backends import identify, kernel_parameters, selected
from support.subset import check, check_index
from torch import Tensor

BLOCK = 512

# Few queries, streamed; more; and so many that series are made.
COUNTS = (1, 100, 600)

# A distance from the nearest latent, which a rounding of the block's far end can hide, and by what
# share of it another block is further away.
DISTANCES = {
    torch.float32: [(1e-2, 1e-3), (1e-3, 1e-3), (1e-4, 1e-2)],
    torch.float64: [(1e-8, 1e-6), (1e-9, 1e-4), (1e-10, 1e-2)],
}


Case = tuple[tuple[str, str | None], int]

# A backend without bounds treats all queries alike.
CASES: list[Case] = [
    (parameter, M)
    for parameter in kernel_parameters()
    for M in (COUNTS if parameter[0] == "native" else COUNTS[:1])
]


@pytest.fixture(params=CASES, ids=lambda case: f"{identify(case[0])}-{case[1]}")
def case(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """A backend and a number of queries."""
    parameter, M = request.param
    with selected(*parameter) as name:
        yield name, M


@pytest.fixture
def backend(case: tuple[str, int]) -> str:
    """The backend of the case."""
    return case[0]


@pytest.fixture
def M(case: tuple[str, int]) -> int:
    """Its number of queries."""
    return case[1]


def ends(M: int) -> Tensor:
    """The first query and the last."""
    return torch.tensor([0, M - 1]).unique()


def distances(dtype: torch.dtype) -> Iterator[tuple[float, float]]:
    for sign, (distance, beyond) in zip((1, -1.43, 1), DISTANCES[dtype], strict=True):
        yield sign * distance, beyond


@pytest.mark.parametrize("beta", [1e9, math.inf])
def test_the_nearest_latent_is_at_the_edge_of_a_wide_block(
    backend: str, dtype: torch.dtype, M: int, beta: float
) -> None:
    for d, beyond in distances(dtype):
        wide = torch.linspace(0, math.copysign(1000, d), BLOCK, dtype=dtype)
        narrow = torch.full((BLOCK,), -2 * d - d * beyond, dtype=dtype)
        arguments = {
            "y": torch.full((M, 1), -d, dtype=dtype),
            "decoded": torch.cat((wide, narrow))[:, None],
            "beta": torch.tensor(beta, dtype=dtype),
        }
        check(backend, arguments, some=ends(M))
        check_index(backend, arguments, 1)


@pytest.mark.parametrize("beta", [1e9, math.inf])
@pytest.mark.parametrize("wide_first", [True, False])
def test_equal_minima_in_a_wide_block_and_in_a_narrow_one(
    backend: str, dtype: torch.dtype, M: int, wide_first: bool, beta: float
) -> None:
    # The contributions of all that are equally near have one mean.
    for d, _ in distances(dtype):
        wide = torch.linspace(0, math.copysign(100, d), BLOCK, dtype=dtype)
        wide[[7, 100, 300]] = 0
        # y lies in the middle: the differences are -d and d, exactly.
        y = torch.full((M, 1), -d, dtype=dtype)
        narrow = (2 * y[:1, 0]).expand(BLOCK)
        arguments = {
            "y": y,
            "decoded": torch.cat((wide, narrow) if wide_first else (narrow, wide))[:, None],
            "beta": torch.tensor(beta, dtype=dtype),
        }
        check(backend, arguments, some=ends(M))
        check_index(backend, arguments, 1)


def on_a_lattice(M: int, N: int, offset: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """Queries between the latents; energies are exact in float, and often equal."""
    return {
        "y": torch.randint(-16, 16, (M, 2)).to(dtype) / 8 + 1 / 16,
        "decoded": torch.randint(-16, 17, (N, 2)).to(dtype) / 8,
        "latent_energy": torch.randint(0, 3, (N,)).to(dtype) / 64 + offset,
    }


@pytest.mark.parametrize("offset", [-1e3, 1e3])
@pytest.mark.parametrize("beta", [1e3, 1e6, math.inf])
def test_latent_energies_far_from_zero(
    backend: str, dtype: torch.dtype, M: int, beta: float, offset: float
) -> None:
    arguments = on_a_lattice(M, 2100, offset, dtype)
    arguments["beta"] = torch.tensor(beta, dtype=dtype)
    check(backend, arguments, 4)
    check_index(backend, arguments, 4)


@pytest.mark.parametrize("offset", [-1e3, 0.0, 1e3])
def test_a_query_on_a_latent_of_any_energy(
    backend: str, dtype: torch.dtype, M: int, offset: float
) -> None:
    # Its own latent does not pull at it: what remains is smaller than a rounding of the block.
    arguments = on_a_lattice(M, 2100, offset, dtype)
    arguments["y"] = arguments["decoded"][:M].clone()
    arguments["latent_energy"].fill_(offset)
    arguments["beta"] = torch.tensor(1e3, dtype=dtype)
    check(backend, arguments, 4)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_a_query_nearer_to_its_latent_than_blocks_are_wide(
    backend: str, dtype: torch.dtype, M: int, scale: float
) -> None:
    # Blocks are as wide as their latents times the scale.
    arguments = {
        "y": torch.randn(M, 1, dtype=dtype),
        "decoded": torch.randn(2100, 1, dtype=dtype),
        "beta": torch.tensor(2.0, dtype=dtype),
        "scale": torch.tensor([scale], dtype=dtype),
    }
    check(backend, arguments, 4)


@pytest.mark.parametrize("offset", [-1e3, 0.0, 1e3])
@pytest.mark.parametrize("beta", [1e6, math.inf])
def test_equal_minima_in_blocks_without_extent(
    backend: str, dtype: torch.dtype, M: int, beta: float, offset: float
) -> None:
    # Every block is one point: its bounds are its energies, and of five blocks two are the nearest.
    points = torch.tensor([4.0, 2.0, 0.0, 3.0, -1.0], dtype=dtype)
    arguments = {
        "y": torch.full((M, 1), 2.5, dtype=dtype),
        "decoded": points.repeat_interleave(BLOCK)[:, None],
        "latent_energy": torch.full((5 * BLOCK,), offset, dtype=dtype),
        "beta": torch.tensor(beta, dtype=dtype),
    }
    check(backend, arguments, some=ends(M))
    check_index(backend, arguments, 1)


def test_midway_between_two_clusters(backend: str, M: int) -> None:
    # The last two latents make a block, in whose centre the query lies: they are as far from it as
    # a sum about the centre bears. All others are further, and matter to no sum; but they are many,
    # and their exponents are near the end of the float's range.
    N = BLOCK * (200 if M == 600 else 1000) + 2
    fall = (6 * (1 + math.log(N)) - 0.5) * math.log(2)
    near, far = math.sqrt(112 * math.log(2)), math.sqrt(127.5 * math.log(2))
    decoded = torch.zeros(N, 2)
    decoded[:, 0] = near
    decoded[::2, 0] += 2 * (far - near)
    decoded[-2:, 0] = torch.tensor([-1.0, 1.0]) * math.sqrt(fall)
    y = 0.01 * torch.randn(M, 2)
    y[0] = 0
    check(backend, {"y": y, "decoded": decoded, "beta": torch.tensor(1.0)}, some=torch.tensor([0]))
