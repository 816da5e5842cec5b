"""Forked, spawned and served processes, pools and data loaders: the same bits, and no deadlock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lebm_kernels.backends import native

SCRIPT = Path(__file__).parents[1] / "support" / "other_processes.py"


@pytest.mark.skipif(native.unavailable("cpu") is not None, reason="the extension is not built")
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_other_processes_give_the_same_bits(method: str) -> None:
    # Not in pytest's own process: what is forked there would depend on the tests before.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(SCRIPT), method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["same"], done.stderr
