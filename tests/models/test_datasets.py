"""The data are drawn as their formula says: checked by their statistics and by undoing it."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kstest

from lebm_kernels.training.datasets import Dataset, ellipse_data, horn_data, horn_radii


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_radii_at_known_conditions() -> None:
    x = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    e = math.e
    expected = [[2.0, 1.5], [1.75 * e, 1.75 * e], [1.5 * e**2, 2.0 * e**2]]
    torch.testing.assert_close(horn_radii(x), torch.tensor(expected, dtype=torch.float64))


def test_noiseless_points_lie_on_their_section_at_uniform_angles() -> None:
    data = horn_data(2000, noise=0.0, generator=_generator(0))
    assert data.x is not None
    unit = data.y / horn_radii(data.x)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(2000))
    angle = torch.atan2(unit[:, 1], unit[:, 0]) / (2 * math.pi) + 0.5
    assert kstest(angle.numpy(), "uniform").pvalue > 1e-3
    assert kstest(data.x.numpy(), "uniform").pvalue > 1e-3


def test_noise_is_normal_of_its_deviation_on_each_component() -> None:
    clean = horn_data(2000, noise=0.0, generator=_generator(0))
    noise = (horn_data(2000, generator=_generator(0)).y - clean.y).numpy()
    for component in (0, 1):
        assert kstest(noise[:, component], "norm", args=(0.0, 0.05)).pvalue > 1e-3


def test_ellipse_is_24_points_of_the_section_at_zero() -> None:
    data = ellipse_data(generator=_generator(0))
    assert len(data) == 24
    assert data.x is None
    clean = ellipse_data(noise=0.0, generator=_generator(0))
    torch.testing.assert_close((clean.y / torch.tensor([2.0, 1.5])).norm(dim=1), torch.ones(24))
    assert 0 < (data.y - clean.y).abs().max() < 0.05 * 5


@pytest.mark.parametrize("draw", [ellipse_data, horn_data])
def test_draws_follow_the_generator(draw) -> None:
    a, b, c = (draw(10, generator=_generator(s)).y for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_picking_keeps_pairs_together() -> None:
    data = horn_data(10, noise=0.0, generator=_generator(0))
    picked = data[torch.tensor([7, 2])]
    assert picked.x is not None
    torch.testing.assert_close((picked.y / horn_radii(picked.x)).norm(dim=1), torch.ones(2))
    assert torch.equal(picked.y[0], data.y[7])


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: horn_data(0), "num"),
        (lambda: ellipse_data(noise=-1.0), "noise"),
        (lambda: ellipse_data(noise="a"), "noise"),
        (lambda: Dataset(torch.zeros(3)), "y"),
        (lambda: Dataset(torch.zeros(0, 2)), "y"),
        (lambda: Dataset(torch.zeros(3, 2), torch.zeros(2)), "x"),
    ],
)
def test_bad_values_are_named(make, named: str) -> None:
    with pytest.raises(TypeError, match=r"^y must be a tensor \[num, D\], got list"):
        Dataset([[1.0, 2.0]])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^x must be a tensor \[num\], got list"):
        Dataset(torch.zeros(1, 2), [1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"^{named} must"):
        make()
