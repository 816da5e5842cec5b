"""Latent-variable energy-based models over a fixed latent grid.

A model says, for the condition of a query, the decoded grid and what scales it; its free energy is
:func:`lebm_kernels.free_energy` of them, of the grid's weights and of what the latents cost by
themselves. :class:`CircleModel` has a fixed circle and learns radii, :class:`DecoderModel` learns
any decoder. A new model gives ``decode``, and overrides ``_arguments`` where the operation can take
a shorter way than the decoded points.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lebm_kernels.arguments import autocast_dtype
from lebm_kernels.checks import number
from lebm_kernels.functional import free_energy, posterior, sample_latent
from lebm_kernels.models.decoders import (
    EllipseDecoder,
    HornPredictor,
    NeuralDecoder,
    circle,
)
from lebm_kernels.models.grids import LatentGrid, periodic_grid
from lebm_kernels.reference import Posterior
from lebm_kernels.torch_internals import in_plain_eager_mode

if TYPE_CHECKING:
    from typing_extensions import Self


class LatentModel(nn.Module):
    """What all models have: a latent grid, its measure, what latents cost, and a temperature.

    Where no beta is given, a model is cold, as the practicum's are: F is the least energy, and
    what is restored the nearest point. Only draws are at beta = 1, as cold there is nothing left to
    draw; a density has no default, as there beta is the data's noise, 1 / (2 sigma^2).
    (:func:`lebm_kernels.free_energy`, an operation that knows of no model, is at 1.)

    Args:
        grid: the latent grid; the practicum's 48 angles if absent.
        regulariser: a module of :mod:`lebm_kernels.models.regularisers`. It is called with the
            grid's points ``[N, K]`` and normalised log-weights ``[N]``, and returns R, ``[N]``.
            None: no regulariser.

    Raises:
        TypeError: ``grid`` isn't a :class:`lebm_kernels.models.grids.LatentGrid`.
    """

    conditional: bool
    """Whether the model needs the condition x of a query."""

    z: Tensor
    """The latent points, ``[N]`` or ``[N, K]``; its device and dtype are the model's."""

    log_weight: Tensor | None

    log_beta: nn.Parameter | None
    """The logarithm of a learned inverse temperature; see :meth:`learn_beta`."""

    def __init__(
        self, grid: LatentGrid | None = None, *, regulariser: nn.Module | None = None
    ) -> None:
        super().__init__()
        if grid is not None and not isinstance(grid, LatentGrid):
            raise TypeError(f"grid must be a LatentGrid, got {type(grid).__name__}")
        self.regulariser = regulariser
        self.register_parameter("log_beta", None)
        self._set_grid(periodic_grid() if grid is None else grid)

    def _set_grid(self, grid: LatentGrid) -> None:
        # Buffers follow .to(), and stay out of the state: it holds what was learned, no more.
        self.register_buffer("z", grid.z, persistent=False)
        self.register_buffer("log_weight", grid.log_weight, persistent=False)

    @property
    def grid(self) -> LatentGrid:
        """The latent grid."""
        return LatentGrid(self.z, self.log_weight)

    def on_grid(self, grid: LatentGrid) -> Self:
        """A copy of this model, sharing nothing with it, over another latent grid.

        Raises:
            TypeError: it is no :class:`~lebm_kernels.models.grids.LatentGrid`.
            ValueError: the grid has another number of dimensions.
        """
        if not isinstance(grid, LatentGrid):
            raise TypeError(f"grid must be a LatentGrid, got {type(grid).__name__}")
        if grid.dim != self.grid.dim:
            raise ValueError(f"grid must have {self.grid.dim} dimensions, got {grid.dim}")
        model = copy.deepcopy(self)
        model._set_grid(
            LatentGrid(
                grid.z.to(self.z),
                None if grid.log_weight is None else grid.log_weight.to(self.z),
            )
        )
        return model

    def decode(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """Decode latents, on the grid or not: ``[N, D]``, or ``[..., N, D]`` for conditions.

        Args:
            z: latents, ``[N]`` or ``[N, K]``.
            x: conditions, ``[...]``; conditional models only.

        Raises:
            ValueError: ``x`` is missing from a conditional model or given to another.
        """
        raise NotImplementedError

    def decode_each(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """Decode one latent an observation, each at its own condition: ``[M, D]``.

        Args:
            z: latents, ``[M]`` or ``[M, K]``, of as many dimensions as the grid's.
            x: conditions, ``[M]``; conditional models only.

        Raises:
            ValueError: ``x`` is missing from a conditional model or given to another.
        """
        raise NotImplementedError

    def manifold(self, x: Tensor | None = None) -> Tensor:
        """The decoded grid: ``[N, D]``, or ``[..., N, D]`` for conditions ``x[...]``.

        Raises:
            ValueError: ``x`` is missing from a conditional model or given to another.
        """
        return self.decode(self.z, x)

    @property
    def latent_energy(self) -> Tensor | None:
        """R on the grid, ``[N]``; ``None`` without a regulariser."""
        if self.regulariser is None:
            return None
        grid = self.grid
        value: Tensor = self.regulariser(grid.points, grid.log_measure)
        return value

    def learn_beta(self, beta: float = 1.0) -> Self:
        """Give the model an inverse temperature of its own to learn, and return the model.

        Args:
            beta: where it starts, positive and finite.

        Raises:
            ValueError: ``beta`` is out of range.
        """
        if not (0.0 < number(beta) < math.inf):
            raise ValueError(f"beta must be positive and finite to be learned, got {beta!r}")
        self.log_beta = nn.Parameter(self.z.new_tensor(math.log(beta)))
        return self

    @property
    def beta(self) -> Tensor | None:
        """The learned inverse temperature, a scalar; ``None`` where none is learned."""
        return None if self.log_beta is None else self.log_beta.exp()

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
            y: observations, ``[..., M, D]``.
            x: the condition of each, broadcastable to ``[..., M]``; conditional models only.
            beta: inverse temperature, a number or a tensor that broadcasts to F; the default is
                the zero-temperature limit.
            backend: as in :func:`lebm_kernels.free_energy`.

        Raises:
            TypeError: ``y`` or ``x`` is no tensor, or not of the model's dtype.
            ValueError: ``x`` is missing from a conditional model or given to another, or has more
                than one condition an observation; or ``y`` has not the dimensions that the model
                decodes to.
        """
        value = free_energy(**self._question(y, x, beta), backend=backend)
        return value.squeeze(-1) if self._each_its_own(x) else value

    def posterior(
        self,
        y: Tensor,
        x: Tensor | None = None,
        *,
        beta: float | Tensor = torch.inf,
        backend: str | None = None,
    ) -> Posterior:
        """What is known about the latent of each observation: arguments as in `free_energy`.

        The restored observations are ``model.manifold(x)`` at ``index`` (cold), or ``mean`` (warm;
        times ``scale(x)`` where the model is a circle's).

        Raises:
            ValueError: ``x`` is missing from a conditional model or given to another.
        """
        found = posterior(**self._question(y, x, beta), backend=backend)
        if not self._each_its_own(x):
            return found
        value, mean, energy, relative_entropy, index = found
        return Posterior(
            value.squeeze(-1),
            mean.squeeze(-2),
            energy.squeeze(-1),
            relative_entropy.squeeze(-1),
            index.squeeze(-1),
        )

    def sample_latent(
        self,
        y: Tensor,
        x: Tensor | None = None,
        *,
        num_samples: int,
        beta: float | Tensor = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw latents of the grid from each posterior: indices ``[..., M, num_samples]``.

        Args:
            y: observations, ``[..., M, D]``.
            x: the condition of each, as in :meth:`free_energy`.
            num_samples: how many draws an observation, at least 0.
            beta: inverse temperature, as in :meth:`free_energy`, but 1 if absent: at infinity all
                draws are of the nearest latents.
            generator: source of the draws, on y's device; the global generator if absent.

        Raises:
            ValueError: ``x`` is missing from a conditional model or given to another.
        """
        found = sample_latent(
            **self._question(y, x, beta),
            num_samples=num_samples,
            generator=generator,
        )
        return found.squeeze(-2) if self._each_its_own(x) else found

    def log_density(
        self,
        y: Tensor,
        x: Tensor | None = None,
        *,
        beta: float | Tensor,
        backend: str | None = None,
    ) -> Tensor:
        """The logarithm of the normalised density of each observation given x, ``[..., M]``.

        As E is a squared distance, exp(-beta E) is a Gaussian of variance 1/(2 beta) about each
        decoded latent, and its normaliser is known::

            log p(y) = -beta F(y) + D/2 log(beta/pi) - log sum_n w[n] exp(-beta R(z[n]))

        Args:
            y: observations, ``[..., M, D]``.
            x: the condition of each, as in :meth:`free_energy`.
            beta: inverse temperature, positive and finite; a tensor may be learned, and is a
                scalar where latents cost something.
            backend: as in :func:`lebm_kernels.free_energy`.

        Raises:
            ValueError: ``beta`` is a number out of range, or a tensor with a number below 0 or a
                NaN (in eager mode, where it can be looked at); or ``x`` doesn't suit the model.
        """
        if not isinstance(beta, Tensor):
            if not (0.0 < number(beta) < math.inf):
                raise ValueError(f"beta must be positive and finite for a density, got {beta!r}")
            beta = self.z.new_tensor(float(beta))
        elif in_plain_eager_mode() and not bool((beta >= 0).all()):
            raise ValueError(f"beta must be positive and finite for a density, got {beta}")
        value = self.free_energy(y, x, beta=beta, backend=backend)
        normaliser = 0.5 * y.shape[-1] * (beta / math.pi).log()
        cost = self.latent_energy
        if cost is not None:
            normaliser = normaliser - torch.logsumexp(self.grid.log_measure - beta * cost, 0)
        return normaliser - beta * value

    def _arguments(self, x: Tensor | None) -> dict[str, Any]:
        """What the operation takes beside y and beta."""
        return {
            "decoded": self.manifold(x),
            "log_weight": self.log_weight,
            "latent_energy": self.latent_energy,
        }

    def _question(self, y: Tensor, x: Tensor | None, beta: float | Tensor) -> dict[str, Any]:
        """What the operation takes; each query is a batch where each has its own decoded grid.

        Raises:
            TypeError: ``x`` or ``y`` is no tensor, or not of the model's dtype.
            ValueError: ``x`` is missing or unwanted, or would give a query more than one condition;
                or ``y`` has not as many dimensions as the model decodes to.
        """
        self._check_condition(x)
        arguments = self._arguments(x)
        self._check_observations(y, arguments["decoded"])
        scale = arguments.get("scale")
        leading = arguments["decoded"].shape[:-2] if scale is None else scale.shape[:-1]
        if x is not None and isinstance(y, Tensor) and y.dim() > 1:
            queries = y.shape[:-1]
            pairs = zip(leading[::-1], queries[::-1], strict=False)
            if len(leading) > len(queries) or any(a not in (1, b) for a, b in pairs):
                column = x.shape[-1:] == (1,) and x.shape[:-1] == queries
                hint = "; x.squeeze(-1) has one each" if column else ""
                raise ValueError(
                    f"x must have one condition an observation, {list(queries)} of them as y "
                    f"{list(y.shape)} has, got shape {list(x.shape)}{hint}"
                )
        if self._each_its_own(x):
            y = y.unsqueeze(-2)
            beta = beta.unsqueeze(-1) if isinstance(beta, Tensor) and beta.dim() else beta
        return {"y": y, "beta": beta, **arguments}

    def _each_its_own(self, x: Tensor | None) -> bool:
        """Whether each query has its own decoded grid, so that it is a batch of its own."""
        return x is not None and x.dim() > 0

    def _check_condition(self, x: Tensor | None) -> None:
        name = type(self).__name__
        if self.conditional and x is None:
            raise ValueError(f"x is missing: {name} is conditional and needs one x per observation")
        if x is None:
            return
        if not isinstance(x, Tensor):
            raise TypeError(
                f"x must be a tensor of one condition per observation, or one for all, "
                f"got {type(x).__name__}"
            )
        if not self.conditional:
            raise ValueError(f"x was given, of shape {list(x.shape)}: {name} is unconditional")

    def _check_observations(self, y: Tensor, decoded: Tensor) -> None:
        """Refuse observations unlike what the model decodes to, which the caller never named.

        What is wrong with them in themselves is for the operation to say.
        """
        if not isinstance(y, Tensor) or y.layout != torch.strided or y.is_nested or y.dim() < 2:
            return
        name, num_dims = type(self).__name__, decoded.shape[-1]
        wanted = autocast_dtype(decoded.dtype, y.device.type)
        if autocast_dtype(y.dtype, y.device.type) != wanted:
            raise TypeError(f"y must be {wanted} as {name} decodes to, got {y.dtype}")
        if y.device != decoded.device:
            raise ValueError(f"y must be on {decoded.device} as {name} is, got {y.device}")
        if y.shape[-1] != num_dims:
            raise ValueError(
                f"y must be [..., M, {num_dims}] as {name} decodes to, got shape {list(y.shape)}"
            )


class CircleModel(LatentModel):
    """The circle decoded on a latent grid, scaled by radii: the common part of two models.

    Args:
        grid: the latent grid; the practicum's 48 angles if absent.
        regulariser: as in :class:`LatentModel`.
    """

    decoded: Tensor
    """The unit circle on the grid, ``[N, 2]``."""

    def _set_grid(self, grid: LatentGrid) -> None:
        if grid.dim != 1:
            raise ValueError(f"grid must be of one dimension for a circle, got {grid.dim}")
        super()._set_grid(grid)
        self.register_buffer("decoded", circle(grid.points.squeeze(1)), persistent=False)

    def scale(self, x: Tensor | None = None) -> Tensor:
        """The radii that scale the circle: ``[2]``, or ``[..., 2]`` for conditions ``x[...]``."""
        raise NotImplementedError

    def decode(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """The scaled circle at angles ``z[N]``: as in :meth:`LatentModel.decode`."""
        return self._checked_scale(x).unsqueeze(-2) * circle(z.reshape(-1))

    def decode_each(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """A point of each one's scaled circle: as in :meth:`LatentModel.decode_each`."""
        return self._checked_scale(x) * circle(z.reshape(-1))

    def _arguments(self, x: Tensor | None) -> dict[str, Any]:
        # The circle needs no gradient and is one for all queries: the radii are a scale.
        return {
            "decoded": self.decoded,
            "scale": self._checked_scale(x),
            "log_weight": self.log_weight,
            "latent_energy": self.latent_energy,
        }

    def _each_its_own(self, x: Tensor | None) -> bool:
        return False

    def _checked_scale(self, x: Tensor | None) -> Tensor:
        self._check_condition(x)
        return self.scale(x)


class Ellipse(CircleModel):
    """An unconditional model: every observation lies about one ellipse of two learned radii.

    Args:
        grid: the latent grid; the practicum's 48 angles if absent.
        radii: the first radii, ``[2]``; drawn from N(0, 1) if absent.
        regulariser: as in :class:`LatentModel`.
        generator: source of the draw; the global generator if absent.

    Example:
        >>> model = Ellipse(radii=torch.tensor([2.0, 1.5]))
        >>> model.free_energy(torch.tensor([[3.0, 0.0]]), beta=math.inf).detach()
        tensor([1.])
    """

    conditional = False

    def __init__(
        self,
        grid: LatentGrid | None = None,
        *,
        radii: Tensor | None = None,
        regulariser: nn.Module | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(grid, regulariser=regulariser)
        self.decoder: EllipseDecoder = EllipseDecoder(radii, generator=generator)

    def scale(self, x: Tensor | None = None) -> Tensor:
        """The two radii, ``[2]``."""
        return self.decoder.radii


class Horn(CircleModel):
    """A conditional model: observations at x lie about an ellipse whose radii x predicts.

    Args:
        grid: the latent grid; the practicum's 48 angles if absent.
        regulariser: as in :class:`LatentModel`.
        generator: source of the predictor's first weights; the global generator if absent.
    """

    conditional = True

    def __init__(
        self,
        grid: LatentGrid | None = None,
        *,
        regulariser: nn.Module | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(grid, regulariser=regulariser)
        self.predictor: HornPredictor = HornPredictor(generator=generator)

    def scale(self, x: Tensor | None = None) -> Tensor:
        """The predicted radii ``[..., 2]`` at ``x[...]``."""
        if x is None:
            raise ValueError("x is missing: the radii of a horn are those of a section")
        return self.predictor(x)


class DecoderModel(LatentModel):
    """A model of any decoder: g(z), or g(f(x), z) where there is a predictor f.

    Without a predictor all queries share one decoded grid. With one each query has its own, so
    that a batch of M conditions holds M N D numbers; one condition for all queries shares again.

    Args:
        decoder: a module from points ``z[N, K]`` to ``[N, D]``; with a predictor it is called with
            codes ``[..., dim(f)]`` too, and gives ``[..., N, D]``. For :meth:`decode_each` it takes
            points ``[M, 1, K]`` with codes ``[M, dim(f)]`` as well.
        predictor: f, a module from conditions ``x[...]`` to codes ``[..., dim(f)]``; the model is
            conditional if it is given.
        grid: the latent grid; the practicum's 48 angles if absent.
        regulariser: as in :class:`LatentModel`.
    """

    def __init__(
        self,
        decoder: nn.Module,
        predictor: nn.Module | None = None,
        *,
        grid: LatentGrid | None = None,
        regulariser: nn.Module | None = None,
    ) -> None:
        super().__init__(grid, regulariser=regulariser)
        self.conditional: bool = predictor is not None
        self.decoder = decoder
        self.predictor = predictor

    def decode(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """The decoder's points at latents ``z``: as in :meth:`LatentModel.decode`."""
        return self._decode(z.unsqueeze(-1) if z.dim() == 1 else z, x)

    def decode_each(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """The decoder's point of each: as in :meth:`LatentModel.decode_each`."""
        points = z.unsqueeze(-1) if z.dim() == 1 else z
        if self.predictor is None:
            return self._decode(points, x)
        # A grid of one point at each condition.
        return self._decode(points.unsqueeze(-2), x).squeeze(-2)

    def _decode(self, points: Tensor, x: Tensor | None) -> Tensor:
        self._check_condition(x)
        decoded: Tensor = (
            self.decoder(points)
            if self.predictor is None
            else self.decoder(points, self.predictor(x))
        )
        return decoded


def neural_horn(
    grid: LatentGrid | None = None,
    *,
    code_dim: int = 8,
    hidden: tuple[int, ...] = (32, 32),
    generator: torch.Generator | None = None,
) -> DecoderModel:
    """The horn whose decoder g(f(x), z) is a network too and has to learn the circle itself.

    Args:
        grid: the latent grid over [0, 2 pi]; the practicum's 48 angles if absent.
        code_dim: dim(f), the number of outputs of the predictor.
        hidden: the decoder's numbers of hidden units.
        generator: source of the first weights; the global generator if absent.

    Raises:
        ValueError: an argument is out of range.
    """
    predictor = HornPredictor(outputs=code_dim, generator=generator)
    decoder = NeuralDecoder(code_dim=code_dim, hidden=hidden, generator=generator)
    return DecoderModel(decoder, predictor, grid=grid)
