"""Do the derivatives of F agree with finite differences, for every backend that can run here?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import lebm_kernels


@dataclass(frozen=True)
class GradientCheck:
    """The verdict on one argument of one backend.

    Attributes:
        backend: its name.
        argument: the argument of :func:`lebm_kernels.free_energy` differentiated.
        ok: whether gradcheck passed for each case.
        message: where and how it failed; empty where it passed.
    """

    backend: str
    argument: str
    ok: bool
    message: str


def _cases(seed: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every argument at once, in float64: hot, warm and cold, a scale shared or one a query."""
    generator = torch.Generator().manual_seed(seed)
    M, N, D = 3, 5, 2

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    for title, beta, scale_shape in (
        ("hot, shared scale", 1e-2, (D,)),
        ("warm, a scale a query", 0.8, (M, D)),
        ("cold, shared scale", 20.0, (D,)),
    ):
        yield (
            title,
            {
                "y": normal(M, D),
                "decoded": normal(N, D),
                "beta": beta * (1 + 0.1 * normal(M).abs()),
                "scale": 1 + 0.3 * normal(*scale_shape),
                "log_weight": normal(N),
                "latent_energy": normal(N).abs(),
            },
        )


def _with_argument(
    function: Callable[..., Tensor], arguments: dict[str, Tensor], name: str, value: Tensor
) -> Tensor:
    return function(**{**arguments, name: value})


def check_gradients(backends: Sequence[str] | None = None, seed: int = 0) -> list[GradientCheck]:
    """Run gradcheck in float64 over every differentiable argument of ``free_energy``.

    Args:
        backends: names to check; None: all that can run here.
        seed: of the random cases.

    Returns:
        One verdict for each backend and argument, in that order.
    """
    if backends is None:
        backends = [row.name for row in lebm_kernels.backends() if row.available]
    checks = []
    for backend in backends:
        function = partial(lebm_kernels.free_energy, backend=backend)
        failures: dict[str, str] = {}
        for title, arguments in _cases(seed):
            for name, value in arguments.items():
                try:
                    torch.autograd.gradcheck(
                        partial(_with_argument, function, arguments, name),
                        (value.clone().requires_grad_(),),
                    )
                except Exception as error:  # a verdict on this argument, whatever went wrong
                    reason = " ".join(str(error).split()) or type(error).__name__
                    failures[name] = failures.get(name) or f"{title}: {reason}"
                else:
                    failures.setdefault(name, "")
        checks += [
            GradientCheck(backend, name, ok=not message, message=message)
            for name, message in failures.items()
        ]
    return checks
