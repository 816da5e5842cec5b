"""The slow-down by subnormal numbers is a ratio of the times without and with their flushing."""

from __future__ import annotations

import itertools

import pytest
import torch

import subnormals
from lebm_kernels.backends import native

TINY = subnormals.Case(2, 5, 7, 100, G=subnormals.MEAN)


def flushes() -> bool:
    """Whether this thread flushes subnormal numbers to zero."""
    return (torch.tensor([1e-40]) * 1).item() == 0


def test_the_slow_down_is_the_ratio_of_medians(monkeypatch):
    clock = itertools.count()
    flushed = []

    def work():
        flushed.append(flushes())
        # Four units of time while nothing is flushed, two otherwise; reading the clock is one.
        for _ in range(1 if flushes() else 3):
            next(clock)

    monkeypatch.setattr(subnormals.time, "thread_time", lambda: float(next(clock)))
    ratio, seconds = subnormals.slow_down(work, 3)
    assert (ratio, seconds) == (2.0, 2.0)
    assert sorted(flushed) == [False] * 4 + [True] * 4
    assert flushed[:4] == [True, False, False, True]
    assert not flushes()


@pytest.mark.parametrize("case", subnormals.CASES, ids=str)
def test_the_passes_of_every_case(case):
    small = case._replace(M=3, N=11)
    forward, rows, columns = (work() for work in subnormals.passes(small).values())
    assert forward.shape == (3,)
    assert forward.dtype == case.dtype
    assert [x.shape for x in rows] == [(3, case.D)]
    assert [x.shape for x in columns] == [(11, case.D)]
    assert all(x.isfinite().all() for x in (forward, *rows, *columns))


@pytest.mark.skipif(native.unavailable("cpu") is not None, reason="the extension is missing")
def test_the_table_names_the_worst(monkeypatch, capsys):
    ratios = iter([(1.0, 0.5), (3.0, 0.5), (1.0, 0.5), (2.0, 0.5), (1.0, 0.5), (1.5, 0.5)])
    monkeypatch.setattr(subnormals, "CASES", (TINY, TINY._replace(D=3)))
    monkeypatch.setattr(subnormals, "slow_down", lambda work, rounds: next(ratios))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    assert subnormals.main(["--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "1.50  500 ms" in printed
    assert "worst forward: 2.00, float32, D 3" in printed
    assert "worst with dF/dy: 3.00, float32, D 2" in printed
    assert native.instruction_set() in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--rounds", "0"], "must be at least 1, got 0"), (["--only", "no such"], "no case contains")],
)
def test_a_bad_argument_is_named(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        subnormals.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
