"""Tables of the documentation, for the tests to compare themselves with."""

from __future__ import annotations

from pathlib import Path

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "bad_input.md"


def rows(section: str) -> list[tuple[str, ...]]:
    """The cells of the rows of the one table under that heading, without the table's head."""
    text = _PAGE.read_text().split(f"\n## {section}\n")[1].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:]]
