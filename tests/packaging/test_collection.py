"""What conftest.py does with the tests: which cases run, in which order, which count lines."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conftest
import pytest
import torch
from support import accuracy, pairs
from support.backends import BACKENDS

PROBLEMS = [
    {"beta": 0.0, "words": ("some", None)},
    {"beta": 1.0, "words": ("some", None)},
    {"beta": 1.0, "words": ("others", None)},
]


class Item(SimpleNamespace):
    """As much of a test as its place depends on."""

    def __init__(self, **parameters: Any) -> None:
        callspec = SimpleNamespace(params=parameters)
        super().__init__(path=Path("test_x.py"), name="test_x", callspec=callspec)
        self.marks: list[str] = []

    def add_marker(self, name: str) -> None:
        """As pytest's."""
        self.marks.append(name)

    def iter_markers(self, name: str) -> list[pytest.Mark]:
        """As pytest's, of a test whose ``m`` and ``n`` are parametrised together."""
        together = [pytest.mark.parametrize(("m", "n"), []).mark]
        return together if "m" in self.callspec.params else []


def config() -> tuple[Any, list[Any]]:
    """As much of pytest's configuration as the choice of cases needs, and what it leaves out."""
    left_out: list[Any] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items))
    return SimpleNamespace(hook=hook), left_out


def with_pairs(cases: list[dict[str, Any]]) -> set[Any]:
    return {pair for case in cases for pair in combinations(sorted(case.items()), 2)}


@pytest.mark.parametrize("sizes", [(5, 2, 10, 2, 2), (6, 4, 4), (3, 3, 3, 3), (7, 2), (4,)])
def test_chosen_cases_have_all_pairs(sizes: tuple[int, ...]) -> None:
    names = "abcde"[: len(sizes)]
    cases = [dict(zip(names, x, strict=True)) for x in product(*map(range, sizes))]
    chosen = [cases[i] for i in pairs.covering(cases)]
    assert with_pairs(chosen) == with_pairs(cases)
    largest = sorted(sizes)[-2:]
    if len(sizes) < 3:
        assert chosen == cases
    else:
        assert len(chosen) <= 1.5 * largest[0] * largest[1] < len(cases)


def test_combinations_that_are_not_there_are_not_asked_for() -> None:
    cases = [{"a": a, "b": b, "c": c} for a, b, c in product(range(4), repeat=3) if a <= b]
    chosen = [cases[i] for i in pairs.covering(cases)]
    assert with_pairs(chosen) == with_pairs(cases)
    assert pairs.covering([{}]) == [0]
    assert pairs.covering([]) == []


@pytest.mark.parametrize("everything", [False, True])
def test_what_is_parametrised_together_is_one_parameter(
    monkeypatch: pytest.MonkeyPatch, everything: bool
) -> None:
    monkeypatch.setattr(pairs, "ALL", everything)
    sizes = [(m, n) for m in (1, 2) for n in (3, 4)]
    items = [Item(a=a, b=b, m=m, n=n) for a, b, (m, n) in product(range(3), range(2), sizes)]
    before, (session, left_out) = list(items), config()
    conftest.pytest_collection_modifyitems(session, items)  # type: ignore[arg-type]
    assert {id(x) for x in items + left_out} == {id(x) for x in before}
    assert len(items) == (24 if everything else 12)
    found = {(p["a"], p["m"], p["n"]) for p in (x.callspec.params for x in items)}
    assert len(found) == 12


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("any_backend", lambda backend: backend),
        ("backend", lambda backend: backend[0]),
        ("parameter", lambda backend: backend),
        ("case", lambda backend: (backend, 3)),
    ],
)
def test_a_problems_backends_follow_each_other_and_each_is_traced(
    monkeypatch: pytest.MonkeyPatch, name: str, form: Callable[[Any], Any]
) -> None:
    monkeypatch.setattr(pairs, "ALL", True)
    backends = (BACKENDS[0], BACKENDS[-1])
    items = [Item(**{name: form(b)}, **problem) for b in backends for problem in PROBLEMS]
    wanted = [items[i] for i in (0, 3, 1, 4, 2, 5)]
    conftest.pytest_collection_modifyitems(config()[0], items)  # type: ignore[arg-type]
    assert [id(item) for item in items] == [id(item) for item in wanted]
    assert [item.marks for item in items] == [[]] * 4 + [["no_cover"]] * 2


def test_the_oracle_finds_the_gradients_that_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, exact = [], accuracy.exact

    def recording(**options: Any) -> Any:
        asked.append(options["of"])
        return exact(**options)

    monkeypatch.setattr(accuracy, "exact", recording)
    arguments = {"y": torch.randn(3, 2), "decoded": torch.randn(4, 2), "beta": torch.tensor(1.0)}
    grad = torch.ones(3)
    found = accuracy.gradients(accuracy.reference_free_energy, arguments, grad)
    accuracy.assert_gradients_accurate({"y": found["y"]}, arguments, grad, of=["y"])
    accuracy.assert_gradients_accurate(found, arguments, grad)
    assert asked == [("y",), ("y", "decoded", "beta")]
    with pytest.raises(AssertionError, match="gradient of y is wrong"):
        accuracy.assert_gradients_accurate({"y": found["y"] + 1e-4}, arguments, grad, of=["y"])
