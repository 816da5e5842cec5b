"""A model is a PyTorch module: calls, hooks, compilation, functional calls and DDP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lebm_kernels.models import DecoderModel, Ellipse, Horn, LatentModel, neural_horn


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _decoder_model() -> DecoderModel:
    torch.manual_seed(0)
    return DecoderModel(nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 2)))


MODELS: dict[str, Callable[[], LatentModel]] = {
    "ellipse": lambda: Ellipse(generator=_generator(0)),
    "horn": lambda: Horn(generator=_generator(0)),
    "decoder": _decoder_model,
    "neural horn": lambda: neural_horn(generator=_generator(0)),
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())


def _data(model: LatentModel) -> tuple[Tensor, ...]:
    y = torch.randn(5, 2, generator=_generator(1))
    return (y, torch.rand(5, generator=_generator(2))) if model.conditional else (y,)


def _nearest(model: LatentModel, y: Tensor, x: Tensor | None = None) -> Any:
    """F at zero temperature, from the model's decoded points, in float64."""
    decoded = model.manifold(x).detach().double().numpy()
    decoded = decoded if decoded.ndim == 3 else decoded[None]
    return ((y.double().numpy()[:, None] - decoded) ** 2).sum(-1).min(1)


@every_model
def test_a_call_is_the_free_energy_and_runs_hooks(make: Callable[[], LatentModel]) -> None:
    model, seen = make(), []
    model.register_forward_hook(lambda module, args, value: seen.append(value))
    value = model(*_data(model))
    assert seen[0] is value
    np.testing.assert_allclose(value.detach(), _nearest(model, *_data(model)), rtol=1e-5, atol=1e-6)
    warm = model(*_data(model), beta=2.0, backend="reference")
    expected = model.free_energy(*_data(model), beta=2.0, backend="reference")
    assert torch.equal(warm, expected)


@every_model
def test_a_functional_call_uses_the_given_parameters(make: Callable[[], LatentModel]) -> None:
    model = make()
    scaled = {name: 2.0 * p.detach() for name, p in model.named_parameters()}
    value = torch.func.functional_call(model, scaled, _data(model), {"beta": 3.0})
    model.load_state_dict(scaled)
    assert torch.equal(value, model(*_data(model), beta=3.0))


@every_model
def test_a_compiled_model_is_the_model(make: Callable[[], LatentModel]) -> None:
    model = make()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    value = compiled(*_data(model), beta=2.0)
    torch.testing.assert_close(value, model(*_data(model), beta=2.0))
    value.sum().backward()
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad()
    model(*_data(model), beta=2.0).sum().backward()
    torch.testing.assert_close(gradients, [p.grad for p in model.parameters()])


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@every_model
@pytest.mark.usefixtures("one_process")
def test_ddp_gives_the_plain_gradients(make: Callable[[], LatentModel]) -> None:
    model = make()
    model(*_data(model), beta=2.0).mean().backward()
    plain = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    parallel = nn.parallel.DistributedDataParallel(model)
    for _ in range(2):  # DDP finds a parameter without a gradient in the second step
        model.zero_grad()
        parallel(*_data(model), beta=2.0).mean().backward()
    for expected, p in zip(plain, model.parameters(), strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, expected)
