"""Dimensions beyond those the kernels are compiled for: tiles of queries against blocks of latents.

Energies may be products there, which cancel where a query is near a latent, and moments are taken
about a block's centre: so data far from the origin, near queries and every temperature.
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from support.accuracy import check, gradients
from support.problems import MIXED_BETAS, NAMES, PLAIN, problem

from lebm_kernels import free_energy, posterior

DIMENSIONS = (5, 8, 13, 32, 33, 64, 100, 257)
# A tile's worth less and more, whole, and of several, where there is much else to be varied.
FEWER_DIMENSIONS = (5, 8, 33, 64, 257)


@pytest.mark.parametrize("D", DIMENSIONS)
@pytest.mark.parametrize("full", [False, True], ids=["least", "all"])
def test_every_temperature(backend: str, dtype: torch.dtype, D: int, full: bool) -> None:
    names = NAMES if full else PLAIN
    arguments = problem(2 * len(MIXED_BETAS), 203, D, beta=MIXED_BETAS, dtype=dtype, names=names)
    check(backend, arguments)


@pytest.mark.parametrize("D", [5, 8, 64])
@pytest.mark.parametrize("beta", [0.1, 1.0, 30.0])
def test_many_queries_and_blocks(backend: str, dtype: torch.dtype, D: int, beta: float) -> None:
    check(backend, problem(101, 805, D, beta=beta, dtype=dtype, names=PLAIN))


@pytest.mark.parametrize("D", FEWER_DIMENSIONS)
@pytest.mark.parametrize("beta", [0.1, 10.0, 1e4])
def test_data_far_from_the_origin(backend: str, dtype: torch.dtype, D: int, beta: float) -> None:
    arguments = problem(7, 203, D, beta=beta, dtype=dtype, names=PLAIN)
    arguments["y"] += 100
    arguments["decoded"] += 100
    check(backend, arguments)


@pytest.mark.parametrize("D", FEWER_DIMENSIONS)
@pytest.mark.parametrize("beta", [1.0, 100.0, 1e4, 1e6, math.inf])
def test_queries_on_and_beside_clustered_latents(
    backend: str, dtype: torch.dtype, D: int, beta: float
) -> None:
    arguments = problem(12, 203, D, beta=beta, dtype=dtype, names=PLAIN)
    centres = 10 * torch.randn(5, D, dtype=dtype)
    decoded = centres[torch.randint(5, (203,))] + 1e-2 * arguments["decoded"]
    arguments["decoded"] = decoded
    arguments["y"][:4] = decoded[:4]
    arguments["y"][4:8] = decoded[4:8] + 1e-3 * arguments["y"][4:8]
    arguments["y"][8:] = centres[:4]
    check(backend, arguments)


@pytest.mark.parametrize("D", FEWER_DIMENSIONS)
@pytest.mark.parametrize("beta", [1e-3, 1.0, 100.0])
def test_between_near_and_far(backend: str, dtype: torch.dtype, D: int, beta: float) -> None:
    # At every distance from a latent, where one form of the sums hands over to the other.
    arguments = problem(40, 203, D, beta=beta, dtype=dtype, names=PLAIN)
    distance = torch.logspace(-4, 1, 40, dtype=dtype)[:, None]
    direction = torch.nn.functional.normalize(arguments["y"], dim=-1)
    arguments["y"] = arguments["decoded"][:40] + distance * direction
    check(backend, arguments)


@pytest.mark.parametrize("D", [5, 64])
@pytest.mark.parametrize("beta", [0.02, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("nearer", [True, False], ids=["nearer", "farther"])
def test_blocks_ever_nearer_or_farther(
    backend: str, dtype: torch.dtype, D: int, beta: float, nearer: bool
) -> None:
    """Each block brings lesser energies than all before it, or none that matters.

    By a fraction of a bit of the posterior's weights, or by thousands.
    """
    arguments = problem(50, 1300, D, beta=beta, dtype=dtype, names=PLAIN)
    size = torch.linspace(4, 0.2, 1300, dtype=dtype).unsqueeze(1)
    arguments["decoded"] *= size if nearer else size.flip(0)
    arguments["y"] *= 0.1
    check(backend, arguments)


@pytest.mark.parametrize("D", DIMENSIONS)
def test_an_outlier(backend: str, dtype: torch.dtype, D: int) -> None:
    arguments = problem(7, 203, D, beta=1.0, dtype=dtype)
    arguments["decoded"][17] = 1e6
    check(backend, arguments)
    for name in ("scale", "log_weight"):
        del arguments[name]
    check(backend, arguments)


@pytest.mark.parametrize("D", [5, 64])
@pytest.mark.parametrize("beta", [0.0, 1e-7, 1.0, 30.0, math.inf])
def test_weights_of_a_wide_range_and_dropped_latents(
    backend: str, dtype: torch.dtype, D: int, beta: float
) -> None:
    arguments = problem(7, 203, D, beta=beta, dtype=dtype)
    del arguments["scale"]
    arguments["log_weight"] *= 30
    arguments["log_weight"][[0, 17, 190, 191, 202]] = -math.inf
    arguments["decoded"][17] = 1e30
    check(backend, arguments)


@pytest.mark.parametrize("D", [8, 64])
def test_an_infinite_latent_and_a_spoilt_row(backend: str, dtype: torch.dtype, D: int) -> None:
    arguments = problem(7, 203, D, beta=2.0, dtype=dtype, names=PLAIN)
    arguments["latent_energy"] = torch.rand(203, dtype=dtype)
    function = partial(free_energy, backend=backend)
    wanted = function(**arguments)
    arguments["y"][3, D - 1] = math.nan
    found = function(**arguments)
    assert found[3].isnan()
    others = torch.arange(7) != 3
    assert torch.equal(found[others], wanted[others])
    arguments = problem(7, 203, D, beta=2.0, dtype=dtype, names=PLAIN)
    rest = torch.arange(203) != 20
    shift = math.log(202 / 203) / 2
    for spoilt in ("latent_energy", "decoded"):
        spoilt_arguments = {**arguments, "latent_energy": torch.zeros(203, dtype=dtype)}
        spoilt_arguments["decoded"] = arguments["decoded"].clone()
        spoilt_arguments[spoilt][20] = math.inf
        kept = {**arguments, "decoded": arguments["decoded"][rest]}
        torch.testing.assert_close(function(**spoilt_arguments), function(**kept) - shift)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("D", [8, 64])
def test_half_precision(backend: str, half: torch.dtype, D: int) -> None:
    arguments = {name: x.to(half) for name, x in problem(7, 203, D, beta=1.0).items()}
    arguments["beta"] = arguments["beta"].float()
    check(backend, arguments)
    del arguments["scale"]
    check(backend, arguments)


@pytest.mark.parametrize("D", [8, 64, 257])
@pytest.mark.parametrize("beta", [0.1, 1.0, 1e4, math.inf])
def test_the_index_and_the_mean(backend: str, dtype: torch.dtype, D: int, beta: float) -> None:
    arguments = problem(7, 405, D, beta=beta, dtype=dtype, names=PLAIN)
    arguments["y"][:3] = arguments["decoded"][[5, 250, 404]]
    # Every latent twice: the first of equals is wanted.
    arguments["decoded"] = arguments["decoded"].repeat(2, 1)
    found = posterior(**arguments, backend=backend)
    wanted = posterior(**{name: x.double() for name, x in arguments.items()}, backend="reference")
    assert torch.equal(found.index, wanted.index)
    torch.testing.assert_close(found.mean.double(), wanted.mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("D", [8, 64])
def test_the_same_bits_each_time(backend: str, dtype: torch.dtype, D: int) -> None:
    before = torch.get_num_threads()
    arguments = problem(67, 405, D, beta=1.0, dtype=dtype)
    function = partial(free_energy, backend=backend)
    grad = torch.randn(67, dtype=dtype)
    try:
        for dropped in ("nothing", "scale"):
            arguments.pop(dropped, None)
            for threads in (1,) if backend == "emulated_cuda" else (1, 2):
                torch.set_num_threads(threads)
                assert torch.equal(function(**arguments), function(**arguments))
                one, other = (gradients(function, arguments, grad) for _ in range(2))
                for name, slope in one.items():
                    assert torch.equal(slope, other[name])
            check(backend, arguments)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("D", [8, 48, 64])
@pytest.mark.parametrize("beta", [10.0, 1e3, 1e5])
@pytest.mark.parametrize(("M", "N"), [(500, 50), (150, 100), (96, 390)])
def test_queries_near_latents_among_others_that_are_not(
    backend: str, dtype: torch.dtype, D: int, beta: float, M: int, N: int
) -> None:
    """Of a query's latents, both passes must make the same shares, whatever else is in its tile."""
    arguments = problem(M, N, D, beta=beta, dtype=dtype, names=PLAIN)
    noise = 0.01 * arguments["y"]
    arguments["y"] = arguments["decoded"][torch.randint(N, (M,))] + noise
    arguments["y"][::10] = 300 * noise[::10]
    leaf = torch.zeros(N, dtype=dtype, requires_grad=True)
    grad = torch.rand(M, dtype=dtype) + 0.5
    value = free_energy(**arguments, latent_energy=leaf, backend=backend)
    (slope,) = torch.autograd.grad(value, leaf, grad)
    # Not the promise: the posterior weights of each query sum to one.
    eps = torch.finfo(dtype).eps
    assert abs(float(slope.sum() - grad.sum())) <= 100 * eps * float(grad.sum())
    few = torch.tensor([*range(0, M, 37), *range(1, M, 41)])
    arguments = {name: x[few] if len(x) == M else x for name, x in arguments.items()}
    check(backend, arguments)


@pytest.mark.parametrize("D", [8, 64])
@pytest.mark.parametrize("beta", [1.0, 1e6, math.inf])
@pytest.mark.parametrize("size", [-1e4, -30.0, 1e4])
@pytest.mark.parametrize("varied", [False, True], ids=["constant", "varied"])
def test_latent_energies_much_larger_than_distances(
    backend: str, dtype: torch.dtype, D: int, beta: float, size: float, varied: bool
) -> None:
    arguments = problem(60, 203, D, beta=beta, dtype=dtype, names=PLAIN)
    spread = torch.randn(203, dtype=dtype) if varied else torch.ones(203, dtype=dtype)
    arguments["latent_energy"] = size * spread
    arguments["latent_energy"].requires_grad_()
    value = free_energy(**arguments, backend=backend)
    (slope,) = torch.autograd.grad(value.sum(), arguments["latent_energy"])
    assert float(slope.sum()) == pytest.approx(60, rel=1e-5)
    if not math.isinf(beta):
        arguments["latent_energy"] = arguments["latent_energy"].detach()
        check(backend, arguments)
