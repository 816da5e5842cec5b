"""Compare two saved runs of bench/test_speed.py: ``python bench/ratios.py before.json after.json``.

The ratio of a case is its median after / its median before. The ratio of the peer, whose code is
not ours, is the drift of the machine's speed. A ratio divided by the drift shows the effect of our
change.
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
    """Median seconds by title and provider, from a JSON file of pytest-benchmark.

    Raises:
        ValueError: the file is not from bench/test_speed.py.
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
    """For each case and provider the ratio, and the ratio / drift if both runs have the peer."""
    plain = {key: after[key] / before[key] for key in before if key in after}
    return {
        (title, name): (ratio, ratio / plain[title, PEER] if (title, PEER) in plain else None)
        for (title, name), ratio in plain.items()
    }


def table(
    before: dict[tuple[str, str], float], after: dict[tuple[str, str], float], limit: float
) -> tuple[Table, int]:
    """A line for each case and provider in both runs, and how many of ours exceed the limit."""
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
    """Print the table; return 1 if one of ours exceeds the limit."""
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
