"""The program by which `make lint` checks the public names' types uses all of them."""

from __future__ import annotations

import re
from pathlib import Path

import lebm_kernels

CONSUMER = Path(__file__).resolve().parent / "typing_consumer.py"


def test_the_program_uses_every_public_name() -> None:
    used = set(re.findall(r"lebm_kernels\.(\w+)", CONSUMER.read_text(encoding="utf-8")))
    assert set(lebm_kernels.__all__) <= used
