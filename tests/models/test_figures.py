"""Figures hold what they say: the panels, their labels, and the values that are drawn."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lebm_kernels.figures import (
    cold_and_warm_figure,
    free_energy_figure,
    latent_map_figure,
    manifold_figure,
    restored_images_figure,
)
from lebm_kernels.models import Ellipse, Horn
from lebm_kernels.models.gtm import topographic_mapping
from lebm_kernels.training.datasets import Dataset, ellipse_data, horn_data


def _ellipse() -> Ellipse:
    return Ellipse(radii=torch.tensor([2.0, 1.5]))


def _panels(figure):
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def test_manifold_of_the_ellipse_shows_both_models_with_the_data() -> None:
    data = ellipse_data(generator=torch.Generator().manual_seed(0))
    untrained = Ellipse(radii=torch.tensor([1.0, 0.5]))
    panels = _panels(manifold_figure(untrained, _ellipse(), data))
    assert len(panels) == 2
    for axes, radii in zip(panels, ([1.0, 0.5], [2.0, 1.5]), strict=True):
        lines = {line.get_label(): np.array(line.get_data()) for line in axes.lines}
        np.testing.assert_allclose(np.abs(lines["manifold"]).max(1), radii, rtol=1e-6)
        assert lines["latent grid"].shape == (2, 48)
        np.testing.assert_array_equal(lines["observations"].T, data.y.numpy())
        assert axes.get_aspect() == 1.0
        assert axes.get_xlabel() == "$y_1$"
        assert axes.get_ylabel() == "$y_2$"


def test_manifold_of_the_horn_is_drawn_in_space(tmp_path: Path) -> None:
    data = horn_data(50, generator=torch.Generator().manual_seed(0))
    figure = manifold_figure(Horn(), Horn(), data)
    assert [axes.name for axes in _panels(figure)] == ["3d", "3d"]
    assert [axes.get_zlabel() for axes in _panels(figure)] == ["$y_2$", "$y_2$"]
    figure.savefig(tmp_path / "horn.png", dpi=40)
    assert (tmp_path / "horn.png").stat().st_size > 1000


@pytest.mark.parametrize("beta", [1.0, math.inf])
def test_map_covers_the_manifold_and_its_levels_span_the_free_energy(beta: float) -> None:
    model = _ellipse()
    figure = free_energy_figure(model, betas=[beta])
    (axes,) = _panels(figure)
    half = axes.get_xlim()[1]
    assert half >= 2.0
    corner = model.free_energy(torch.full((1, 2), float(half)), beta=beta).item()
    levels = axes.collections[0].levels
    assert levels[-1] == pytest.approx(corner, rel=1e-4)
    assert (np.diff(levels) > 0).all()
    origin = model.free_energy(torch.zeros(1, 2), beta=beta).item()
    assert levels[0] < origin < levels[-1]


def test_cold_and_warm_panels_say_their_temperatures(tmp_path: Path) -> None:
    figure = cold_and_warm_figure(_ellipse(), _ellipse(), beta=10.0)
    titles = [axes.get_title() for axes in _panels(figure)]
    assert titles == [r"Cold: $\beta = \infty$", r"Warm: $\beta = 10$"]
    figure.savefig(tmp_path / "maps.png", dpi=40)


def test_map_of_the_horn_shows_the_observations_near_its_section() -> None:
    data = horn_data(400, generator=torch.Generator().manual_seed(0))
    assert data.x is not None
    (axes,) = _panels(free_energy_figure(Horn(), betas=[1.0], x=0.5, data=data))
    drawn = {line.get_label(): line for line in axes.lines}["observations"].get_xdata()
    assert 0 < len(drawn) == int(((data.x - 0.5).abs() < 0.025).sum()) < 400


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="betas"):
        free_energy_figure(_ellipse(), betas=[])
    with pytest.raises(ValueError, match="x is missing"):
        free_energy_figure(Horn())
    with pytest.raises(ValueError, match="untrained and trained"):
        manifold_figure(_ellipse(), Horn(), horn_data(3))
    with pytest.raises(ValueError, match="data must have conditions x"):
        manifold_figure(Horn(), Horn(), ellipse_data())


def test_matplotlib_is_imported_only_for_a_figure() -> None:
    code = "import sys, lebm_kernels.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_figure_is_drawn_without_pyplot(tmp_path: Path) -> None:
    # No such backend is installed, so whatever selects it fails.
    code = """
import sys
from pathlib import Path
import torch
from lebm_kernels.cli.shared import save
from lebm_kernels.diagnostics.accuracy import BETAS
from lebm_kernels.figures.benchmarks import accuracy_figure
from lebm_kernels.figures import cold_and_warm_figure, latent_map_figure, restored_images_figure
from lebm_kernels.models import Ellipse
from lebm_kernels.models.gtm import topographic_mapping
from lebm_kernels.practicum import FIGURES, Practicum
from lebm_kernels.training.datasets import Dataset
torch.set_num_threads(1)
run, y = Practicum(epochs=0), torch.rand(30, 9)
figures = {name: draw(run) for name, draw in FIGURES.items()}
mapping = topographic_mapping(y, latents=4, bumps=3)
figures["latents"] = latent_map_figure(mapping, Dataset(y), torch.arange(30) % 3)
figures["images"] = restored_images_figure(mapping, y[:6], noise=0.0)
figures["cold-and-warm"] = cold_and_warm_figure(Ellipse(), Ellipse(), beta=1.0)
figures["accuracy"] = accuracy_figure(BETAS, {"native": [1.0] * len(BETAS)})
for figure in figures.values():
    figure.draw_without_rendering()
for name in ("section", "accuracy"):
    save(figures[name], Path(sys.argv[1]) / name, "png", "svg")
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"MPLBACKEND": "module://nothing"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["accuracy.png", "accuracy.svg", "section.png", "section.svg"]


def test_latent_map_puts_each_label_near_the_mode_of_its_posterior() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(30, 4, generator=generator)
    label = torch.arange(30) % 3
    model = topographic_mapping(y, latents=4, bumps=3)
    figure = latent_map_figure(model, Dataset(y), label)
    marks = figure.axes[0].collections
    assert len(marks) == 3
    energy = (y[:, None] - model.manifold()).square().sum(-1)
    mode = model.z[energy.argmin(1)]
    for digit, mark in enumerate(marks):
        off = torch.as_tensor(mark.get_offsets().data) - mode[label == digit]
        assert off.abs().max() <= 0.25 + 1e-6  # half of what a latent stands for
    with pytest.raises(ValueError, match="grid of 2 dimensions, got 1"):
        latent_map_figure(Ellipse(), Dataset(torch.zeros(3, 2)), torch.zeros(3))


def test_restored_images_stand_below_what_they_were() -> None:
    y = torch.rand(30, 9, generator=torch.Generator().manual_seed(0))
    model = topographic_mapping(y, latents=4, bumps=3)
    figure = restored_images_figure(model, y[:6], noise=0.0)
    shown = [
        [axes.images[0].get_array() for axes in figure.axes[i : i + 6]] for i in range(0, 30, 6)
    ]
    for column in range(6):
        image, noisy, restored, half, by_half = (line[column] for line in shown)
        assert (image == noisy).all()
        assert torch.equal(torch.as_tensor(image.data), y[column].view(3, 3))
        assert (half.ravel()[:5] == image.ravel()[:5]).all()
        assert (half.ravel()[5:] == y[:6].min().item()).all()
        assert (restored != by_half).any()
    with pytest.raises(ValueError, match="square images, got 8 numbers"):
        restored_images_figure(model, y[:, :8], noise=0.0)
