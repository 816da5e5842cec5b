"""Latent-variable energy-based models of points in the plane, over a fixed latent grid.

A model is a latent grid, its decoded points, and the scale that a query's condition gives them;
its free energy is :func:`lebm_kernels.free_energy` of the three. A new model says what its scale
is, and which decoder makes it.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lebm_kernels.decoders import EllipseDecoder, HornPredictor, circle
from lebm_kernels.functional import free_energy, posterior
from lebm_kernels.grids import LatentGrid, periodic_grid
from lebm_kernels.reference import Posterior

if TYPE_CHECKING:
    from typing_extensions import Self


class LatentModel(nn.Module):
    """The circle decoded on a latent grid, scaled by radii: the common part of both models.

    Args:
        grid: the latent grid; the practicum's 48 angles if absent.
    """

    conditional: bool
    """Whether the model needs the condition x of a query."""

    decoded: Tensor
    """The unit circle on the grid, ``[N, 2]``."""

    z: Tensor
    """The latent points, ``[N]``."""

    log_weight: Tensor | None

    def __init__(self, grid: LatentGrid | None = None) -> None:
        super().__init__()
        self._set_grid(periodic_grid() if grid is None else grid)

    def _set_grid(self, grid: LatentGrid) -> None:
        # Buffers follow .to(), and stay out of the state: it holds what was learned, no more.
        self.register_buffer("decoded", circle(grid.z), persistent=False)
        self.register_buffer("z", grid.z, persistent=False)
        self.register_buffer("log_weight", grid.log_weight, persistent=False)

    def on_grid(self, grid: LatentGrid) -> Self:
        """A copy of this model, sharing nothing with it, over another latent grid."""
        model = copy.deepcopy(self)
        model._set_grid(
            LatentGrid(
                grid.z.to(self.decoded),
                None if grid.log_weight is None else grid.log_weight.to(self.decoded),
            )
        )
        return model

    def scale(self, x: Tensor | None = None) -> Tensor:
        """The radii that scale the circle: ``[2]``, or ``[..., 2]`` for conditions ``x[...]``."""
        raise NotImplementedError

    def manifold(self, x: Tensor | None = None) -> Tensor:
        """The scaled circle on the grid: ``[N, 2]``, or ``[..., N, 2]`` for conditions ``x[...]``.

        Raises:
            ValueError: ``x`` is missing from a conditional model or given to another.
        """
        return self._checked_scale(x).unsqueeze(-2) * self.decoded

    def free_energy(
        self,
        y: Tensor,
        x: Tensor | None = None,
        *,
        beta: float | Tensor = torch.inf,
        backend: str | None = None,
    ) -> Tensor:
        """F of each observation, ``[..., M]``.

        Args:
            y: observations, ``[..., M, 2]``.
            x: the condition of each, broadcastable to ``[..., M]``; conditional models only.
            beta: inverse temperature, a number or a tensor that broadcasts to F; the default is
                the zero-temperature limit.
            backend: as in :func:`lebm_kernels.free_energy`.

        Raises:
            ValueError: ``x`` is missing from a conditional model or given to another.
        """
        return free_energy(
            y,
            self.decoded,
            beta,
            scale=self._checked_scale(x),
            log_weight=self.log_weight,
            backend=backend,
        )

    def posterior(
        self,
        y: Tensor,
        x: Tensor | None = None,
        *,
        beta: float | Tensor = torch.inf,
        backend: str | None = None,
    ) -> Posterior:
        """What is known about the latent of each observation: arguments as in `free_energy`.

        The restored observations are ``model.manifold(x)`` at ``index`` (cold), or ``scale(x)``
        times ``mean`` (warm).

        Raises:
            ValueError: ``x`` is missing from a conditional model or given to another.
        """
        return posterior(
            y,
            self.decoded,
            beta,
            scale=self._checked_scale(x),
            log_weight=self.log_weight,
            backend=backend,
        )

    def _checked_scale(self, x: Tensor | None) -> Tensor:
        name = type(self).__name__
        if self.conditional and x is None:
            raise ValueError(f"x is missing: {name} is conditional and needs one x per observation")
        if not self.conditional and x is not None:
            raise ValueError(f"x was given, of shape {list(x.shape)}: {name} is unconditional")
        return self.scale(x)


class Ellipse(LatentModel):
    """An unconditional model: every observation lies about one ellipse of two learned radii.

    Args:
        grid: the latent grid; the practicum's 48 angles if absent.
        radii: the first radii, ``[2]``; drawn from N(0, 1) if absent.
        generator: source of the draw; the global generator if absent.
    """

    conditional = False

    def __init__(
        self,
        grid: LatentGrid | None = None,
        *,
        radii: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(grid)
        self.decoder = EllipseDecoder(radii, generator=generator)

    def scale(self, x: Tensor | None = None) -> Tensor:
        """The two radii, ``[2]``."""
        return self.decoder.radii


class Horn(LatentModel):
    """A conditional model: observations at x lie about an ellipse whose radii x predicts.

    Args:
        grid: the latent grid; the practicum's 48 angles if absent.
        generator: source of the predictor's first weights; the global generator if absent.
    """

    conditional = True

    def __init__(
        self, grid: LatentGrid | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(grid)
        self.predictor = HornPredictor(generator=generator)

    def scale(self, x: Tensor | None = None) -> Tensor:
        """The predicted radii ``[..., 2]`` at ``x[...]``."""
        if x is None:
            raise ValueError("x is missing: the radii of a horn are those of a section")
        return self.predictor(x)
