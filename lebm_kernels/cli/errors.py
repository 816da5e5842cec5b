"""A mistake of the user's is answered by one line that names the option, and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

#: The option that sets each argument of the library whose errors can reach the user.
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
    """Shows a usage error as one line instead of typer's panel."""

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
            # Usage errors are known by their method: their class lives in a private module.
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
    """Turn an error about an argument, which it names first, into one about its option.

    ``not_finite`` is the option to blame where a result is no longer finite.
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
