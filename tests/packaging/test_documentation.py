"""What the pages and docstrings show runs, what they name exists, and a fault in them is found."""

from __future__ import annotations

import ast
import doctest
import importlib
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from support import documents
from support.documents import PAGES, ROOT

import lebm_kernels

README = (ROOT / "README.md").read_text(encoding="utf-8")

#: The modules whose reference the documentation has, and which show how they are used.
MODULES = (
    "models.grids",
    "models.decoders",
    "models.regularisers",
    "training.losses",
    "training.negatives",
    "training.likelihood",
    "models.inference",
    "models.latent_model",
    "models.gtm",
    "training.datasets",
    "training.loop",
    "practicum.recipes",
    "backends",
)


def title(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_python_on_the_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    documents.run_python(page.read_text(encoding="utf-8"), str(page))


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_commands_on_the_page_are_understood(page: Path) -> None:
    for words in documents.commands(page.read_text(encoding="utf-8")):
        documents.check_command(words)


@pytest.mark.parametrize("page", documents.LINKED, ids=title)
def test_links_lead_somewhere(page: Path) -> None:
    assert documents.broken_links(page) == []


def test_the_pages_hold_what_they_are_tested_for() -> None:
    found = [block.language for page in PAGES for block in documents.blocks(page.read_text())]
    assert found.count("python") >= 12
    assert found.count("sh") >= 10
    assert documents.PAGES[0].name == "README.md"


@pytest.mark.parametrize(
    "block",
    [
        "```python\nimport torch\ntorch.no_such_thing\n```",
        "```python\nx = 1\n```\n\n```python\nassert x == 2\n```",
        "```python\nfor\n```",
        "```\nx = 1\n```",
        "```pyhton\nx = 1\n```",
        "Some text:\n\n    lebm info\n",
        "```python\nx = 1\n",
    ],
)
def test_a_broken_block_is_found(block: str) -> None:
    with pytest.raises((AttributeError, AssertionError, SyntaxError, ValueError)):
        documents.run_python(block, "planted")


@pytest.mark.parametrize(
    "line",
    [
        "lebm trane ellipse",
        "lebm train elipse",
        "lebm train ellipse --bta 1",
        "lebm train ellipse --beta cold",
        "lebm bench --latents many",
        "make rnu",
        "pip install '.[no-such-extra]'",
        "pip install lebm_kernels",
        "curl example.org",
    ],
)
def test_a_command_that_is_not_understood_is_found(line: str) -> None:
    (words,) = documents.commands(f"```sh\n{line}  # a comment\n```\n")
    with pytest.raises(ValueError, match=r"\w"):
        documents.check_command(words)


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Some Heading, here\n[a](page.md) [b](#some-heading-here) [c](none.md) "
        "[d](page.md#none) [e](https://example.org/none) `[f](none.md)`\n"
    )
    assert documents.broken_links(page) == ["none.md", "page.md#none"]


def test_the_three_lines_and_the_one_that_replaces_them_are_equal() -> None:
    text = documents.section(README, "Drop-in")
    given, before, after = [x.code for x in documents.blocks(text) if x.language == "python"]
    assert len(before.splitlines()) == 3
    assert len(after.splitlines()) == 1
    found = []
    for lines in (before, after):
        torch.manual_seed(0)
        names: dict[str, object] = {}
        exec(given + lines, names)
        value, decoded = names["F"], names["decoded"]
        assert isinstance(value, torch.Tensor)
        assert isinstance(decoded, torch.Tensor)
        (slope,) = torch.autograd.grad(value.square().sum(), decoded)
        found.append((value.detach(), slope))
    torch.testing.assert_close(found[1], found[0])
    y, beta = names["y"], names["beta"]
    assert isinstance(y, torch.Tensor)
    assert isinstance(beta, float)
    points, queries = decoded.detach().double().numpy(), y.double().numpy()
    energy = np.square(queries[:, None] - points).sum(-1)
    wanted = -(logsumexp(-beta * energy, axis=1) - math.log(len(points))) / beta
    np.testing.assert_allclose(found[1][0].numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_every_promise_names_tests_that_exist() -> None:
    page = ROOT / "docs" / "promises.md"
    text = page.read_text(encoding="utf-8")
    promised = documents.table(documents.section(text, "What is promised"))
    rows = documents.table(documents.section(text, "The tests that check them"))
    assert len(promised) >= 12
    assert [name for name, _ in promised] == list(dict.fromkeys(name for name, _, _ in rows))
    for _, link, cell in rows:
        path = documents.linked_file(page, link)
        named = re.findall(r"`(\w+)`", cell)
        assert named
        for name in named:
            assert name in documents.tests_of(path), f"{path.name} has no {name}"


def test_every_test_that_a_page_names_exists() -> None:
    everywhere = set().union(*map(documents.tests_of, (ROOT / "tests").rglob("test_*.py")))
    files = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    for page in PAGES:
        for name in re.findall(r"`(?:tests/)?(test_\w+(?:\.py)?)`", page.read_text()):
            assert name in (files if name.endswith(".py") else everywhere), f"{page.name}: {name}"


def test_the_readme_lists_every_backend_and_public_function() -> None:
    rows = documents.table(documents.section(README, "Backends"))
    listed = {row[0].strip("`") for row in rows}
    assert listed == {status.name for status in lebm_kernels.backends()}
    example = documents.section(README, "Example")
    for name in set(lebm_kernels.__all__) - {"Posterior"}:
        assert f"`{name}" in example


def test_the_citation_names_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    facts = dict(re.findall(r"^(\w[\w-]*): (.*)$", citation, flags=re.MULTILINE))
    entry = next(x.code for x in documents.blocks(README) if x.language == "bibtex")
    fields = dict(re.findall(r"(\w+)\s*= \{+(.*?)\}+,?$", entry, flags=re.MULTILINE))
    assert facts["version"] == fields["version"] == lebm_kernels.__version__
    assert facts["title"].strip('"') == fields["title"].replace("\\", "")
    assert facts["license"] == fields["license"] == "Apache-2.0"
    assert f"name: {fields['author']}".replace("\\", "") in citation


def with_examples() -> list[str]:
    """The modules whose docstrings have examples; the others are not imported for it."""
    paths = sorted((ROOT / "lebm_kernels").rglob("*.py"))
    names = [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in paths
        if ">>> " in path.read_text(encoding="utf-8")
    ]
    return [name.removesuffix(".__init__") for name in names]


@pytest.mark.parametrize("name", with_examples())
def test_examples_in_docstrings_give_what_they_say(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), verbose=False, report=True)
    assert result.attempted > 0
    assert result.failed == 0


def test_what_a_user_calls_has_an_example() -> None:
    source = ast.parse((ROOT / "lebm_kernels" / "functional.py").read_text(encoding="utf-8"))
    shown = {
        x.name
        for x in source.body
        if isinstance(x, ast.FunctionDef) and ">>> " in (ast.get_docstring(x) or "")
    }
    assert set(lebm_kernels.__all__) - {"Posterior", "backends"} <= shown
    assert {f"lebm_kernels.{name}" for name in MODULES} <= set(with_examples())
