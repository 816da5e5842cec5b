"""How Triton's passes are cut, for GPUs and for the interpreter; no kernel runs."""

from __future__ import annotations

from itertools import product

import pytest

pytest.importorskip("triton")

from lebm_kernels.backends.triton.arguments import Device, Plan, Shape, plan

DEVICES = [Device(True, 1), Device(False, 1), Device(False, 108), Device(False, 132)]
SIZES = (1, 2, 3, 17, 127, 129, 4097, 65536, 1_000_003, 10_000_000)


def shapes(D: int) -> list[Shape]:
    return [
        Shape(B, M, N, D, has, wide)
        for B, M, N, has, wide in product((1, 3), SIZES, SIZES, range(8), (False, True))
    ]


def is_power_of_two(x: int) -> bool:
    return x > 0 and x & (x - 1) == 0


@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("device", DEVICES, ids=["interpreted", "1", "108", "132"])
@pytest.mark.parametrize("D", [1, 2, 3, 4, 5, 64])
def test_all_is_covered(D: int, device: Device, columns: bool) -> None:
    for shape in shapes(D):
        cut: Plan = plan(shape, device, columns=columns)
        summed = shape.M if columns else shape.N
        for tile in (cut, cut.small_tiles()):
            assert is_power_of_two(tile.outer), shape
        assert is_power_of_two(cut.inner), shape
        assert is_power_of_two(cut.chunk), shape
        # Splits begin with a block, none is empty, and together they cover everything.
        assert cut.split_size % cut.inner == 0, shape
        assert cut.split_size * cut.num_splits >= summed > cut.split_size * (cut.num_splits - 1), (
            shape
        )


@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
def test_the_workspace_is_no_larger_than_what_is_given(columns: bool) -> None:
    for D, device in product((2, 5), DEVICES):
        for shape in shapes(D):
            cut = plan(shape, device, columns=columns)
            kept, summed = (shape.N, shape.M) if columns else (shape.M, shape.N)
            # Several splits only where the kept items do not fill the device.
            assert cut.num_splits * kept <= kept + 8 * device.multiprocessors * cut.outer, shape
            assert cut.num_splits <= summed, shape


@pytest.mark.parametrize("device", DEVICES[1:], ids=["1", "108", "132"])
def test_a_gpu_is_filled(device: Device) -> None:
    few, many = Shape(1, 3, 4_000_000, 2, 0, False), Shape(1, 65536, 65536, 2, 0, False)
    assert 4 * device.multiprocessors <= plan(few, device).programs(few.M, 1)[0]
    assert plan(many, device).programs(many.M, 1)[0] >= 8 * device.multiprocessors
