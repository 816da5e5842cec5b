"""Errors that a user can cause: one line, and an exit code.

A usage error names the option, with exit code 2. A file that cannot be written is named, with exit
code 1. A closed pipe, as after ``| head``, is no error to report.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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
    """A command group that prints errors as one line instead of typer's panel or a traceback."""

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
        if standalone_mode and sys.stdout is None:
            _print_error("standard output is closed")
            sys.exit(1)
        try:
            for stream in (sys.stdout, sys.stderr):
                # Names of files may have characters that the terminal's encoding has not.
                if isinstance(stream, io.TextIOWrapper):
                    stream.reconfigure(errors="backslashreplace")
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
            sys.stdout.flush()
        except OSError as error:
            if not standalone_mode or error.errno is None:
                raise
            _report(error)
            sys.exit(1)
        except Exception as error:
            if standalone_mode and _is_lack_of_memory(error):
                _print_error(f"not enough memory for these sizes: {_first_line(error)}")
                sys.exit(1)
            # Usage errors are recognised by this method, because their class is private to typer.
            if not standalone_mode or not hasattr(error, "format_message"):
                raise
            _print_error(" ".join(error.format_message().split()))
            sys.exit(2)
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


def _report(error: OSError) -> None:
    """Print the error of the operating system; without a file's name it is standard output's."""
    name = error.filename
    if name is None:
        name = "standard output"
        sys.stdout = io.StringIO()  # Python would write what is left, and fail again
    if not isinstance(error, BrokenPipeError):
        _print_error(f"{name}: {error.strerror}; what was written before is kept")


def _is_lack_of_memory(error: Exception) -> bool:
    """Whether an allocation has failed; PyTorch's errors of that have no class of their own."""
    if isinstance(error, MemoryError):
        return True
    words = ("can't allocate memory", "out of memory", "size calculation overflowed")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _print_error(message: str) -> None:
    # Standard error can be as full as the file.
    with suppress(OSError):
        print(f"lebm: error: {message}", file=sys.stderr, flush=True)


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
