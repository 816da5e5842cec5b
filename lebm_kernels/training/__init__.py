"""Training of latent models: the loop, losses, contrastive samples, schedules and data."""

from lebm_kernels.training.datasets import Dataset, digits, ellipse_data, horn_data, horn_radii
from lebm_kernels.training.likelihood import density_loss
from lebm_kernels.training.loop import (
    TrainConfig,
    TrainResult,
    free_energies,
    mean_free_energy,
    train,
)
from lebm_kernels.training.losses import HingeLoss, LogLoss, energy_loss, hinge, log_ratio
from lebm_kernels.training.negatives import GaussianNoise, MostOffending, UniformBox, outside_balls
from lebm_kernels.training.schedules import Annealing

__all__ = [
    "Annealing",
    "Dataset",
    "GaussianNoise",
    "HingeLoss",
    "LogLoss",
    "MostOffending",
    "TrainConfig",
    "TrainResult",
    "UniformBox",
    "density_loss",
    "digits",
    "ellipse_data",
    "energy_loss",
    "free_energies",
    "hinge",
    "horn_data",
    "horn_radii",
    "log_ratio",
    "mean_free_energy",
    "outside_balls",
    "train",
]
