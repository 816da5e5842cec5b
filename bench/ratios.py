"""Compare two saved runs of bench/test_speed.py: ``python bench/ratios.py before.json after.json``.

A case's ratio is the median after / the median before. The machine's drift is the ratio of the
peer that no change of ours moves; divided by it, a ratio tells of our change alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from lebm_kernels.benchmarks.compare import format_seconds

PEER = "eager, expansion (mm)"


def medians(path: Path) -> dict[tuple[str, str], float]:
    """Seconds by title and provider, of a file that pytest-benchmark has written.

    Raises:
        ValueError: it is none of bench/test_speed.py.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
        found = {
            (entry["params"]["title"], entry["params"]["name"]): float(entry["stats"]["median"])
            for entry in entries
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no run of bench/test_speed.py: {error!r}") from error
    if not found:
        raise ValueError(f"{path} holds no run of bench/test_speed.py")
    return found


def ratios(
    before: dict[tuple[str, str], float], after: dict[tuple[str, str], float]
) -> dict[tuple[str, str], tuple[float, float | None]]:
    """By case and provider: the ratio, and it over the drift where the peer has run twice."""
    plain = {key: after[key] / before[key] for key in before if key in after}
    return {
        (title, name): (ratio, ratio / plain[title, PEER] if (title, PEER) in plain else None)
        for (title, name), ratio in plain.items()
    }


def table(
    before: dict[tuple[str, str], float], after: dict[tuple[str, str], float], limit: float
) -> tuple[Table, int]:
    """One line a case and provider of both runs, and how many of ours exceed the limit."""
    result = Table(box=box.SIMPLE_HEAD)
    for title in ("case", "provider", "before", "after", "ratio", "over drift"):
        result.add_column(title, justify="left" if title in ("case", "provider") else "right")
    slower = 0
    for (title, name), (ratio, relative) in ratios(before, after).items():
        exceeds = name != PEER and (ratio if relative is None else relative) > limit
        slower += exceeds
        result.add_row(
            title,
            name,
            format_seconds(before[title, name]),
            format_seconds(after[title, name]),
            f"{ratio:.2f}",
            "-" if relative is None else f"{relative:.2f}{' slower' if exceeds else ''}",
        )
    return result, slower


def main(arguments: list[str]) -> int:
    """Print the table; 1 where one of ours has become slower than the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--limit", type=float, default=1.2, help="largest ratio that passes")
    options = parser.parse_args(arguments)
    try:
        before, after = medians(options.before), medians(options.after)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    lines, slower = table(before, after, options.limit)
    if not lines.rows:
        parser.error("the two runs have no case in common")
    Console(width=None if sys.stdout.isatty() else 120).print(lines)
    print(f"{slower} slower than {options.limit:g} times" if slower else "none slower")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
