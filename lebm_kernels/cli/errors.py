"""Usage errors: one line that names the option, and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

#: The option behind each argument of the library whose errors a user can cause.
_OPTIONS = {
    "beta": "--beta",
    "epochs": "--epochs",
    "learning_rate": "--learning-rate",
    "backend": "--backend",
    "margin": "--margin",
    "loss": "--loss",
    "seed": "--seed",
    "latents": "--latents",
    "bumps": "--bumps",
    "width": "--width",
    "decay": "--decay",
    "iterations": "--iterations",
    "checkpoint": "--resume",
    "data": "--resume",
    "M": "--queries",
    "N": "--latents",
    "D": "--dims",
    "backward": "--gradients",
    "threads": "--threads",
    "provider": "--provider",
}


class OneLineErrors(TyperGroup):
    """A command group that prints a usage error as one line instead of typer's panel."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Parse, run and, in standalone mode, exit."""
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except Exception as error:
            # Usage errors are recognised by this method, because their class is private to typer.
            if not standalone_mode or not hasattr(error, "format_message"):
                raise
            message = " ".join(error.format_message().split())
            print(f"lebm: error: {message}", file=sys.stderr)
            sys.exit(2)
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


@contextmanager
def errors_by_option(not_finite: str = "--learning-rate") -> Iterator[None]:
    """Turn an error about an argument into a usage error about the option that sets it.

    The first word of a message is the name of the argument. ``not_finite`` is the option to name if
    a result is not finite.
    """
    try:
        yield
    except (ValueError, TypeError, RuntimeError, FileNotFoundError) as error:
        option = _OPTIONS.get(str(error).partition(" ")[0])
        if option is None:
            raise
        raise typer.BadParameter(str(error), param_hint=f"'{option}'") from error
    except FloatingPointError as error:
        raise typer.BadParameter(str(error), param_hint=f"'{not_finite}'") from error
