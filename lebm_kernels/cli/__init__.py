"""The command line, ``lebm``.

Each command has its own module, with a function of the same name. ``errors.py`` and ``shared.py``
hold what several commands use. A command imports models, training and figures when it runs, so that
``--help`` and errors in the options appear at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from lebm_kernels import __version__
from lebm_kernels.backends import native
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
    # `info` shows it; the others would silently run on a slower backend.
    elif (wrong := native.wrong_setting()) and context.invoked_subcommand != "info":
        raise typer.BadParameter(wrong, param_hint="the environment")


# In the order of --help.
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
    """Run ``lebm`` with these arguments (``sys.argv`` if absent), and exit."""
    app(args=arguments, prog_name="lebm")
