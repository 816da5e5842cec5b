"""The practicum's figures show what their formulas give, in float64, where their axes say."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.special import logsumexp, softmax

from lebm_kernels import figures
from lebm_kernels.models import Ellipse, Horn
from lebm_kernels.practicum import BETAS, FIGURES, WARM_BETA, Practicum, lattice
from lebm_kernels.training.datasets import ellipse_data

ANGLES = np.arange(48) * np.pi / 24


@pytest.fixture(scope="module")
def run() -> Practicum:
    """The ellipses as the recipes train them; the horn is trained briefly by its own tests."""
    return Practicum()


@pytest.fixture(scope="module")
def short() -> Practicum:
    return Practicum(epochs=2)


def radii(model) -> np.ndarray:
    return model.scale().detach().double().numpy()


def ellipse(model, z=ANGLES) -> np.ndarray:
    return radii(model) * np.stack([np.cos(z), np.sin(z)], axis=-1)


def energy(y, points) -> np.ndarray:
    return np.square(y[:, None] - points).sum(-1)


def panels(figure) -> list:
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def bars(figure) -> list:
    return [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]


def lines(axes) -> dict:
    return {line.get_label(): np.array(line.get_data(), dtype=float) for line in axes.lines}


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_is_a_picture_with_named_axes(short, name, tmp_path):
    figure = FIGURES[name](short)
    figure.savefig(tmp_path / "it.png", dpi=40)
    written = (tmp_path / "it.png").read_bytes()
    assert written.startswith(b"\x89PNG")
    assert len(written) > 5000
    for axes in panels(figure):
        assert axes.get_title()
        # The inner panels of these share the outer's labels.
        if name not in ("energies", "overview", "pulls"):
            assert axes.get_xlabel()
            assert axes.get_ylabel()
        assert axes.name != "3d" or axes.get_zlabel()
    for bar in bars(figure):
        assert bar.get_ylabel() or bar.get_xlabel()


def test_energies_are_those_of_the_closed_form(run):
    figure = FIGURES["energies"](run)
    y = run.cold.data.y.double().numpy()
    assert len(figure.axes) == len(y) == 24
    on_grid = energy(y, ellipse(run.cold.untrained))
    for i, axes in enumerate(figure.axes):
        curve, least = axes.lines
        z, drawn = np.array(curve.get_data(), dtype=float)
        assert z[0] == 0
        assert z[-1] == pytest.approx(2 * math.pi)
        wanted = energy(y[i : i + 1], ellipse(run.cold.untrained, z))[0]
        np.testing.assert_allclose(drawn, wanted, rtol=1e-5, atol=1e-5)
        assert least.get_xdata()[0] == pytest.approx(ANGLES[on_grid[i].argmin()], abs=1e-6)
        assert least.get_ydata()[0] == pytest.approx(on_grid[i].min(), rel=1e-5)
        low, high = axes.get_ylim()
        assert low <= drawn.min()
        assert drawn.max() <= high
        assert axes.get_title().startswith(f"$Y[{i}]$")
    assert [axes.get_xlabel() for axes in figure.axes] == [""] * 18 + ["$z$ (rad)"] * 6
    assert figure.get_supylabel() == "energy $E(y, z)$"


def test_a_few_energies_leave_no_empty_panel():
    data = ellipse_data(8, generator=torch.Generator().manual_seed(0))
    figure = figures.energy_curves_figure(Ellipse(radii=torch.tensor([1.0, 0.5])), data)
    assert len(figure.axes) == 8
    assert [bool(axes.get_xlabel()) for axes in figure.axes] == [False] * 2 + [True] * 6


def test_restored_points_are_the_nearest_of_the_grid(run):
    (axes,) = FIGURES["restored"](run).axes
    joined = np.array(axes.collections[0].get_segments())
    assert joined.shape == (425, 2, 2)
    start, end = joined[:, 0], joined[:, 1]
    first, second = np.unique(start[:, 0]), np.unique(start[:, 1])
    np.testing.assert_allclose(first, np.arange(-12, 13) / 4, atol=1e-6)
    np.testing.assert_allclose(second, np.arange(-8, 9) / 4, atol=1e-6)
    points = ellipse(run.cold.untrained)
    nearest, _ = cKDTree(points).query(start)
    np.testing.assert_allclose(np.linalg.norm(end - start, axis=1), nearest, rtol=1e-5)
    assert cKDTree(points).query(end)[0].max() < 1e-6
    assert "425" in axes.get_title()


def test_arrows_are_the_gradient_that_leads_away_from_the_nearest_point(run):
    figure = FIGURES["gradient"](run)
    (axes,) = panels(figure)
    (arrows,) = (x for x in axes.collections if hasattr(x, "U"))
    y = lattice().double().numpy()
    np.testing.assert_allclose(arrows.get_offsets(), y, atol=1e-6)
    points = ellipse(run.cold.untrained)
    distance, index = cKDTree(points).query(y, k=2)
    # Where two points are as near, F has a kink: no gradient.
    clear = distance[:, 1] - distance[:, 0] > 1e-4
    assert clear.sum() > 400
    wanted = 2 * (y - points[index[:, 0]])
    found = np.stack([arrows.U, arrows.V], axis=1)
    np.testing.assert_allclose(found[clear], wanted[clear], rtol=1e-4, atol=1e-5)
    assert axes.get_xlim() == pytest.approx((-3, 3))
    assert axes.get_ylim() == pytest.approx((-2, 2))
    assert axes.get_aspect() == 1.0
    assert bars(figure)[0].get_ylabel() == r"free energy $F_\infty(y)$"
    corner = distance[0, 0] ** 2
    filled = next(x for x in axes.collections if hasattr(x, "levels"))
    assert filled.levels[-1] == pytest.approx(corner, rel=1e-4)
    assert filled.levels[0] < 0.01


def test_contours_stand_at_the_height_of_their_free_energy(run):
    figure = FIGURES["surface"](run)
    (axes,) = panels(figure)
    (drawn,) = (x for x in axes.collections if hasattr(x, "levels"))
    tree = cKDTree(ellipse(run.cold.untrained))
    heights = list(drawn.levels)
    assert len(heights) == 30
    for height, path in zip(heights, drawn.get_paths(), strict=True):
        y = path.vertices
        # Between the points of the plane F is taken as linear, which a kink is not.
        y = y[np.abs(y[:, 1]) > 0.15]
        assert len(y) > 20
        np.testing.assert_allclose(tree.query(y)[0] ** 2, height, atol=2e-3)
    assert drawn.get_clim() == (0.0, 1.0)
    assert axes.get_zlim()[1] >= heights[-1] > 1.0
    (bar,) = bars(figure)
    names = [label.get_text() for label in bar.get_yticklabels()]
    assert names == ["cold: 0", "warm: 0.5", "hot: 1+"]
    assert bar.get_yticks().tolist() == [0.0, 0.5, 1.0]


def test_the_section_is_two_parabolas_that_meet_in_a_finite_peak(run):
    (axes,) = FIGURES["section"](run).axes
    long, short = np.abs(radii(run.cold.untrained))
    assert short < long  # so that (0, +-short) is the nearest point of all y with y1 = 0
    drawn = lines(axes)
    y2, value = drawn[r"$F_\infty(0, y_2)$"]
    np.testing.assert_allclose(value, (np.abs(y2) - short) ** 2, rtol=1e-4, atol=1e-6)
    assert np.abs(np.abs(y2[value < 1e-4]) - short).max() < 0.02
    crossing, height = drawn["where the section meets the manifold"]
    np.testing.assert_allclose(np.sort(crossing), [-short, short], rtol=1e-3)
    assert (height == 0).all()
    (peak,) = axes.texts
    assert peak.xy == pytest.approx((0.0, short**2), rel=1e-5)
    assert axes.get_xlabel() == "$y_2$ at $y_1 = 0$"


def test_likelihoods_are_exp_of_minus_the_energy(run):
    figure = FIGURES["likelihood"](run)
    y = run.cold.data.y.double().numpy()
    points = ellipse(run.cold.untrained)
    queries = [y[23], y[10], np.zeros(2)]
    for axes, bar, query in zip(panels(figure), bars(figure), queries, strict=True):
        shown = axes.collections[0]
        np.testing.assert_allclose(shown.get_offsets(), points, atol=1e-6)
        wanted = np.exp(-energy(query[None], points)[0])
        np.testing.assert_allclose(shown.get_array(), wanted, rtol=1e-4)
        np.testing.assert_allclose(lines(axes)["$y$"][:, 0], query, rtol=1e-6)
        assert shown.get_clim() == pytest.approx((0.0, wanted.max()), rel=1e-5)
        assert axes.get_title().endswith(f"{-math.log(wanted.mean()):.3g}")
        assert bar.get_xlabel() == r"$\exp(-E(y, z))$"
    assert [axes.get_title().partition(":")[0] for axes in panels(figure)] == [
        "$y$ = $Y[23]$",
        "$y$ = $Y[10]$",
        "$y$ = $(0, 0)$",
    ]


def test_another_temperature_is_in_the_exponent_and_in_its_name():
    model = Ellipse(radii=torch.tensor([1.0, 0.5]))
    figure = figures.likelihood_figure(model, [("here", torch.tensor([1.0, 1.0]))], beta=2.0)
    wanted = np.exp(-2 * energy(np.ones((1, 2)), ellipse(model))[0])
    np.testing.assert_allclose(panels(figure)[0].collections[0].get_array(), wanted, rtol=1e-4)
    assert bars(figure)[0].get_xlabel() == r"$\exp(-2\,E(y, z))$"


def test_sections_fall_from_hot_to_cold_and_end_in_closed_forms(run):
    figure = FIGURES["sections"](run)
    assert len(BETAS) == 6
    for axes, model in zip(panels(figure), (run.cold.untrained, run.cold.model), strict=True):
        first, second = np.abs(radii(model))
        assert second < first
        curves = axes.lines[:6]
        y2 = np.array(curves[0].get_xdata(), dtype=float)
        values = np.array([line.get_ydata() for line in curves], dtype=float)
        np.testing.assert_allclose(values[0], (np.abs(y2) - second) ** 2, rtol=1e-4, atol=1e-5)
        hot = y2**2 + (first**2 + second**2) / 2
        np.testing.assert_allclose(values[-1], hot, rtol=1e-5)
        y = np.stack([np.zeros_like(y2), y2], axis=1)
        for beta, value in zip(BETAS[1:-1], values[1:-1], strict=True):
            scaled = -beta * energy(y, ellipse(model))
            wanted = -(logsumexp(scaled, axis=1) - math.log(48)) / beta
            np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-5)
        assert (np.diff(values, axis=0) > -1e-5).all()
        names = [line.get_label() for line in curves]
        assert names[0] == r"$\beta = \infty$"
        assert names[1:] == [rf"$\beta = {beta:g}$" for beta in BETAS[1:]]
        assert len({(*line.get_color(), line.get_linestyle()) for line in curves}) == 6


def test_too_many_sections_are_refused():
    with pytest.raises(ValueError, match="betas must be at most 6, got 7"):
        figures.sections_figure([("it", Ellipse())], [1.0] * 7)


def test_pulls_are_the_posteriors_average_and_half_of_the_gradient(run):
    figure = FIGURES["pulls"](run)
    # An upper panel's label would lie on the title of the one below.
    labels = [(axes.get_xlabel(), axes.get_ylabel()) for axes in panels(figure)]
    assert labels == [("", "$y_2$"), ("", ""), ("$y_1$", "$y_2$"), ("$y_1$", "")]
    models = [run.cold.untrained, run.cold.model, run.warm.untrained, run.warm.model]
    betas = [math.inf, math.inf, WARM_BETA, WARM_BETA]
    y = run.cold.data.y.double().numpy()
    for axes, model, beta in zip(panels(figure), models, betas, strict=True):
        points = ellipse(model)
        cost = energy(y, points)
        cold = beta == math.inf
        p = np.eye(48)[cost.argmin(1)] if cold else softmax(-beta * cost, axis=1)
        mean = p @ points
        latents, average, chosen = (x for x in axes.collections if hasattr(x, "U"))
        arrow = np.stack([average.U, average.V], axis=1)
        np.testing.assert_allclose(average.get_offsets(), mean, atol=1e-5)
        np.testing.assert_allclose(arrow, y - mean, atol=1e-5)
        query = run.cold.data.y.double().requires_grad_()
        double = copy.deepcopy(model).double()
        (grad,) = torch.autograd.grad(double.free_energy(query, beta=beta).sum(), query)
        np.testing.assert_allclose(2 * arrow, grad, atol=1e-4)
        np.testing.assert_allclose((chosen.U, chosen.V), (y - mean)[[23]].T, atol=1e-5)
        # The arrows of single latents end at the observation, and have its posterior's colours.
        start = np.asarray(latents.get_offsets())
        end = start + np.stack([latents.U, latents.V], axis=1)
        np.testing.assert_allclose(end - y[23], 0, atol=1e-5)
        index = cKDTree(points).query(start)[1]
        share = p[23] / p[23].max()
        np.testing.assert_allclose(latents.get_array(), share[index], rtol=1e-4)
        assert share[np.setdiff1d(np.arange(48), index)].max(initial=0) < 1.1e-3
        assert len(index) == (1 if cold else (share > 1e-3).sum())
    titles = [axes.get_title() for axes in panels(figure)]
    assert titles == [
        r"Untrained, cold, $\beta = \infty$",
        r"Trained cold, $\beta = \infty$",
        r"Untrained, warm, $\beta = 1$",
        r"Trained warm, $\beta = 1$",
    ]


def test_horn_data_lie_about_the_true_ellipses(short):
    (axes,) = FIGURES["horn-data"](short).axes
    data = short.horn.data
    drawn = np.stack(axes.collections[0]._offsets3d, axis=1)
    np.testing.assert_array_equal(drawn, torch.cat([data.x[:, None], data.y], 1).numpy())
    assert len(drawn) == 2000
    assert len(axes.lines) == 5
    for line, x in zip(axes.lines, np.linspace(0, 1, 5), strict=True):
        at, first, second = np.array(line.get_data_3d(), dtype=float)
        np.testing.assert_allclose(at, x)
        wanted = np.array([1.5 * x + 2 * (1 - x), 2 * x + 1.5 * (1 - x)]) * math.exp(2 * x)
        inside = np.square(first / wanted[0]) + np.square(second / wanted[1])
        np.testing.assert_allclose(inside, 1, rtol=1e-5)
    labels = (axes.get_xlabel(), axes.get_ylabel(), axes.get_zlabel())
    assert labels == ("$x$", "$y_1$", "$y_2$")
    with pytest.raises(ValueError, match="data must have conditions x"):
        figures.horn_data_figure(ellipse_data())


def test_horn_shows_its_sections_at_51_conditions(short):
    figure = FIGURES["horn"](short)
    x = np.arange(51) / 50
    half = short.horn.data.y.abs().max().item()
    for axes, model in zip(panels(figure), (short.horn.untrained, short.horn.model), strict=True):
        shown = axes.collections[0]
        drawn = np.stack(shown._offsets3d, axis=1).reshape(51, 48, 3)
        np.testing.assert_allclose(drawn[..., 0], np.repeat(x[:, None], 48, 1), atol=1e-6)
        scale = model.scale(torch.tensor(x).float()).detach().double().numpy()
        wanted = scale[:, None] * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1)
        np.testing.assert_allclose(drawn[..., 1:], wanted, atol=1e-5)
        np.testing.assert_allclose(shown.get_array(), np.tile(ANGLES, 51), atol=1e-6)
        assert axes.get_ylim() == pytest.approx((-half, half))
    (bar,) = bars(figure)
    assert bar.get_ylabel() == "latent $z$ (rad)"
    np.testing.assert_allclose(bar.get_yticks(), np.arange(5) * np.pi / 2)


def test_overview_shows_three_temperatures_and_the_energies_of_all_pairs(run):
    figure = FIGURES["overview"](run)
    *maps, matrix, column = panels(figure)
    points = ellipse(run.cold.model)
    for axes, beta in zip(maps, [math.inf, 1.0, 0.0], strict=True):
        assert axes.get_title().startswith(
            r"$\beta = \infty$" if beta == math.inf else rf"$\beta = {beta:g}$"
        )
        filled = next(x for x in axes.collections if x.get_array() is not None)
        # One scale for all, so that F can be seen to rise; a contour has the height of its level.
        assert list(filled.levels) == list(maps[0].collections[0].levels)
        (level,) = filled.levels[5:6]
        y = filled.get_paths()[5].vertices
        cost = energy(y, points)
        if beta == math.inf:
            value = cost.min(1)
        elif beta == 0:
            value = cost.mean(1)
        else:
            value = -(logsumexp(-beta * cost, axis=1) - math.log(48)) / beta
        on_lower = np.abs(value - level) < 0.03
        on_upper = np.abs(value - filled.levels[6]) < 0.03
        inside = np.abs(y).max(1) < axes.get_xlim()[1] - 1e-6
        assert (on_lower | on_upper | ~inside).all()
        assert on_lower.any()
    y = run.cold.data.y.double().numpy()
    y = y[np.argsort(np.arctan2(y[:, 1], y[:, 0]) % (2 * math.pi))]
    drawn = np.asarray(matrix.images[0].get_array())
    np.testing.assert_allclose(drawn, energy(y, points), rtol=1e-4, atol=1e-5)
    least = np.asarray(column.images[0].get_array())[:, 0]
    np.testing.assert_allclose(least, energy(y, points).min(1), rtol=1e-4, atol=1e-5)
    assert any("24" in text.get_text() and "48" in text.get_text() for text in matrix.texts)
    with pytest.raises(ValueError, match="x"):
        figures.overview_figure(Horn(), run.cold.data)


def test_models_are_trained_when_asked_for_and_once(monkeypatch):
    from lebm_kernels import practicum

    seen = []
    monkeypatch.setattr(practicum, "train", lambda model, data, config, **_: seen.append(config))
    run = Practicum(seed=3, epochs=7)
    assert run.cold.untrained is not None
    assert seen == []
    assert run.cold.model is run.cold.model
    assert run.warm.model is not run.cold.model
    assert isinstance(run.horn.model, Horn)
    assert [config.beta for config in seen] == [math.inf, WARM_BETA, math.inf]
    assert {(config.seed, config.epochs) for config in seen} == {(3, 7)}
    assert torch.equal(run.cold.data.y, run.warm.data.y)
    assert torch.equal(run.cold.untrained.scale(), run.warm.untrained.scale())
