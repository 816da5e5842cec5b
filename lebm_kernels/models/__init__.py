"""Latent-variable models: grids, decoders, regularisers, the models made of them, and inference."""

from lebm_kernels.models.decoders import (
    EllipseDecoder,
    HornPredictor,
    NeuralDecoder,
    RBFDecoder,
    circle,
)
from lebm_kernels.models.grids import (
    LatentGrid,
    gauss_legendre_grid,
    interval_grid,
    periodic_grid,
    product_grid,
    sobol_grid,
)
from lebm_kernels.models.inference import Denoised, Inference, denoise, infer, infer_on_grid, sample
from lebm_kernels.models.latent_model import (
    CircleModel,
    DecoderModel,
    Ellipse,
    Horn,
    LatentModel,
    neural_horn,
)
from lebm_kernels.models.regularisers import L1, L2, LearnedPrior

__all__ = [
    "L1",
    "L2",
    "CircleModel",
    "DecoderModel",
    "Denoised",
    "Ellipse",
    "EllipseDecoder",
    "Horn",
    "HornPredictor",
    "Inference",
    "LatentGrid",
    "LatentModel",
    "LearnedPrior",
    "NeuralDecoder",
    "RBFDecoder",
    "circle",
    "denoise",
    "gauss_legendre_grid",
    "infer",
    "infer_on_grid",
    "interval_grid",
    "neural_horn",
    "periodic_grid",
    "product_grid",
    "sample",
    "sobol_grid",
]
