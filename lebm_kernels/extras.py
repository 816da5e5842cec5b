"""Optional dependencies: an import that lacks one says which extra installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# Where the name to install differs from the name to import.
_PROJECTS = {"sklearn": "scikit-learn"}


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
        project = _PROJECTS.get(package, package)
        raise MissingExtraError(
            f"{project} is not installed: pip install 'lebm_kernels[{extra}]'", name=package
        ) from error
