"""Decoders: shapes, parameter counts, and an initialisation that leaves no unit dead."""

from __future__ import annotations

import math

import pytest
import torch

from lebm_kernels.models.decoders import EllipseDecoder, HornPredictor, circle


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_circle_is_cosine_then_sine_in_a_last_dimension() -> None:
    z = torch.tensor([[0.0, math.pi / 2], [math.pi, math.pi / 6]], dtype=torch.float64)
    expected = torch.tensor(
        [[[1, 0], [0, 1]], [[-1, 0], [math.sqrt(3) / 2, 0.5]]], dtype=torch.float64
    )
    torch.testing.assert_close(circle(z), expected, rtol=0, atol=1e-15)


def test_ellipse_scales_the_circle_by_two_learned_radii() -> None:
    decoder = EllipseDecoder(torch.tensor([2.0, 1.5]))
    assert [tuple(p.shape) for p in decoder.parameters()] == [(2,)]
    out = decoder(torch.tensor([0.0, math.pi / 2]))
    torch.testing.assert_close(out, torch.tensor([[2.0, 0.0], [0.0, 1.5]]), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"radii must have shape \[2\], got \[3\]"):
        EllipseDecoder(torch.ones(3))


def test_given_radii_are_copied() -> None:
    radii = torch.ones(2)
    decoder = EllipseDecoder(radii)
    radii.mul_(5.0)
    assert decoder.radii.tolist() == [1.0, 1.0]


def test_horn_predictor_has_106_parameters_in_three_layers() -> None:
    predictor = HornPredictor(generator=_generator(0))
    shapes = [tuple(p.shape) for p in predictor.parameters()]
    assert shapes == [(8, 1), (8,), (8, 8), (8,), (2, 8), (2,)]
    assert sum(p.numel() for p in predictor.parameters()) == 106
    assert predictor(torch.zeros(3, 5)).shape == (3, 5, 2)
    assert predictor(torch.tensor(0.5)).shape == (2,)


def test_horn_predictor_is_the_rectified_network_it_says() -> None:
    predictor = HornPredictor(generator=_generator(1)).double()
    w1, b1, w2, b2, w3, b3 = (p.detach() for p in predictor.parameters())
    x = torch.linspace(-1, 2, 7, dtype=torch.float64)
    hidden = (x[:, None] * w1[:, 0] + b1).clamp_min(0)
    expected = (hidden @ w2.T + b2).clamp_min(0) @ w3.T + b3
    torch.testing.assert_close(predictor(x), expected)


@pytest.mark.parametrize("domain", [(0.0, 1.0), (-3.0, 5.0)])
def test_every_first_unit_bends_inside_the_domain(domain: tuple[float, float]) -> None:
    for seed in range(20):
        weight, bias, *_ = HornPredictor(domain, generator=_generator(seed)).parameters()
        bend = -bias / weight[:, 0]
        assert domain[0] <= bend.min() < bend.max() <= domain[1]


def test_draws_come_from_the_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b, c = (HornPredictor(generator=_generator(s)).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)
    radii = [EllipseDecoder(generator=_generator(s)).radii.tolist() for s in (3, 3, 4)]
    assert radii[0] == radii[1] != radii[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_domain_is_named() -> None:
    with pytest.raises(ValueError, match="domain"):
        HornPredictor((1.0, 0.0))
