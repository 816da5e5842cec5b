"""The command line, ``lebm``: what runs here, training, figures, and a demonstration of all.

A module a command, in which the function of the same name is the command; ``errors.py`` and
``shared.py`` have what several use. Models, training and figures are imported by the commands as
they run, so that ``--help`` and a mistyped option are answered at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from lebm_kernels import __version__
from lebm_kernels.extras import needs

with needs("cli"):
    import typer

    from lebm_kernels.cli import bench, demo, figures, gradcheck, gtm, info, show, train
    from lebm_kernels.cli.errors import OneLineErrors

app: typer.Typer = typer.Typer(
    cls=OneLineErrors,
    help="Fused free energies of latent-variable energy-based models.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"lebm_kernels {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


# In the order in which --help lists them.
for _command in (
    info.info,
    train.train,
    demo.demo,
    bench.bench,
    gradcheck.gradcheck,
    gtm.gtm,
    show.show,
    figures.figures,
):
    app.command()(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``lebm`` with these arguments (the process's own if absent), and exit."""
    app(args=arguments, prog_name="lebm")
