"""What is refused, and in which words: the rows of docs/bad_input.md."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from support.accuracy import assert_accurate
from support.page import rows
from torch import Tensor

from lebm_kernels import (
    free_energy,
    posterior,
    sample_latent,
    softargmax,
    softargmin,
    softmax,
    softmin,
)
from lebm_kernels.backends import chunked

Error = type[Exception] | tuple[type[Exception], ...]

Y, DECODED = torch.zeros(7, 3), torch.zeros(11, 3)
BATCH, LARGER_BATCH = torch.zeros(2, 7, 3), torch.zeros(5, 11, 3)
NESTED = torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(4, 3)], layout=torch.jagged)


def quietly(make: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """What PyTorch warns of when first made: that it is a prototype, or on its way out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return make(*arguments)


def nested(*sizes: int) -> Tensor:
    """A nested tensor of the older kind, whose layout says that it is dense."""
    return quietly(torch.nested.nested_tensor, [torch.zeros(sizes), torch.zeros(sizes)])


def masked(x: Tensor) -> Tensor:
    return quietly(torch.masked.masked_tensor, x, x == 0)


def quantised(x: Tensor) -> Tensor:
    return quietly(torch.quantize_per_tensor, x, 0.1, 0, torch.qint8)


class Refusal(NamedTuple):
    """A row: the argument, what is passed (in words, and beside good arguments), the error."""

    argument: str
    given: str
    arguments: dict[str, Any]
    error: type[Exception]
    message: str

    @property
    def row(self) -> tuple[str, str, str]:
        return f"`{self.argument}`", self.given, f"{self.error.__name__}: `{self.message}`"


def refusals(error: type[Exception], argument: str, *cases: tuple[str, Any, str]) -> list[Refusal]:
    """Rows of one argument and error; a case is the words, a value (or arguments), the message."""
    return [
        Refusal(
            argument,
            given,
            value if isinstance(value, dict) else {argument: value},
            error,
            f"{argument} must {message}",
        )
        for given, value, message in cases
    ]


def kinds(argument: str, shape: str, *sizes: int) -> list[Refusal]:
    """The rows of what is no plain dense tensor, which all tensors have in common."""
    zeros = torch.zeros(sizes)
    return [
        *refusals(
            TypeError,
            argument,
            (
                "sparse",
                zeros.to_sparse(),
                f"be a dense tensor {shape}, got layout torch.sparse_coo",
            ),
            ("nested, jagged", NESTED, f"be a dense tensor {shape}, got layout torch.jagged"),
            ("nested, strided", nested(3), f"be a dense tensor {shape}, got a nested tensor"),
            ("masked", masked(zeros), f"be a plain tensor {shape}, got MaskedTensor"),
        ),
        *refusals(
            ValueError,
            argument,
            (
                "a lazy module's parameter",
                torch.nn.UninitializedParameter(),
                f"be a tensor {shape}, got an uninitialized parameter",
            ),
            (
                "on the meta device",
                zeros.to("meta"),
                f"hold numbers, got a tensor of shape {list(sizes)} on the meta device",
            ),
        ),
    ]


def dtypes(argument: str, *sizes: int) -> list[Refusal]:
    """The rows of dtypes other than y's, which all tensors but y and beta have in common."""
    zeros = torch.zeros(sizes)
    words = "be torch.float32 as y is, got torch."
    return refusals(
        TypeError,
        argument,
        ("float64 beside a float32 `y`", zeros.double(), f"{words}float64"),
        ("float16 beside a float32 `y`", zeros.half(), f"{words}float16"),
        ("int64", zeros.long(), f"{words}int64"),
        ("complex64", zeros.to(torch.complex64), f"{words}complex64"),
        ("quantised", quantised(zeros), f"{words}qint8"),
    )


MATRIX, GRID, SCALE, LATENTS = "[..., M, D]", "[..., N, D]", "[D] or [..., M, D]", "[..., N]"
BETA = "that broadcasts with the result"
WORDS = "be float16, bfloat16, float32 or float64, got torch."
WRONG_NAME = "be None or one of native, triton, chunked, reference, got"
NOTHING = "a free energy over no latents does not exist"

REFUSALS: list[Refusal] = [
    *refusals(
        TypeError,
        "y",
        ("a list", [[0.0, 1.0, 2.0]], f"be a tensor {MATRIX}, got list"),
        ("None", None, f"be a tensor {MATRIX}, got NoneType"),
        ("a NumPy array", Y.numpy(), f"be a tensor {MATRIX}, got ndarray"),
        ("int64", Y.long(), f"{WORDS}int64"),
        ("bool", Y.bool(), f"{WORDS}bool"),
        ("complex64", Y.to(torch.complex64), f"{WORDS}complex64"),
        ("quantised", quantised(Y), f"{WORDS}qint8"),
        ("float8", Y.to(torch.float8_e4m3fn), f"{WORDS}float8_e4m3fn"),
    ),
    *kinds("y", MATRIX, 7, 3),
    *refusals(
        ValueError,
        "y",
        ("one dimension", torch.zeros(3), f"be {MATRIX}, got shape [3]"),
        (
            "D = 0, as in `decoded`",
            {"y": torch.zeros(7, 0), "decoded": torch.zeros(11, 0)},
            "have D >= 1 dimensions, got shape [7, 0]",
        ),
    ),
    *refusals(
        TypeError,
        "decoded",
        ("a number", 1.0, f"be a tensor {GRID}, got float"),
        ("None", None, f"be a tensor {GRID}, got NoneType"),
    ),
    *dtypes("decoded", 11, 3),
    *kinds("decoded", GRID, 11, 3),
    *refusals(
        ValueError,
        "decoded",
        ("one dimension", torch.zeros(3), f"be {GRID}, got shape [3]"),
        (
            "another D than y's",
            torch.zeros(11, 2),
            f"be {GRID} with D = 3 as y [7, 3] has, got shape [11, 2]",
        ),
        ("empty", torch.zeros(0, 3), f"have N >= 1 latents, got shape [0, 3]: {NOTHING}"),
        (
            "5 grids for 2 batches",
            {"y": BATCH, "decoded": LARGER_BATCH},
            f"be {GRID} where [...] broadcasts with [2] (from y), got shape [5, 11, 3]",
        ),
        (
            "5 grids for 2 batches of betas",
            {"beta": torch.ones(2, 7), "decoded": LARGER_BATCH},
            f"be {GRID} where [...] broadcasts with [2] (from y, beta), got shape [5, 11, 3]",
        ),
    ),
    *refusals(
        TypeError,
        "beta",
        ("a string", "warm", "be a number or a tensor, got str"),
        ("None", None, "be a number or a tensor, got NoneType"),
        ("a bool", True, "be a number or a tensor, got bool"),
        ("a complex number", 1j, "be a number or a tensor, got complex"),
        (
            "float64 beside a float32 `y`",
            torch.tensor(1.0).double(),
            "be torch.float32 for y of torch.float32, got torch.float64",
        ),
        ("int64", torch.tensor(1), "be torch.float32 for y of torch.float32, got torch.int64"),
    ),
    *kinds("beta", BETA, 7),
    *refusals(
        ValueError,
        "beta",
        ("a negative number", -1.0, "lie in [0, inf], got -1.0"),
        ("-inf", -math.inf, "lie in [0, inf], got -inf"),
        ("NaN", math.nan, "lie in [0, inf], got nan"),
        (
            "6 betas for 7 queries",
            torch.ones(6),
            "be [] or [..., M] where [..., M] broadcasts with [7] (from y), got shape [6]",
        ),
        (
            "empty, for 7 queries",
            torch.ones(0),
            "be [] or [..., M] where [..., M] broadcasts with [7] (from y), got shape [0]",
        ),
    ),
    *refusals(TypeError, "scale", ("a number", 2.0, f"be a tensor {SCALE}, got float")),
    *dtypes("scale", 3),
    *kinds("scale", SCALE, 3),
    *refusals(
        ValueError,
        "scale",
        ("no dimension", torch.tensor(2.0), f"be {SCALE}, got shape []"),
        (
            "another D than y's",
            torch.ones(2),
            f"be {SCALE} with D = 3 as y has, got shape [2]",
        ),
        (
            "6 rows for 7 queries",
            torch.ones(6, 3),
            f"be {SCALE} where [..., M] broadcasts with [7] (from y), got shape [6, 3]",
        ),
    ),
    *refusals(TypeError, "log_weight", ("a list", [0.0] * 11, f"be a tensor {LATENTS}, got list")),
    *dtypes("log_weight", 11),
    *kinds("log_weight", LATENTS, 11),
    *refusals(
        ValueError,
        "log_weight",
        ("no dimension", torch.tensor(0.0), f"be {LATENTS}, got shape []"),
        (
            "10 for 11 latents",
            torch.zeros(10),
            f"be {LATENTS} with N = 11 as decoded has, got shape [10]",
        ),
        (
            "1 for 11 latents",
            torch.zeros(1),
            f"be {LATENTS} with N = 11 as decoded has, got shape [1]",
        ),
        (
            "5 rows for 2 batches",
            {"y": BATCH, "log_weight": torch.zeros(5, 11)},
            f"be {LATENTS} where [...] broadcasts with [2] (from y), got shape [5, 11]",
        ),
    ),
    *refusals(TypeError, "latent_energy", ("a number", 0, f"be a tensor {LATENTS}, got int")),
    *dtypes("latent_energy", 11),
    *kinds("latent_energy", LATENTS, 11),
    *refusals(
        ValueError,
        "latent_energy",
        ("no dimension", torch.tensor(0.0), f"be {LATENTS}, got shape []"),
        (
            "12 for 11 latents",
            torch.zeros(12),
            f"be {LATENTS} with N = 11 as decoded has, got shape [12]",
        ),
        (
            "5 rows for 2 batches of grids",
            {"decoded": torch.zeros(2, 11, 3), "latent_energy": torch.zeros(5, 11)},
            f"be {LATENTS} where [...] broadcasts with [2] (from y, decoded), got shape [5, 11]",
        ),
    ),
    *refusals(
        TypeError,
        "tol",
        ("a string", "tight", "be None or a number in [0, 1), got str"),
        ("a bool", True, "be None or a number in [0, 1), got bool"),
        ("a tensor", torch.tensor(0.1), "be None or a number in [0, 1), got Tensor"),
    ),
    *refusals(
        ValueError,
        "tol",
        ("negative", -1e-3, "be None or a number in [0, 1), got -0.001"),
        ("1", 1.0, "be None or a number in [0, 1), got 1.0"),
        ("NaN", math.nan, "be None or a number in [0, 1), got nan"),
    ),
    *refusals(
        TypeError,
        "backend",
        ("a number", 3, f"{WRONG_NAME} int"),
        ("a list", ["native"], f"{WRONG_NAME} list"),
    ),
    *refusals(
        ValueError,
        "backend",
        ("an unknown name", "cuda", f"{WRONG_NAME} 'cuda'"),
        ("the empty name", "", f"{WRONG_NAME} ''"),
    ),
]

OF_DRAWS: list[Refusal] = [
    *refusals(
        TypeError,
        "num_samples",
        ("a float", 1.5, "be an integer >= 0, got float"),
        ("None", None, "be an integer >= 0, got NoneType"),
        ("a string", "3", "be an integer >= 0, got str"),
        ("a bool", True, "be an integer >= 0, got bool"),
    ),
    *refusals(
        ValueError,
        "num_samples",
        ("negative", -1, "be an integer >= 0, got -1"),
        ("beyond any memory", 2**62, f"be at most 2^40, got {2**62}"),
    ),
    *refusals(TypeError, "generator", ("a seed", 7, "be None or a torch.Generator, got int")),
]

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "free_energy": free_energy,
    "posterior": posterior,
    "sample_latent": partial(sample_latent, num_samples=2),
}


def name_of(case: Refusal) -> str:
    return f"{case.argument}: {case.given}"


def refuses(function: Callable[..., Any], case: Refusal) -> None:
    with pytest.raises(case.error) as caught:
        function(**{"y": Y, "decoded": DECODED, "beta": 1.0, **case.arguments})
    assert type(caught.value) is case.error
    assert str(caught.value) == case.message


# Draws are made in plain PyTorch, without pruning: there are no such options.
NOT_OF_DRAWS = ("tol", "backend")


@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, id=f"{name}-{name_of(case)}")
        for case in REFUSALS
        for name in FUNCTIONS
        if name != "sample_latent" or case.argument not in NOT_OF_DRAWS
    ],
)
def test_is_refused_in_these_words(name: str, case: Refusal) -> None:
    refuses(FUNCTIONS[name], case)


@pytest.mark.parametrize("option", NOT_OF_DRAWS)
def test_draws_have_no_such_option(option: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
        sample_latent(Y, DECODED, num_samples=2, **{option: None})  # type: ignore[arg-type]


@pytest.mark.parametrize("case", OF_DRAWS, ids=lambda case: name_of(case))
def test_draws_are_refused_in_these_words(case: Refusal) -> None:
    refuses(FUNCTIONS["sample_latent"], case)


def test_the_page_has_these_rows() -> None:
    assert rows("Refused by every function") == [case.row for case in REFUSALS]
    assert rows("Refused by `sample_latent`") == [case.row for case in OF_DRAWS]


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
@pytest.mark.parametrize("name", ["y", "decoded", "beta", "scale", "log_weight", "latent_energy"])
def test_a_nested_tensor_of_two_dimensions(function: Callable[..., Any], name: str) -> None:
    # As many dimensions as a good argument, so that a short cut may take it for one.
    sizes = {"beta": (), "log_weight": (), "latent_energy": ()}.get(name, (3,))
    with pytest.raises(TypeError, match=rf"^{name} must be a dense tensor .* got a nested tensor$"):
        function(**{"y": Y, "decoded": DECODED, name: nested(*sizes)})


def test_the_first_wrong_argument_is_named() -> None:
    wrong: dict[str, Any] = {
        "y": None,
        "decoded": None,
        "latent_energy": torch.zeros(12),
        "scale": torch.ones(3).double(),
        "beta": -1.0,
        "log_weight": torch.zeros(5, 11),
        "num_samples": -1,
        "generator": 7,
    }
    right: dict[str, Any] = {"y": BATCH, "decoded": DECODED, "num_samples": 1}
    for name in list(wrong):
        with pytest.raises((TypeError, ValueError), match=rf"^{name} must "):
            sample_latent(**{**right, **wrong})
        del wrong[name]
    assert sample_latent(**right).shape == (2, 7, 1)


def test_a_backend_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "unavailable", lambda device: "it is asleep")
    for function in (free_energy, posterior):
        with pytest.raises(RuntimeError) as caught:
            function(Y, DECODED, backend="chunked")
        assert str(caught.value) == "backend 'chunked' cannot run on cpu: it is asleep"


def test_an_integer_that_requires_a_gradient_does_not_exist() -> None:
    with pytest.raises(RuntimeError, match="floating point"):
        torch.zeros(7, 3, dtype=torch.int64, requires_grad=True)


class Subclass(Tensor):
    """A tensor to every operator, but for its name."""


def negative_view(x: Tensor) -> Tensor:
    """The same numbers, of which PyTorch keeps the negatives and a note."""
    view = torch.complex(x, -x).conj().imag
    assert view.is_neg()
    return view


ACCEPTED: dict[str, Callable[[Tensor], Tensor]] = {
    "parameter": torch.nn.Parameter,
    "subclass": lambda x: x.as_subclass(Subclass),
    "expanded": lambda x: x[:1].expand_as(x),
    "strided": lambda x: torch.stack((x, x), -1)[..., 0],
    "negative view": negative_view,
}


@pytest.mark.parametrize("form", ACCEPTED.values(), ids=ACCEPTED.keys())
@pytest.mark.parametrize("name", ["y", "decoded", "beta", "scale", "log_weight", "latent_energy"])
def test_what_has_an_unusual_form_is_not_refused(
    any_backend: str, form: Callable[[Tensor], Tensor], name: str
) -> None:
    good = {
        "y": torch.randn(7, 3),
        "decoded": torch.randn(11, 3),
        "beta": torch.rand(7),
        "scale": torch.rand(7, 3) + 0.5,
        "log_weight": torch.randn(11),
        "latent_energy": torch.randn(11),
    }
    given = form(good[name])
    value = free_energy(**{**good, name: given}, backend=any_backend)
    plain = torch.empty(given.shape).copy_(given.detach()).as_subclass(Tensor)
    assert_accurate(value.detach().as_subclass(Tensor), **{**good, name: plain})
    function = partial(sample_latent, num_samples=2)
    assert function(**{**good, name: given}).shape == (7, 2)
    assert posterior(**{**good, name: given}, backend=any_backend).mean.shape == (7, 3)


@pytest.mark.parametrize("number", [np.float16, np.float32, np.float64, np.int64, np.uint8])
def test_numbers_of_numpy_are_numbers(any_backend: str, number: Callable[[int], Any]) -> None:
    y, decoded = torch.randn(7, 3), torch.randn(11, 3)
    beta: Any = number(2)
    found = free_energy(y, decoded, beta, tol=number(0), backend=any_backend)
    assert torch.equal(found, free_energy(y, decoded, 2.0, backend=any_backend))
    found = posterior(y, decoded, beta, backend=any_backend).mean
    assert torch.equal(found, posterior(y, decoded, 2.0, backend=any_backend).mean)
    draws = sample_latent(y, decoded, beta, num_samples=np.int64(4))
    assert draws.shape == (7, 4)
    energy = torch.rand(4, 5)
    for function in (softmin, softmax, softargmin, softargmax):
        assert torch.equal(function(energy, beta, np.int64(1)), function(energy, 2.0, 1))
    for none in (np.bool_(True), np.str_("2"), np.complex64(2), np.ones(())):
        with pytest.raises(TypeError, match=r"^beta must be a number or a tensor, got "):
            free_energy(y, decoded, none, backend=any_backend)  # type: ignore[arg-type]


def test_a_number_beyond_every_float_is_infinite() -> None:
    y, decoded = torch.randn(7, 3), torch.randn(11, 3)
    cold = free_energy(y, decoded, math.inf)
    assert torch.equal(free_energy(y, decoded, 10**400), cold)
    assert torch.equal(free_energy(y, decoded, Fraction(10**400)), cold)


def test_the_good_ones_are_not_refused() -> None:
    for function in FUNCTIONS.values():
        function(Y, DECODED, 1)
        function(Y, DECODED, torch.ones(7), scale=torch.ones(1, 3))
        function(Y.half(), DECODED.half(), torch.ones(7).half())
    for function in (free_energy, posterior):
        function(Y, DECODED, tol=0)


SOFT_CASES: list[tuple[str, dict[str, Any], Error, str]] = [
    ("energy", {"energy": 3.0}, TypeError, "float"),
    ("energy", {"energy": [1.0, 2.0]}, TypeError, "list"),
    ("energy", {"energy": torch.zeros(5, dtype=torch.bool)}, TypeError, "bool"),
    ("energy", {"energy": torch.zeros(5, dtype=torch.int64)}, TypeError, "int64"),
    ("energy", {"energy": torch.tensor(1.0)}, ValueError, r"\[\]"),
    ("energy", {"energy": torch.zeros(4, 0)}, ValueError, "none"),
    ("dim", {"dim": 2}, ValueError, "2"),
    ("dim", {"dim": -3}, ValueError, "-3"),
    ("dim", {"dim": (0, 1)}, TypeError, r"an integer.*got \(0, 1\)"),
    ("dim", {"dim": None}, TypeError, "an integer.*got None"),
    ("dim", {"dim": 1.0}, TypeError, r"an integer.*got 1\.0"),
    ("dim", {"dim": True}, TypeError, "an integer.*got True"),
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
