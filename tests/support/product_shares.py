"""Errors of the model of split products, as shares of what the promise on accuracy allows.

``PYTHONPATH=.:tests python -m support.product_shares`` prints the tables of csrc/cuda/README.md.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lebm_kernels.diagnostics import promise
from support.accuracy import gradients, reference_free_energy
from support.oracle import exact, to_array
from support.point_clouds import CLOUDS, Cloud
from support.split_products import CARDS, TILE, Block, Card, Model, Rows, judge

BETAS = (0.3, 1.0, 3.0, 10.0, 100.0, 1e4)


class Shares(NamedTuple):
    """The largest error of each result, divided by the error that is allowed there."""

    free_energy: float
    grad_y: float
    grad_decoded: float
    lost: float  # of the tiles


def results(model: Model, beta: float, grad: Tensor) -> tuple[Rows, dict[str, Tensor]]:
    """The row pass, and the gradients of sum(grad F)."""
    rows = model.rows(beta)
    by_y = torch.from_numpy(rows.grad_y) * grad[:, None]
    by_decoded = torch.from_numpy(model.columns(beta, rows, grad.numpy()))
    return rows, {"y": by_y, "decoded": by_decoded}


def shares(model: Model, beta: float, grad: Tensor) -> Shares:
    rows, found = results(model, beta, grad)
    arguments = model.arguments(beta)
    truth = exact(**arguments, grad=grad, of=tuple(found))
    by_reference = gradients(reference_free_energy, arguments, grad)
    allowed = promise.allowed(truth.magnitude, torch.float32)
    worst = [np.abs(rows.free_energy - truth.free_energy) / allowed]
    for name, x in found.items():
        bound = promise.gradient_bound(
            truth.gradients[name],
            to_array(by_reference[name]),
            truth.gradient_magnitudes[name],
            truth.gradient_noises[name],
            torch.float32,
            truth.gradient_remnants[name],
        )
        worst.append(np.abs(to_array(x) - truth.gradients[name]) / bound)
    # Other kernels take the hot queries.
    worst[0], worst[1] = (x[~rows.hot] for x in worst[:2])
    return Shares(*(float(x.max(initial=0)) for x in worst), float(rows.lost.mean()))
