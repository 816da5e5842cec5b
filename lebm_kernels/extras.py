"""Optional dependencies: an import that lacks one says which extra installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtraError(ImportError):
    """An optional dependency is not installed; the message names the extra that installs it."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Wrap imports of what an extra of ``pyproject.toml`` installs.

    Raises:
        MissingExtraError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package == "lebm_kernels":
            raise
        raise MissingExtraError(
            f"{package} is not installed: pip install 'lebm_kernels[{extra}]'", name=package
        ) from error
