"""Bad input is refused by name, before any work, by every function that takes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from lebm_kernels import (
    free_energy,
    posterior,
    sample_latent,
    softargmax,
    softargmin,
    softmax,
    softmin,
)

Error = type[Exception] | tuple[type[Exception], ...]

Y, DECODED = torch.zeros(7, 3), torch.zeros(11, 3)

# The argument that is wrong, what is passed (beside good ones), the error, and a word of why.
CASES: list[tuple[str, dict[str, Any], Error, str]] = [
    ("y", {"y": [[0.0, 1.0, 2.0]]}, TypeError, "list"),
    ("y", {"y": None}, TypeError, "NoneType"),
    ("y", {"y": torch.zeros(3)}, ValueError, r"\[3\]"),
    ("y", {"y": torch.zeros(7, 3, dtype=torch.int64)}, TypeError, "int64"),
    ("y", {"y": torch.zeros(7, 3, dtype=torch.complex64)}, TypeError, "complex64"),
    ("y", {"y": torch.zeros(7, 3).to_sparse()}, TypeError, "sparse"),
    ("y", {"y": torch.zeros(7, 0), "decoded": torch.zeros(11, 0)}, ValueError, r"\[7, 0\]"),
    ("decoded", {"decoded": 1.0}, TypeError, "float"),
    ("decoded", {"decoded": torch.zeros(3)}, ValueError, r"\[3\]"),
    ("decoded", {"decoded": torch.zeros(11, 2)}, ValueError, r"\[11, 2\]"),
    ("decoded", {"decoded": torch.zeros(0, 3)}, ValueError, r"\[0, 3\]"),
    ("decoded", {"decoded": DECODED.double()}, TypeError, "float64"),
    ("decoded", {"decoded": DECODED.half()}, TypeError, "float16"),
    ("decoded", {"decoded": DECODED.to("meta")}, ValueError, "meta"),
    ("decoded", {"y": torch.zeros(2, 7, 3), "decoded": torch.zeros(5, 11, 3)}, ValueError, "5"),
    ("beta", {"beta": "warm"}, TypeError, "str"),
    ("beta", {"beta": None}, TypeError, "NoneType"),
    ("beta", {"beta": True}, TypeError, "bool"),
    ("beta", {"beta": -1.0}, ValueError, "-1.0"),
    ("beta", {"beta": -math.inf}, ValueError, "-inf"),
    ("beta", {"beta": -(10**400)}, ValueError, "-1000"),
    ("beta", {"beta": math.nan}, ValueError, "nan"),
    ("beta", {"beta": torch.tensor(1.0, dtype=torch.float64)}, TypeError, "float64"),
    ("beta", {"beta": torch.tensor(1)}, TypeError, "int64"),
    ("beta", {"beta": torch.ones((), device="meta")}, ValueError, "meta"),
    ("beta", {"beta": torch.ones(6)}, ValueError, r"\[6\]"),
    ("scale", {"scale": 2.0}, TypeError, "float"),
    ("scale", {"scale": torch.tensor(2.0)}, ValueError, r"\[\]"),
    ("scale", {"scale": torch.ones(2)}, ValueError, r"\[2\]"),
    ("scale", {"scale": torch.ones(6, 3)}, ValueError, r"\[6\]"),
    ("scale", {"scale": torch.ones(3).double()}, TypeError, "float64"),
    ("scale", {"scale": torch.ones(3, device="meta")}, ValueError, "meta"),
    ("log_weight", {"log_weight": [0.0] * 11}, TypeError, "list"),
    ("log_weight", {"log_weight": torch.tensor(0.0)}, ValueError, r"\[\]"),
    ("log_weight", {"log_weight": torch.zeros(10)}, ValueError, r"\[10\]"),
    ("log_weight", {"log_weight": torch.zeros(1)}, ValueError, r"\[1\]"),
    ("log_weight", {"log_weight": torch.zeros(11).double()}, TypeError, "float64"),
    ("log_weight", {"log_weight": torch.zeros(11, device="meta")}, ValueError, "meta"),
    (
        "log_weight",
        {"y": torch.zeros(2, 7, 3), "log_weight": torch.zeros(5, 11)},
        ValueError,
        "5",
    ),
    ("latent_energy", {"latent_energy": 0}, TypeError, "int"),
    ("latent_energy", {"latent_energy": torch.zeros(12)}, ValueError, r"\[12\]"),
    ("latent_energy", {"latent_energy": torch.zeros(11).half()}, TypeError, "float16"),
    ("latent_energy", {"latent_energy": torch.zeros(11, device="meta")}, ValueError, "meta"),
    (
        "latent_energy",
        {"y": torch.zeros(2, 7, 3), "latent_energy": torch.zeros(5, 11)},
        ValueError,
        "5",
    ),
    ("tol", {"tol": -1e-3}, ValueError, "-0.001"),
    ("tol", {"tol": 1.0}, ValueError, "1.0"),
    ("tol", {"tol": math.nan}, ValueError, "nan"),
    ("tol", {"tol": "tight"}, (TypeError, ValueError), "tight"),
    ("backend", {"backend": "cuda"}, ValueError, "cuda"),
    ("backend", {"backend": ""}, ValueError, "''"),
]

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "free_energy": free_energy,
    "posterior": posterior,
    "sample_latent": partial(sample_latent, num_samples=2),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
@pytest.mark.parametrize(("name", "given", "error", "why"), CASES)
def test_is_refused_by_name(
    function: Callable[..., Any],
    name: str,
    given: dict[str, Any],
    error: Error,
    why: str,
) -> None:
    good = {"y": Y, "decoded": DECODED, "beta": 1.0}
    with pytest.raises(error, match=rf"(?s)^{name} .*{why}"):
        function(**{**good, **given})


def test_the_good_ones_are_not_refused() -> None:
    for function in FUNCTIONS.values():
        function(Y, DECODED, 1)
        function(Y, DECODED, torch.ones(7), scale=torch.ones(1, 3), tol=0)
        function(Y.half(), DECODED.half(), torch.ones(7).half())


@pytest.mark.parametrize("num_samples", [-1, 1.5, None, "3"])
def test_num_samples(num_samples: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^num_samples .*"):
        sample_latent(Y, DECODED, num_samples=num_samples)


SOFT_CASES: list[tuple[str, dict[str, Any], Error, str]] = [
    ("energy", {"energy": 3.0}, TypeError, "float"),
    ("energy", {"energy": torch.zeros(5, dtype=torch.int64)}, TypeError, "int64"),
    ("energy", {"energy": torch.tensor(1.0)}, ValueError, r"\[\]"),
    ("energy", {"energy": torch.zeros(4, 0)}, ValueError, "none"),
    ("dim", {"dim": 2}, ValueError, "2"),
    ("dim", {"dim": -3}, ValueError, "-3"),
    ("beta", {"beta": -0.5}, ValueError, "-0.5"),
    ("beta", {"beta": math.nan}, ValueError, "nan"),
    ("beta", {"beta": "hot"}, TypeError, "str"),
    ("beta", {"beta": torch.ones(3)}, ValueError, r"\[3\]"),
    ("log_weight", {"log_weight": torch.zeros(4)}, ValueError, r"\[4\]"),
    ("log_weight", {"log_weight": torch.zeros(5).double()}, TypeError, "float64"),
    ("log_weight", {"log_weight": torch.zeros(3, 5)}, ValueError, r"\[3, 5\]"),
]


@pytest.mark.parametrize("function", [softmin, softmax, softargmin, softargmax])
@pytest.mark.parametrize(("name", "given", "error", "why"), SOFT_CASES)
def test_soft_functions_refuse_by_name(
    function: Callable[..., Any],
    name: str,
    given: dict[str, Any],
    error: Error,
    why: str,
) -> None:
    good = {"energy": torch.zeros(4, 5), "beta": 1.0, "dim": 1}
    with pytest.raises(error, match=rf"(?s)^{name} .*{why}"):
        function(**{**good, **given})
