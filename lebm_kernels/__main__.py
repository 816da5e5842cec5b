"""``python -m lebm_kernels`` is ``lebm``."""

from __future__ import annotations

import sys

from lebm_kernels.extras import MissingExtraError


def main() -> None:
    """Run the command line; a missing extra is one line on standard error, and exit code 1."""
    try:
        from lebm_kernels.cli import main as run

        run()
    except MissingExtraError as error:
        sys.exit(f"lebm: error: {error}")


if __name__ == "__main__":
    main()
