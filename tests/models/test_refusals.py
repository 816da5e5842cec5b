"""What models, grids, decoders and what stands on them refuse, and by which name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lebm_kernels.benchmarks.cases import Case
from lebm_kernels.models import DecoderModel, Ellipse, gtm, inference
from lebm_kernels.models.decoders import HornPredictor, NeuralDecoder, RBFDecoder
from lebm_kernels.models.grids import product_grid, sobol_grid
from lebm_kernels.training import TrainConfig, free_energies, mean_free_energy, train
from lebm_kernels.training.datasets import Dataset, digits, ellipse_data

MODEL = Ellipse(radii=torch.tensor([2.0, 1.5]))
Y = torch.randn(4, 2)


def mapping() -> DecoderModel:
    return gtm.topographic_mapping(torch.randn(20, 3), latents=4, bumps=3)


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "denoised integers": (lambda: inference.denoise(MODEL, Y.long()), TypeError, "y"),
    "a word to start from": (
        lambda: inference.infer(MODEL, Y, start="a"),  # type: ignore[arg-type]
        TypeError,
        "start",
    ),
    "a start that is none": (
        lambda: inference.infer(MODEL, Y, start=math.nan),
        ValueError,
        "start",
    ),
    "points for a grid": (lambda: MODEL.on_grid(Y), TypeError, "grid"),  # type: ignore[arg-type]
    "no grid": (lambda: MODEL.on_grid(None), TypeError, "grid"),  # type: ignore[arg-type]
    "points in a product": (lambda: product_grid(Y), TypeError, "grids"),  # type: ignore[arg-type]
    "a word for a seed": (
        lambda: sobol_grid(4, 2, seed="a"),  # type: ignore[arg-type]
        ValueError,
        "seed",
    ),
    "a seed below zero": (lambda: digits(seed=-1), ValueError, "seed"),
    "a list of observations": (
        lambda: gtm.fit(mapping(), [[0.0] * 3]),  # type: ignore[arg-type]
        TypeError,
        "y",
    ),
    "a list to restore": (
        lambda: gtm.restore(mapping(), [[0.0] * 3]),  # type: ignore[arg-type]
        TypeError,
        "y",
    ),
    "a list of what is seen": (
        lambda: gtm.restore(mapping(), torch.zeros(1, 3), [True] * 3),  # type: ignore[arg-type]
        TypeError,
        "seen",
    ),
    "a list to score": (
        lambda: gtm.mean_log_density(mapping(), [[0.0] * 3]),  # type: ignore[arg-type]
        TypeError,
        "y",
    ),
    "observations of NaN": (
        lambda: gtm.topographic_mapping(torch.full((5, 3), math.nan)),
        ValueError,
        "y",
    ),
    "infinite observations": (
        lambda: gtm.fit(mapping(), torch.full((5, 3), math.inf)),
        ValueError,
        "y",
    ),
    "observations of another size": (
        lambda: gtm.restore(mapping(), torch.zeros(5, 2)),
        ValueError,
        "y",
    ),
    "a loss by name": (
        lambda: train(MODEL, ellipse_data(), TrainConfig(), loss="hinge"),  # type: ignore[arg-type]
        TypeError,
        "loss",
    ),
    "a list of centres": (
        lambda: RBFDecoder([[0.0]], 1.0, 2),  # type: ignore[arg-type]
        TypeError,
        "centres",
    ),
    "one number of units": (
        lambda: NeuralDecoder(hidden=32),  # type: ignore[arg-type]
        ValueError,
        "hidden",
    ),
    "one end": (lambda: NeuralDecoder(domain=1.0), ValueError, "domain"),  # type: ignore[arg-type]
    "three ends": (
        lambda: HornPredictor(domain=(0, 1, 2)),  # type: ignore[arg-type]
        ValueError,
        "domain",
    ),
    "an empty interval": (lambda: HornPredictor(domain=(1.0, 1.0)), ValueError, "domain"),
    "an end at infinity": (lambda: HornPredictor(domain=(0.0, math.inf)), ValueError, "domain"),
    "slices of nothing": (
        lambda: mean_free_energy(MODEL, ellipse_data(), slice_size=0),
        ValueError,
        "slice_size",
    ),
    "slices of half": (
        lambda: free_energies(MODEL, ellipse_data(), slice_size=0.5),  # type: ignore[arg-type]
        ValueError,
        "slice_size",
    ),
    "half a query": (lambda: Case(1.5, 2, 2), ValueError, "M"),  # type: ignore[arg-type]
    "a word for beta": (lambda: Case(1, 2, 2, beta="a"), ValueError, "beta"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("call", "error", "name"), REFUSED.values(), ids=REFUSED.keys())
def test_is_refused_by_name(call: Callable[[], Any], error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=rf"^{name} must"):
        call()


def test_half_precision_can_be_resumed(tmp_path: Any) -> None:
    """Whatever trains can be kept: NumPy knows no bfloat16."""
    data = Dataset(ellipse_data().y.bfloat16())
    config = TrainConfig(epochs=2, schedule="constant")
    path = tmp_path / "checkpoint.pt"

    def model() -> Ellipse:
        return Ellipse(radii=torch.tensor([2.0, 1.5])).to(torch.bfloat16)

    straight, resumed = model(), model()
    train(straight, data, TrainConfig(epochs=3, schedule="constant"), progress=False)
    train(resumed, data, config, checkpoint=path, progress=False)
    resumed = model()
    config = TrainConfig(epochs=3, schedule="constant")
    train(resumed, data, config, checkpoint=path, resume=True, progress=False)
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    other_data = Dataset(data.y[:-1])
    with pytest.raises(ValueError, match=r"^data must be that of checkpoint"):
        train(model(), other_data, config, checkpoint=path, resume=True, progress=False)
