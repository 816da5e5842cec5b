"""Latent-variable energy-based models over a fixed latent grid.

A model decodes the latent grid, at a condition x if it is conditional. Its free energy is
:func:`lebm_kernels.free_energy` of the decoded points, the grid's weights and the regulariser's
latent energies. :class:`CircleModel` scales a fixed circle by learned radii;
:class:`DecoderModel` learns any decoder.

A new model implements ``decode`` and ``decode_each``. It also overrides ``_arguments`` if the
operation can take cheaper arguments than the decoded points, such as a circle and its radii.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lebm_kernels.arguments import autocast_dtype
from lebm_kernels.checks import check_callable, check_count, check_floating, number, shown
from lebm_kernels.functional import free_energy, posterior, sample_latent
from lebm_kernels.models.decoders import (
    EllipseDecoder,
    HornPredictor,
    NeuralDecoder,
    circle,
)
from lebm_kernels.models.grids import LatentGrid, checked_grid, periodic_grid
from lebm_kernels.reference import Posterior
from lebm_kernels.torch_internals import in_plain_eager_mode

if TYPE_CHECKING:
    from typing_extensions import Self


class LatentModel(nn.Module):
    """The base of all models: a latent grid, an optional regulariser, an optional learned beta.

    Calling a model returns its :meth:`free_energy`.

    The default beta of a model is infinity (cold), as in the practicum: F is the least energy, and
    a restored observation is the nearest decoded point. Two methods differ. :meth:`sample_latent`
    has the default 1, because a cold draw is always the nearest latent. :meth:`log_density` has no
    default, because its beta is a property of the data: 1 / (2 sigma^2) for noise of standard
    deviation sigma. The function :func:`lebm_kernels.free_energy` has the default 1.

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
        grid = periodic_grid() if grid is None else checked_grid(grid)
        if regulariser is not None:
            check_callable("regulariser", regulariser, "None or a module")
        self.regulariser = regulariser
        self.register_parameter("log_beta", None)
        self._set_grid(grid)

    def _set_grid(self, grid: LatentGrid) -> None:
        # Buffers follow .to(). Not persistent: the state dict holds only what was learned.
        self.register_buffer("z", grid.z, persistent=False)
        self.register_buffer("log_weight", grid.log_weight, persistent=False)

    @property
    def grid(self) -> LatentGrid:
        """The latent grid."""
        return LatentGrid(self.z, self.log_weight)

    def on_grid(self, grid: LatentGrid) -> Self:
        """A deep copy of this model over another latent grid.

        Args:
            grid: the new grid, with as many dimensions as the old one; it is moved to the model's
                device and dtype.

        Raises:
            TypeError: ``grid`` isn't a :class:`~lebm_kernels.models.grids.LatentGrid`.
            ValueError: ``grid`` has another number of dimensions.
        """
        grid = checked_grid(grid)
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
        """Decode latents, which need not lie on the grid.

        Args:
            z: latents, ``[N]`` or ``[N, K]``.
            x: conditions, ``[...]``; conditional models only.

        Returns:
            ``[N, D]``, or ``[..., N, D]`` for conditions ``[...]``.

        Raises:
            TypeError: ``z`` isn't a floating-point tensor.
            ValueError: ``x`` is missing from a conditional model or given to another, or ``z`` has
                another shape.
        """
        raise NotImplementedError

    def decode_each(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """Decode one latent per observation, each at its own condition.

        Args:
            z: latents, ``[M]`` or ``[M, K]``, with as many dimensions as the grid has.
            x: conditions, ``[M]``; conditional models only.

        Returns:
            ``[M, D]``.

        Raises:
            TypeError: ``z`` isn't a floating-point tensor.
            ValueError: ``x`` is missing from a conditional model or given to another, or ``z`` or
                ``x`` has another shape.
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
        """The regulariser's R(z) on the grid, ``[N]``; ``None`` without a regulariser."""
        if self.regulariser is None:
            return None
        grid = self.grid
        value: Tensor = self.regulariser(grid.points, grid.log_measure)
        return value

    def learn_beta(self, beta: float = 1.0) -> Self:
        """Make the inverse temperature a parameter of the model, and return the model.

        Args:
            beta: its first value, positive and finite.

        Raises:
            ValueError: ``beta`` is out of range.
        """
        if not (0.0 < number(beta) < math.inf):
            raise ValueError(f"beta must be positive and finite to be learned, got {shown(beta)}")
        self.log_beta = nn.Parameter(self.z.new_tensor(math.log(beta)))
        return self

    @property
    def beta(self) -> Tensor | None:
        """The learned inverse temperature, a scalar; ``None`` if beta is not learned."""
        return None if self.log_beta is None else self.log_beta.exp()

    def free_energy(
        self,
        y: Tensor,
        x: Tensor | None = None,
        *,
        beta: float | Tensor = torch.inf,
        backend: str | None = None,
    ) -> Tensor:
        """The free energy F of each observation.

        Args:
            y: observations, ``[..., M, D]``.
            x: the condition of each, broadcastable to ``[..., M]``; conditional models only.
            beta: inverse temperature, a number or a tensor that broadcasts to F; infinity is the
                zero-temperature limit.
            backend: as in :func:`lebm_kernels.free_energy`.

        Returns:
            ``[..., M]``, in the units of ``y`` squared.

        Raises:
            TypeError: ``y`` or ``x`` isn't a tensor of the model's dtype.
            ValueError: ``x`` is missing from a conditional model or given to another, or has more
                than one condition per observation; or the model decodes to another D than y's.
        """
        value = free_energy(**self._operation_arguments(y, x, beta), backend=backend)
        return value.squeeze(-1) if self._has_grid_per_query(x) else value

    def forward(
        self,
        y: Tensor,
        x: Tensor | None = None,
        *,
        beta: float | Tensor = torch.inf,
        backend: str | None = None,
    ) -> Tensor:
        """The free energy F of each observation: see :meth:`free_energy`.

        ``model(y)`` also runs the model's hooks; the method :meth:`free_energy` does not.
        """
        return self.free_energy(y, x, beta=beta, backend=backend)

    def posterior(
        self,
        y: Tensor,
        x: Tensor | None = None,
        *,
        beta: float | Tensor = torch.inf,
        backend: str | None = None,
    ) -> Posterior:
        """The posterior of each observation's latent: arguments as in :meth:`free_energy`.

        A restored observation is ``model.manifold(x)`` at ``index`` when cold, and ``mean`` when
        warm. A :class:`CircleModel`'s ``mean`` is of the unit circle: multiply it by ``scale(x)``.

        Returns:
            See :class:`lebm_kernels.Posterior`; ``[..., M]``, and ``[..., M, D]`` for ``mean``.

        Raises:
            TypeError: as in :meth:`free_energy`.
            ValueError: as in :meth:`free_energy`.
        """
        found = posterior(**self._operation_arguments(y, x, beta), backend=backend)
        if not self._has_grid_per_query(x):
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
        """Draw latents of the grid from each observation's posterior.

        Args:
            y: observations, ``[..., M, D]``.
            x: the condition of each, as in :meth:`free_energy`.
            num_samples: draws per observation, at least 0.
            beta: inverse temperature, as in :meth:`free_energy`; at infinity only the nearest
                latents are drawn.
            generator: source of the draws, on y's device; the global generator if absent.

        Returns:
            Indices of latents, ``[..., M, num_samples]``, int64.

        Raises:
            TypeError: as in :meth:`free_energy`.
            ValueError: as in :meth:`free_energy`, or ``num_samples`` is negative.
        """
        found = sample_latent(
            **self._operation_arguments(y, x, beta),
            num_samples=num_samples,
            generator=generator,
        )
        return found.squeeze(-2) if self._has_grid_per_query(x) else found

    def log_density(
        self,
        y: Tensor,
        x: Tensor | None = None,
        *,
        beta: float | Tensor,
        backend: str | None = None,
    ) -> Tensor:
        """The logarithm of each observation's normalised density, given x.

        E is a squared distance, so exp(-beta E) is a Gaussian of variance 1/(2 beta) about each
        decoded latent, with a known normaliser::

            log p(y) = -beta F(y) + D/2 log(beta/pi) - log sum_n w[n] exp(-beta R(z[n]))

        Args:
            y: observations, ``[..., M, D]``.
            x: the condition of each, as in :meth:`free_energy`.
            beta: inverse temperature, positive and finite. A tensor gets its gradient; it must be
                a scalar if the model has a regulariser.
            backend: as in :func:`lebm_kernels.free_energy`.

        Returns:
            ``[..., M]``, in nats.

        Raises:
            TypeError: as in :meth:`free_energy`.
            ValueError: as in :meth:`free_energy`; or ``beta`` is a number out of range, or a tensor
                with a negative number or a NaN (checked in eager mode only).
        """
        if not isinstance(beta, Tensor):
            if not (0.0 < number(beta) < math.inf):
                raise ValueError(
                    f"beta must be positive and finite for a density, got {shown(beta)}"
                )
            beta = self.z.new_tensor(float(beta))
        elif in_plain_eager_mode() and not bool((beta >= 0).all()):
            raise ValueError(f"beta must be positive and finite for a density, got {beta}")
        value = self.free_energy(y, x, beta=beta, backend=backend)
        normaliser = 0.5 * y.shape[-1] * (beta / math.pi).log()
        energy = self.latent_energy
        if energy is not None:
            normaliser = normaliser - torch.logsumexp(self.grid.log_measure - beta * energy, 0)
        return normaliser - beta * value

    def _arguments(self, x: Tensor | None) -> dict[str, Any]:
        """The arguments of the operation other than y and beta."""
        return {
            "decoded": self.manifold(x),
            "log_weight": self.log_weight,
            "latent_energy": self.latent_energy,
        }

    def _operation_arguments(
        self, y: Tensor, x: Tensor | None, beta: float | Tensor
    ) -> dict[str, Any]:
        """The arguments of the operation, checked: see :meth:`free_energy` for the errors.

        If each query has its own decoded grid, each query becomes a batch of one.
        """
        self._check_condition(x)
        if torch.compiler.is_compiling():
            arguments = self._arguments(x)
        else:
            try:
                arguments = self._arguments(x)
            except (RuntimeError, TypeError):
                self._check_parts()
                raise
        self._check_observations(y, arguments)
        scale = arguments.get("scale")
        leading = arguments["decoded"].shape[:-2] if scale is None else scale.shape[:-1]
        if x is not None and isinstance(y, Tensor) and y.dim() > 1:
            queries = y.shape[:-1]
            pairs = zip(leading[::-1], queries[::-1], strict=False)
            if len(leading) > len(queries) or any(a not in (1, b) for a, b in pairs):
                column = x.shape[-1:] == (1,) and x.shape[:-1] == queries
                hint = "; x.squeeze(-1) has that shape" if column else ""
                raise ValueError(
                    f"x must have one condition per observation, {list(queries)} of them as y "
                    f"{list(y.shape)} has, got shape {list(x.shape)}{hint}"
                )
        # The operation names a y that is no tensor of observations.
        if self._has_grid_per_query(x) and isinstance(y, Tensor) and y.dim() > 1:
            y = y.unsqueeze(-2)
            beta = beta.unsqueeze(-1) if isinstance(beta, Tensor) and beta.dim() else beta
        return {"y": y, "beta": beta, **arguments}

    def _has_grid_per_query(self, x: Tensor | None) -> bool:
        """Whether each query has its own decoded grid."""
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
            raise ValueError(
                f"x must be absent as {name} is unconditional, got shape {list(x.shape)}"
            )

    def _check_latents(self, z: Tensor) -> None:
        """Refuse latents of another number of dimensions than the grid's."""
        num_dims = 1 if self.z.dim() == 1 else self.z.shape[1]
        form = "[N]" if num_dims == 1 else f"[N, {num_dims}]"
        check_floating("z", z, form)
        if z.dim() not in (1, 2) or (1 if z.dim() == 1 else z.shape[1]) != num_dims:
            raise ValueError(f"z must have shape {form} as the grid has, got {list(z.shape)}")

    def _check_one_each(self, z: Tensor, x: Tensor | None) -> None:
        """Refuse conditions that would broadcast with the latents to more than one for each."""
        if isinstance(x, Tensor) and x.shape not in ((), (1,), (len(z),)):
            raise ValueError(f"x must have shape [{len(z)}] as z has, got {list(x.shape)}")

    def _check_parts(self) -> None:
        """Name the first parameter or buffer of another dtype or device than the latent grid's.

        Called where a computation has failed: a decoder that casts may well work with two dtypes.
        """
        kind = type(self).__name__
        for name, part in (*self.named_parameters(), *self.named_buffers()):
            if part.is_floating_point() and part.dtype != self.z.dtype:
                wanted, got = str(self.z.dtype), str(part.dtype)
                raise TypeError(f"{name} must be {wanted} as the grid of {kind} is, got {got}")
            if part.device != self.z.device:
                wanted, got = str(self.z.device), str(part.device)
                raise ValueError(f"{name} must be on {wanted} as the grid of {kind} is, got {got}")

    def _check_observations(self, y: Tensor, arguments: dict[str, Any]) -> None:
        """Compare y with the decoded points, and name the model if they do not fit.

        The operation would name ``decoded``, an argument that the caller did not pass. It still
        reports whatever else is wrong with y.
        """
        if not isinstance(y, Tensor) or y.layout != torch.strided or y.is_nested or y.dim() < 2:
            return
        decoded = arguments["decoded"]
        name, num_dims = type(self).__name__, decoded.shape[-1]
        expected = autocast_dtype(decoded.dtype, y.device.type)
        for part in (y, *arguments.values()):
            if part is None:
                continue
            dtype = autocast_dtype(part.dtype, y.device.type)
            if dtype != expected or part.device != decoded.device:
                self._check_parts()
                break
        if autocast_dtype(y.dtype, y.device.type) != expected:
            raise TypeError(f"y must be {expected} as {name} decodes to, got {y.dtype}")
        if y.device != decoded.device:
            raise ValueError(f"y must be on {decoded.device} as {name} is, got {y.device}")
        if y.shape[-1] != num_dims:
            raise ValueError(
                f"y must be [..., M, {num_dims}] as {name} decodes to, got shape {list(y.shape)}"
            )


class CircleModel(LatentModel):
    """A unit circle on a grid of angles, scaled by radii: the base of two models.

    Args:
        grid: the latent grid; the practicum's 48 angles if absent.
        regulariser: as in :class:`LatentModel`.
    """

    decoded: Tensor
    """The unit circle on the grid, ``[N, 2]``."""

    derived_buffers = ("decoded",)
    """Buffers that follow from others, and so do not identify a model. On another machine they may
    differ in rounding."""

    def _set_grid(self, grid: LatentGrid) -> None:
        if grid.dim != 1:
            raise ValueError(f"grid must be of one dimension for a circle, got {grid.dim}")
        super()._set_grid(grid)
        self.register_buffer("decoded", circle(grid.points.squeeze(1)), persistent=False)

    def scale(self, x: Tensor | None = None) -> Tensor:
        """The radii: ``[2]``, or ``[..., 2]`` for conditions ``x[...]``."""
        raise NotImplementedError

    def decode(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """The scaled circle at angles ``z[N]``: as in :meth:`LatentModel.decode`."""
        self._check_latents(z)
        return self._checked_scale(x).unsqueeze(-2) * circle(z.reshape(-1))

    def decode_each(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """One point of the scaled circle per angle: as in :meth:`LatentModel.decode_each`."""
        self._check_latents(z)
        self._check_one_each(z, x)
        return self._checked_scale(x) * circle(z.reshape(-1))

    def _arguments(self, x: Tensor | None) -> dict[str, Any]:
        # With the radii as the scale, all queries share one grid, which needs no gradient.
        return {
            "decoded": self.decoded,
            "scale": self._checked_scale(x),
            "log_weight": self.log_weight,
            "latent_energy": self.latent_energy,
        }

    def _has_grid_per_query(self, x: Tensor | None) -> bool:
        return False

    def _checked_scale(self, x: Tensor | None) -> Tensor:
        self._check_condition(x)
        return self.scale(x)


class Ellipse(CircleModel):
    """An unconditional model: all observations lie near one ellipse with two learned radii.

    Args:
        grid: the latent grid; the practicum's 48 angles if absent.
        radii: the first radii, ``[2]``, floating point; drawn from N(0, 1) if absent. The model has
            the dtype and the device of the grid, or else those of the radii, or else PyTorch's
            defaults.
        regulariser: as in :class:`LatentModel`.
        generator: source of the draw; the global generator if absent.

    Raises:
        TypeError: ``grid`` or ``radii`` has the wrong type.
        ValueError: ``grid`` has more than one dimension, or ``radii`` another shape.

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
        if radii is not None:
            check_floating("radii", radii, "[2]")
            grid = periodic_grid(dtype=radii.dtype, device=radii.device) if grid is None else grid
        super().__init__(grid, regulariser=regulariser)
        with torch.device(self.z.device):
            decoder = EllipseDecoder(radii, generator=generator)
        self.decoder: EllipseDecoder = decoder.to(self.z) if radii is None else decoder

    def scale(self, x: Tensor | None = None) -> Tensor:
        """The two radii, ``[2]``."""
        return self.decoder.radii


class Horn(CircleModel):
    """A conditional model: observations at x lie near an ellipse with radii predicted from x.

    Args:
        grid: the latent grid, whose dtype and device the model has; the practicum's 48 angles if
            absent.
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
        with torch.device(self.z.device):
            predictor = HornPredictor(generator=generator)
        self.predictor: HornPredictor = predictor.to(self.z)

    def scale(self, x: Tensor | None = None) -> Tensor:
        """The predicted radii ``[..., 2]`` at ``x[...]``."""
        if x is None:
            raise ValueError("x is missing: Horn predicts the radii from x")
        return self.predictor(x)


class DecoderModel(LatentModel):
    """A model with any decoder: g(z), or g(f(x), z) with a predictor f.

    Without a predictor all queries share one decoded grid. With a predictor each query has its own
    decoded grid, so a batch of M conditions holds M N D numbers. A single condition ``x[]`` for all
    queries needs one decoded grid only.

    Args:
        decoder: a module from points ``z[N, K]`` to ``[N, D]``. With a predictor its second
            argument is codes ``[..., dim(f)]``, and it returns ``[..., N, D]``;
            :meth:`decode_each` calls it with points ``[M, 1, K]`` and codes ``[M, dim(f)]``.
        predictor: f, a module from conditions ``x[...]`` to codes ``[..., dim(f)]``. The model is
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
        check_callable("decoder", decoder, "a module")
        if predictor is not None:
            check_callable("predictor", predictor, "None or a module")
        super().__init__(grid, regulariser=regulariser)
        self.conditional: bool = predictor is not None
        self.decoder = decoder
        self.predictor = predictor

    def decode(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """Apply the decoder to latents ``z``: as in :meth:`LatentModel.decode`."""
        self._check_latents(z)
        return self._decode(z.unsqueeze(-1) if z.dim() == 1 else z, x)

    def decode_each(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """Apply the decoder to one latent each: as in :meth:`LatentModel.decode_each`."""
        self._check_latents(z)
        self._check_one_each(z, x)
        points = z.unsqueeze(-1) if z.dim() == 1 else z
        if self.predictor is None:
            return self._decode(points, x)
        # Each condition has a grid of one point.
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
    """A horn whose decoder g(f(x), z) is a network, which has to learn the closed curve itself.

    Args:
        grid: the latent grid over [0, 2 pi], whose dtype and device the model has; the practicum's
            48 angles if absent.
        code_dim: dim(f), the number of outputs of the predictor.
        hidden: numbers of units of the decoder's hidden layers.
        generator: source of the first weights; the global generator if absent.

    Raises:
        ValueError: an argument is out of range.
    """
    check_count("code_dim", code_dim, 1)
    grid = periodic_grid() if grid is None else checked_grid(grid)
    with torch.device(grid.z.device):
        predictor = HornPredictor(outputs=code_dim, generator=generator)
        decoder = NeuralDecoder(code_dim=code_dim, hidden=hidden, generator=generator)
    return DecoderModel(decoder, predictor, grid=grid).to(grid.z)
