"""What the pages of the documentation hold: blocks of code, commands, links, names of tests."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from typer.main import get_command

from lebm_kernels import cli

ROOT = Path(__file__).resolve().parents[2]

#: The pages that are read by a user.
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "bench" / "results").rglob("*.md")),
]

#: Pages whose links are followed, and no more: they are read by who changes the code.
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "bench" / "README.md"]

#: What a block may be. The last two run nothing.
LANGUAGES = ("python", "sh", "text", "bibtex")


class Block(NamedTuple):
    """A fenced block: its language, its code and the line of the page that it begins in."""

    language: str
    code: str
    line: int


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page.

    Raises:
        ValueError: a block has no language of ours, isn't closed, or is indented instead of fenced,
            so that no test would look at it.
    """
    inside: Block | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("```"):
            if inside is None:
                inside = Block(line[3:].strip(), "", number + 1)
                if inside.language not in LANGUAGES:
                    raise ValueError(f"line {number}: no block may be {inside.language!r}")
            else:
                yield inside
                inside = None
        elif inside is not None:
            inside = inside._replace(code=f"{inside.code}{line}\n")
        elif re.match(r" {4,}\S", line) and not re.match(r" *([-*|>]|\d+\.) ", line):
            raise ValueError(f"line {number}: a block must be fenced")
    if inside is not None:
        raise ValueError(f"line {inside.line}: a block must be closed")


def run_python(text: str, page: str) -> dict[str, Any]:
    """Run the Python of a page from top to bottom, in one namespace, which is returned."""
    names: dict[str, Any] = {"__name__": page}
    for block in blocks(text):
        if block.language == "python":
            # Empty lines before, so that a traceback names the page's own line.
            code = "\n" * (block.line - 1) + block.code
            exec(compile(code, page, "exec"), names)
    return names


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command of a page's shell blocks, without comments."""
    for block in blocks(text):
        if block.language == "sh":
            for line in block.code.splitlines():
                if words := shlex.split(line, comments=True):
                    yield words


def check_command(words: list[str]) -> None:
    """Let a command be understood by what it is addressed to, without doing what it says.

    Raises:
        ValueError: it would not be understood.
    """
    program, *arguments = words
    if program == "lebm":
        _check_lebm(arguments)
    elif program == "make":
        done = subprocess.run(
            ["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise ValueError(f"make {shlex.join(arguments)}: {done.stderr}")
        # A phony target without a rule is understood by make, and does nothing.
        rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        if lost := {word for word in arguments if "=" not in word} - rules:
            raise ValueError(f"make {shlex.join(arguments)}: no rule for {sorted(lost)}")
    elif program == "pip":
        _check_pip(arguments)
    else:
        raise ValueError(f"no page may tell to run {program!r}, which no test looks at")


def _check_lebm(arguments: list[str]) -> None:
    known: Any = get_command(cli.app)
    name, *rest = arguments
    if not rest and any(name in parameter.opts for parameter in known.params):
        return  # an option of lebm itself
    if name not in known.commands:
        raise ValueError(f"lebm has no command {name!r}")
    try:
        # Parses options and converts their values, and calls nothing.
        known.commands[name].make_context(name, rest)
    except Exception as error:
        raise ValueError(f"lebm {shlex.join(arguments)}: {error}") from error


def _check_pip(arguments: list[str]) -> None:
    match = re.fullmatch(r"install \.(?:\[([\w,-]+)\])?", " ".join(arguments))
    if match is None:
        raise ValueError(f"pip {shlex.join(arguments)} is not `pip install .`")
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = text.split("[project.optional-dependencies]\n")[1].partition("\n[")[0]
    for extra in filter(None, (match[1] or "").split(",")):
        if not re.search(rf"^{extra} = ", extras, flags=re.MULTILINE):
            raise ValueError(f"pyproject.toml has no extra {extra!r}")


def broken_links(page: Path) -> list[str]:
    """The links of a page to files, and to headings in them, that are not there."""
    broken = []
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        place, _, heading = link.partition("#")
        if re.match(r"[a-z]+:", place):
            continue
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (heading and heading not in _headings(target)):
            broken.append(link)
    return broken


def _headings(page: Path) -> set[str]:
    """The anchors that GitHub and Sphinx make of a page's headings."""
    titles = re.findall(r"^#+ +(.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def section(text: str, title: str) -> str:
    """What stands under a heading, up to the next of the same depth."""
    return text.split(f"\n## {title}\n")[1].partition("\n## ")[0]


def table(text: str) -> list[list[str]]:
    """The cells of the rows of the first table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def linked_file(page: Path, cell: str) -> Path:
    """The file that a cell of a page's table links to.

    Raises:
        ValueError: the cell is not one link.
    """
    match = re.fullmatch(r"\[[^\]]+\]\(([^)]+)\)", cell)
    if match is None:
        raise ValueError(f"not a link to a file: {cell!r}")
    return (page.parent / match[1]).resolve()


def tests_of(path: Path) -> set[str]:
    """The names of the test functions of a file."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {x.name for x in body if isinstance(x, ast.FunctionDef) and x.name.startswith("test_")}
