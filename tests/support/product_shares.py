"""Errors of the model of split products, as shares of what the promise on accuracy allows.

``PYTHONPATH=.:tests python -m support.product_shares`` prints the tables of csrc/cuda/README.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lebm_kernels.diagnostics import promise
from support.accuracy import gradients, reference_free_energy
from support.oracle import exact, to_array
from support.point_clouds import CLOUDS, Cloud, digits, in_squares, manifold
from support.split_products import (
    BLOCK,
    CARDS,
    SM_90,
    Block,
    Card,
    Model,
    Rows,
    judge,
    least_energy,
    to_float,
)
from support.tensor_core import Array

BETAS = (0.3, 1.0, 3.0, 10.0, 100.0, 1e4)
SIZES = ((16, 12, 576), (64, 12, 576), (784, 6, 150))
"""D, M and N of the problems whose errors are printed."""


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


def worst(cloud: Cloud, D: int, M: int, N: int, card: Card) -> Shares:
    """Of all betas, each number by itself."""
    generator = torch.Generator().manual_seed(0)
    model = Model(*cloud(M, N, D, generator), card)
    grad = torch.randn(M, generator=generator)
    return Shares(*np.max([shares(model, beta, grad) for beta in BETAS], axis=0))


class _InDouble(Block):
    """With s in double, which is soon done for a large grid."""

    def _products(self, card: Card, order: Any) -> Array:
        dot = self.u.astype(np.float64) @ self.v.T
        return to_float(dot - self.v_square / 2)


def lost_tiles(cloud: Cloud, D: int, order_of: Callable[[Tensor], Tensor]) -> list[float]:
    """The share of the tiles of 16384 latents, in this order, that is lost at each beta."""
    points, latents = cloud(64, 16384, D, torch.Generator().manual_seed(0))
    y, decoded = points.numpy(), order_of(latents).numpy()
    order = np.random.default_rng(0)
    starts = range(0, len(decoded), BLOCK)
    blocks = [_InDouble(y, decoded, start, SM_90, order) for start in starts]
    tiles = [(block, tile) for block in blocks for tile in block.tiles()]
    shift = np.min([least_energy(*tile) for tile in tiles], axis=0)
    return [
        float(np.mean([judge(*tile, shift, np.float32(beta)).lost for tile in tiles]))
        for beta in BETAS
    ]


def main() -> None:
    torch.set_num_threads(1)
    for D, M, N in SIZES:
        for cloud in CLOUDS:
            found = [worst(cloud, D, M, N, card) for card in CARDS]
            numbers = "  ".join(" ".join(f"{x:.2f}" for x in one[:3]) for one in found)
            print(f"D = {D:3} {cloud.__name__:10} {numbers}", flush=True)
    for D in (16, 64):
        for name, order_of in (("as given", lambda x: x), ("in squares", in_squares)):
            for cloud in CLOUDS if name == "as given" else (manifold, digits):
                percent = " ".join(f"{100 * x:5.1f}" for x in lost_tiles(cloud, D, order_of))
                print(f"D = {D:3} {cloud.__name__:10} {name}, lost, %: {percent}", flush=True)


if __name__ == "__main__":
    main()
