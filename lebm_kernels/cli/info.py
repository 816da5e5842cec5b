"""``lebm info``: print the facts for a bug report."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table

import lebm_kernels
from lebm_kernels.cli.shared import console


def info() -> None:
    """Print the facts for a bug report: versions, machine, build, and the backends."""
    from lebm_kernels.diagnostics.bug_report import report

    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for title, value in report().items():
        facts.add_row(title, escape(value))
    console.print(facts, highlight=False)
    console.print()

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("backend", no_wrap=True)
    table.add_column("runs on", no_wrap=True)
    table.add_column("how, or why not", overflow="fold")
    for row in lebm_kernels.backends():
        table.add_row(row.name, ", ".join(row.devices) or "-", escape(row.reason))
    console.print(table, highlight=False)
