"""Problems of every kind that the functions accept, for hypothesis to draw from.

Shapes, layouts and kinds of numbers are drawn, the numbers themselves follow from a seed: what
fails shrinks to few queries, latents and arguments.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

CASES = int(os.environ.get("LEBM_KERNELS_FUZZ_CASES", "0"))
"""How many cases a long run (`make fuzz`) has in all; 0 for the short one of `make test`."""

BETAS = (0.0, 1e-40, 1e-12, 1e-7, 1e-3, 0.1, 1.0, 30.0, 1e4, 1e6, math.inf)
"""In units of the inverse squared length of the latents; the second is no normal float32."""

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_SIZES = st.one_of(st.integers(1, 9), st.sampled_from((15, 16, 17, 33, 64, 65, 127, 255)))
_MOST = 6000  # numbers in the oracle's largest array


def examples(share: float, few: int) -> settings:
    """Hypothesis's settings of a test: its share of a long run, or so few cases each time."""
    return settings(
        max_examples=max(1, round(CASES * share)) if CASES else few,
        derandomize=not CASES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=True,
    )


@dataclass(frozen=True)
class Case:
    """A call's tensors by name, what else is asked, and how it came about."""

    arguments: dict[str, Tensor]
    wanted: tuple[str, ...]  # gradients
    story: str

    def __repr__(self) -> str:
        shapes = ", ".join(
            f"{name} {list(x.shape)} by {x.stride()}" for name, x in self.arguments.items()
        )
        return f"<{self.story}; {shapes}; gradients of {', '.join(self.wanted)}>"


@st.composite
def cases(draw: Any, *, dtypes: tuple[torch.dtype, ...] = _DTYPES, dyadic: bool = False) -> Case:
    """A problem; where ``dyadic``, of multiples of 1/16 without batches, to be moved exactly."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(dtypes))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    D = draw(st.sampled_from((1, 2, 3, 4, 5, 7, 17)))
    N = draw(_SIZES)
    batch = () if dyadic else draw(st.sampled_from(((),) * 5 + ((2,), (3, 1), (2, 2), (0,))))
    M = draw(st.one_of(st.just(0), _SIZES)) if not dyadic else draw(_SIZES)
    M = min(M, max(1, _MOST // (N * D * max(1, math.prod(batch)))))
    if not dyadic and draw(st.integers(0, 149)) == 149:
        # Enough queries and latents for series, sorted latents and blocks left out.
        D, N, M, batch = draw(st.integers(1, 2)), draw(st.sampled_from((130, 300))), 523, ()
        if draw(st.booleans()):
            N, M = 1031, 257
    length = 1.0 if dyadic else 2.0 ** draw(st.integers(-6, 6))
    offset = 0.0 if dyadic else draw(st.sampled_from((0.0, 0.0, 0.0, 100.0)))
    reach = draw(st.sampled_from((0.01, 1.0, 1.0, 30.0)))
    form = draw(st.sampled_from(("cloud", "curve", "lattice")))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def leading(size: int | None) -> tuple[int, ...]:
        kept = batch[draw(st.integers(0, len(batch))) :]
        if size is not None and not dyadic and draw(st.integers(0, 7)) == 0:
            size = 1
        own = () if size is None else (size,)
        return tuple(1 if draw(st.booleans()) else n for n in kept) + own

    def laid_out(x: Tensor, to: torch.dtype = dtype) -> Tensor:
        if dyadic:
            x = torch.where(x.isfinite(), (16 * x).round() / 16, x)
        x = x.to(to)
        layout = draw(st.sampled_from(("plain", "plain", "reversed", "strided", "expanded")))
        if layout == "reversed":
            x = x.permute(*reversed(range(x.dim()))).contiguous()
            return x.permute(*reversed(range(x.dim())))
        if layout == "strided" and x.dim():
            room = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 3), math.nan)
            view = room[..., 3::2]
            view.copy_(x)
            return view
        if layout == "expanded" and x.dim() and x.shape[0]:
            return x[:1].expand(x.shape)
        return x

    def decoded(shape: tuple[int, ...]) -> Tensor:
        if form == "curve":
            angle = torch.arange(N, dtype=torch.float64) * (2 * math.pi / N)
            turns = torch.arange(1, D + 1, dtype=torch.float64)
            return (angle[:, None] * turns + normal(D)).cos().expand(shape)
        g = normal(*shape)
        return (2 * g).round() / 2 if form == "lattice" else g

    y = length * (offset + reach * normal(*leading(M), D))
    arguments = {"y": laid_out(y)}
    g = length * (offset + decoded((*leading(None), N, D)))
    arguments["decoded"] = laid_out(g)
    betas = st.sampled_from(BETAS)
    rows = draw(st.sampled_from(("one", "one", "each", "mixed")))
    if rows == "one":
        beta = torch.tensor(draw(betas), dtype=torch.float64)
    else:
        shape = leading(M)
        some = torch.tensor([draw(betas) for _ in range(3 if rows == "mixed" else 1)])
        pick = torch.randint(len(some), shape, generator=generator)
        spread = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
        beta = some.double()[pick] * spread
    beta_dtype = draw(st.sampled_from((wide, dtype)))
    arguments["beta"] = (beta / length**2).to(beta_dtype)
    if draw(st.integers(0, 2)) == 0:
        shape = (D,) if draw(st.booleans()) else (*leading(M), D)
        s = normal(*shape)
        arguments["scale"] = laid_out(s if draw(st.booleans()) else s.abs() / 2 + 0.5)
    if draw(st.integers(0, 2)) == 0:
        log_weight = draw(st.sampled_from((1.0, 30.0))) * normal(*leading(None), N)
        if draw(st.booleans()):
            dropped = torch.rand(log_weight.shape, generator=generator) < 0.3
            dropped[..., draw(st.integers(0, N - 1))] = False
            log_weight[dropped] = -math.inf
        laid = laid_out(log_weight)
        if (laid > -math.inf).any(-1).all():
            arguments["log_weight"] = laid
    if draw(st.integers(0, 2)) == 0:
        r = length**2 * normal(*leading(None), N)
        arguments["latent_energy"] = laid_out(r if draw(st.booleans()) else r.abs())
    wanted = draw(st.lists(st.sampled_from(sorted(arguments)), min_size=1, unique=True))
    story = (
        f"{form}, {dtype}, reach {reach}, length {length}, offset {offset}, beta {beta.tolist()}"
    )
    return Case(arguments, tuple(wanted), story)
