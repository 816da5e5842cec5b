"""Optional dependencies: an import that lacks one says which extra installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

#: What each extra of ``pyproject.toml`` installs, as it is imported.
PACKAGES = {
    "cli": ("rich", "tqdm", "typer"),
    "figures": ("matplotlib",),
    "models": ("scipy", "sklearn"),
}

# Where the name to install differs from the name to import.
_PROJECTS = {"sklearn": "scikit-learn"}


class MissingExtraError(ImportError):
    """An optional dependency is not installed; the message names the extra that installs it."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Wrap imports of what an extra of ``pyproject.toml`` installs.

    Raises:
        MissingExtraError: a package of the extra is not installed. Other missing modules, such as
            those of a broken installation, keep their own error.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in PACKAGES[extra] or find_spec(package) is not None:
            raise
        project = _PROJECTS.get(package, package)
        raise MissingExtraError(
            f"{project} is not installed: pip install 'lebm_kernels[{extra}]'", name=package
        ) from error
