"""What conftest.py does with the tests: their order, which count lines, what is compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conftest
import pytest
import torch
from support import accuracy
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
    name: str, form: Callable[[Any], Any]
) -> None:
    backends = (BACKENDS[0], BACKENDS[-1])
    items = [Item(**{name: form(b)}, **problem) for b in backends for problem in PROBLEMS]
    wanted = [items[i] for i in (0, 3, 1, 4, 2, 5)]
    conftest.pytest_collection_modifyitems(items)  # type: ignore[arg-type]
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
