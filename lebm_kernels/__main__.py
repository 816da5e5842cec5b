"""``python -m lebm_kernels`` is ``lebm``."""

from __future__ import annotations

from lebm_kernels.cli import main

if __name__ == "__main__":
    main()
