"""The emulator of CUDA: right kernels give numpy's results, and each planted fault is found."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simt import CUDA, HERE, Builder, Fault, Library, Mode, Schedule, can_use_asan, compiler

KERNELS = HERE / "kernels"
HARNESSES = HERE / "harness"
Edit = tuple[str, str]
Build = Callable[..., Library]

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no g++")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds the harness of a kernel file in a mode, optionally with a planted fault."""
    builder = Builder(tmp_path_factory.mktemp("simt"))

    @cache
    def build(name: str, mode: Mode = "plain", edit: Edit | None = None) -> Library:
        if mode == "asan" and not can_use_asan():
            pytest.skip("the compiler has no AddressSanitizer")
        if mode == "plain" and edit:
            # One library serves both modes: plain runs ignore the instrumentation.
            return replace(build(name, "checked", edit), mode="plain")
        edits = {f"{name}.cuh": edit} if edit else None
        return builder.build(HARNESSES / f"{name}.cpp", [KERNELS], mode=mode, edits=edits)

    return build


def read_only(x: Any) -> Any:
    x.flags.writeable = False
    return x


def pairs_arguments(queries: int = 200, latents: int = 317) -> list[Any]:
    rng = np.random.default_rng(0)
    y = read_only(rng.normal(size=queries).astype(np.float32))
    g = read_only(rng.normal(size=latents).astype(np.float32))
    blocks = -(-queries // 96)
    sums, partial, total = (np.full(n, np.nan, np.float32) for n in (queries, blocks, 1))
    return [y, g, queries, latents, sums, partial, np.zeros(1, np.uint32), total]


def transpose_arguments(rows: int = 45, columns: int = 70, dtype: Any = np.float32) -> list[Any]:
    image = np.random.default_rng(0).normal(size=(rows, columns)).astype(dtype)
    return [read_only(image), np.full((columns, rows), np.nan, dtype), rows, columns]


def scan_arguments(count: int = 1003) -> list[Any]:
    values = np.random.default_rng(0).integers(-(2**30), 2**30, count, np.int32)
    return [read_only(values), np.zeros(count, np.int32), count]


CALLS: dict[str, tuple[str, Callable[[], list[Any]]]] = {
    "pairs": ("pair_sums", pairs_arguments),
    "transpose": ("transpose_floats", transpose_arguments),
    "scan": ("inclusive_scan", scan_arguments),
}


@pytest.mark.parametrize("mode", ["plain", "checked"])
@pytest.mark.parametrize(("queries", "latents"), [(1, 1), (96, 96), (97, 287), (200, 317)])
def test_pairs(build: Build, mode: Mode, queries: int, latents: int) -> None:
    arguments = pairs_arguments(queries, latents)
    build("pairs", mode).check("pair_sums", *arguments)
    y, g, _, _, sums, partial, done, total = arguments
    wanted = np.exp2(-((y[:, None].astype(np.float64) - g) ** 2)).sum(axis=1)
    np.testing.assert_allclose(sums, wanted, rtol=1e-5)
    np.testing.assert_allclose(total, [wanted.sum()], rtol=1e-5)
    assert done == 0


@pytest.mark.parametrize("mode", ["plain", "checked"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (32, 32), (45, 70), (3, 100)])
def test_transpose(build: Build, mode: Mode, dtype: Any, rows: int, columns: int) -> None:
    arguments = transpose_arguments(rows, columns, dtype)
    function = "transpose_floats" if dtype == np.float32 else "transpose_doubles"
    build("transpose", mode).check(function, *arguments)
    np.testing.assert_array_equal(arguments[1], arguments[0].T)


@pytest.mark.parametrize("mode", ["plain", "checked"])
@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 1003])
def test_scan(build: Build, mode: Mode, count: int) -> None:
    arguments = scan_arguments(count)
    build("scan", mode).check("inclusive_scan", *arguments)
    np.testing.assert_array_equal(arguments[1], np.cumsum(arguments[0], dtype=np.int32))


def test_a_right_kernel_under_address_sanitizer(build: Build) -> None:
    plain, apart = pairs_arguments(), pairs_arguments()
    build("pairs").run("pair_sums", *plain)
    build("pairs", "asan").run("pair_sums", *apart)
    for one, other in zip(plain, apart, strict=True):
        np.testing.assert_array_equal(one, other)


def test_ucontext_switches_fibers_on_other_architectures(tmp_path: Path) -> None:
    builder = Builder(tmp_path, flags=["-DSIMT_UCONTEXT"])
    arguments = scan_arguments()
    builder.build(HARNESSES / "scan.cpp", [KERNELS]).check("inclusive_scan", *arguments)
    np.testing.assert_array_equal(arguments[1], np.cumsum(arguments[0], dtype=np.int32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [32, 8])
def test_shuffles(build: Build, dtype: Any, width: int) -> None:
    threads = 64
    values = np.random.default_rng(0).normal(size=threads).astype(dtype)
    found = np.full((4, threads), np.nan, dtype)
    function = "shuffles_of_floats" if dtype == np.float32 else "shuffles_of_doubles"
    build("intrinsics").check(function, values.copy(), found, threads, width)
    i = np.arange(threads)
    begin = i - i % width
    up, down = i - 3, i + 3
    np.testing.assert_array_equal(found[0], values[begin + 5 % width])
    np.testing.assert_array_equal(found[1], values[np.where(up < begin, i, up)])
    np.testing.assert_array_equal(found[2], values[np.where(down >= begin + width, i, down)])
    np.testing.assert_array_equal(found[3], values[i ^ 6])


@pytest.mark.parametrize("kind", ["mixed", "all", "none"])
def test_votes_and_reductions(build: Build, kind: str) -> None:
    threads = 64
    values = np.random.default_rng(0).integers(-(2**31), 2**31, threads, np.int32)
    if kind != "mixed":
        values = np.abs(values | 1) if kind == "all" else -np.abs(values | 1)
    found = np.zeros((14, threads), np.int32)
    build("intrinsics").check("votes", read_only(values), found, threads)
    warps = values.reshape(2, 32)
    positive = warps > 0

    def ballot(votes: Any) -> Any:
        return (votes.astype(np.uint64) << np.arange(votes.shape[1], dtype=np.uint64)).sum(axis=1)

    wanted = [
        ballot(positive),
        positive.any(axis=1),
        positive.all(axis=1),
        [positive.sum()] * 2,
        [positive.any()] * 2,
        [positive.all()] * 2,
        warps.sum(axis=1),
        warps.min(axis=1),
        warps.max(axis=1),
        *(f.reduce(warps, axis=1) for f in (np.bitwise_and, np.bitwise_or, np.bitwise_xor)),
    ]
    for row, of_warps in zip(found, wanted, strict=False):
        expected = np.asarray(of_warps).astype(np.uint64).astype(np.uint32).view(np.int32)
        np.testing.assert_array_equal(row, np.repeat(expected, 32))
    low, high = ballot(positive[:, :8]), warps[:, 8:].sum(axis=1).astype(np.int32)
    own = np.concatenate([np.r_[[a] * 8, [b] * 24] for a, b in zip(low, high, strict=True)])
    np.testing.assert_array_equal(found[12], own.astype(np.int64).astype(np.int32))
    np.testing.assert_array_equal(found[13], found[12][np.arange(threads) ^ 31])


@pytest.mark.parametrize("mode", ["plain", "checked"])
def test_atomics(build: Build, mode: Mode) -> None:
    values = np.random.default_rng(0).integers(-(2**31), 2**31, (3, 40), np.int32)
    found = np.zeros(8, np.int32)
    found[3] = -1
    count, wide = np.full(1, 95, np.uint32), np.zeros(1, np.uint64)
    arguments = (read_only(values), found, count, wide, *values.shape)
    # atomicExch leaves the value of the last thread if the threads run in ascending order.
    build("intrinsics", mode).run("atomics", *arguments)
    wanted = [values.sum(), values.min(), values.max()]
    wanted += [f.reduce(values, axis=None) for f in (np.bitwise_and, np.bitwise_or)]
    wanted += [np.bitwise_xor.reduce(values, axis=None), 0, values[-1, -1]]
    wanted[1], wanted[2] = min(wanted[1], 0), max(wanted[2], 0)
    np.testing.assert_array_equal(found, np.asarray(wanted).astype(np.int32))
    assert count == (95 + values.size) % 100
    assert wide == values.size << 33
    with pytest.raises(Fault) as caught:
        build("intrinsics", mode).check("atomics", *arguments)
    assert caught.value.kind == "order"


TILE_WRITTEN = "__syncthreads();  // the tile is written"
TILE_READ = "__syncthreads();  // the tile is read"
TWO_BARRIERS = """if (x < 16) {
    __syncthreads();
  } else {
    __syncthreads();
  }"""
EARLY_RETURN = """int x = threadIdx.x;
  if (left + x >= columns) return;"""
LARGE_ARRAY = """int before_tile = 0;
  volatile char large[70000];
  for (int i = 0; i < 70000; ++i) large[i] = 0;
  before_tile = large[0];"""
SHUFFLE = """const int other = __shfl_up_sync(kAllLanes, sum, delta);
      if (lane >= delta) sum += other;"""
BRANCHED_SHUFFLE = "if (lane >= delta) sum += __shfl_up_sync(kAllLanes, sum, delta);"

FAULTS: dict[str, tuple[str, Edit]] = {
    "no barrier between writing and reading": ("pairs", (TILE_WRITTEN, "")),
    "no barrier between reading and writing": ("pairs", (TILE_READ, "")),
    "a shuffle as the block's barrier": (
        "pairs",
        (TILE_WRITTEN, "__shfl_sync(kAllLanes, place, 0);"),
    ),
    "a shuffle as the warp's barrier": (
        "scan",
        ("__syncwarp(kWarpsLanes);  // the sums are read", "__shfl_sync(kWarpsLanes, other, 0);"),
    ),
    "no fence before another block reads": ("pairs", ("__threadfence();", "")),
    "a barrier in either branch": ("transpose", ("__syncthreads();", TWO_BARRIERS)),
    "a barrier in one branch": ("transpose", ("__syncthreads();", "if (x < 16) __syncthreads();")),
    "an early return": ("transpose", ("int x = threadIdx.x;", EARLY_RETURN)),
    "a shuffle in a branch": ("scan", (SHUFFLE, BRANCHED_SHUFFLE)),
    "a mask without the lane": ("scan", ("= (1u << kWarps) - 1", "= (1u << kWarps) - 2")),
    "a mask with lanes elsewhere": ("scan", ("= (1u << kWarps) - 1", "= kAllLanes")),
    "a shuffle from a lane outside the mask": (
        "scan",
        ("__syncwarp(kWarpsLanes);  // the sums are read", "__shfl_sync(kWarpsLanes, other, 9);"),
    ),
    "writes past shared memory": ("transpose", ("[kTile][kTile", "[kTile - 1][kTile")),
    "reads past shared memory": ("pairs", ("const int count = min(kThreads, latents - first);",
                                           "const int count = kThreads + 1;")),
    "an index one too far": ("transpose", ("top + x] = tile", "top + x + 1] = tile")),
    "a wrong bound of what is written": ("transpose", ("left + y < col", "left + y <= col")),
    "a wrong bound of what is read": ("transpose", ("top + y < rows &&", "top + y <= rows &&")),
    "a wrong bound of a tail": ("scan", ("if (i + 1 < count) {", "if (i < count) {")),
    "a vector that is not aligned": ("scan", ("(in + i);", "(in + i - 1);")),
    "shared memory not initialised": ("pairs", ("if (lane == 0) scratch",
                                                "if (lane == 0 && warp != 1) scratch")),
    "a block too large": ("pairs", ("kThreads = 96", "kThreads = 1056")),
    "too much stack": ("scan", ("int before_tile = 0;", LARGE_ARRAY)),
    "a trap": ("scan", ("int before_tile = 0;", "int before_tile = (__trap(), 0);")),
    "too much static shared memory": ("pairs", ("tile, [kThreads]", "tile, [kThreads * 129]")),
    "too much dynamic shared memory": ("scan", ("kWarps * sizeof(int)", "(48 << 10) + 1")),
}  # fmt: skip

# The kind of fault that each mode reports. Plain builds compare bits under several orders and
# poisons, check guards around arrays and shared memory, and see faults of synchronisation. Checked
# builds see every access.
CAUGHT: list[tuple[str, Mode, str]] = [
    ("no barrier between writing and reading", "plain", "poison"),
    ("no barrier between writing and reading", "checked", "uninitialised"),
    ("no barrier between reading and writing", "plain", "order"),
    ("no barrier between reading and writing", "checked", "race"),
    ("a shuffle as the block's barrier", "plain", "poison"),
    ("a shuffle as the block's barrier", "checked", "race"),
    ("a shuffle as the warp's barrier", "checked", "race"),
    ("no fence before another block reads", "checked", "race"),
    ("a barrier in either branch", "plain", "divergent barrier"),
    ("a barrier in one branch", "plain", "early return"),
    ("an early return", "plain", "early return"),
    ("an early return", "asan", "early return"),
    ("a shuffle in a branch", "plain", "divergent mask"),
    ("a mask without the lane", "plain", "divergent mask"),
    ("a mask with lanes elsewhere", "plain", "divergent mask"),
    ("a shuffle from a lane outside the mask", "plain", "divergent mask"),
    ("writes past shared memory", "plain", "shared bounds"),
    ("writes past shared memory", "checked", "shared bounds"),
    ("writes past shared memory", "asan", "asan use-after-poison"),
    ("reads past shared memory", "plain", "poison"),
    ("reads past shared memory", "checked", "shared bounds"),
    ("reads past shared memory", "asan", "asan use-after-poison"),
    ("an index one too far", "plain", "global bounds"),
    ("an index one too far", "checked", "global bounds"),
    ("an index one too far", "asan", "asan heap-buffer-overflow"),
    ("a wrong bound of what is written", "plain", "global bounds"),
    ("a wrong bound of what is written", "checked", "uninitialised"),
    ("a wrong bound of what is written", "asan", "asan heap-buffer-overflow"),
    ("a wrong bound of what is read", "checked", "global bounds"),
    ("a wrong bound of what is read", "asan", "asan heap-buffer-overflow"),
    ("a wrong bound of a tail", "checked", "global bounds"),
    ("a vector that is not aligned", "checked", "misaligned"),
    ("shared memory not initialised", "plain", "poison"),
    ("shared memory not initialised", "checked", "uninitialised"),
    ("a block too large", "plain", "launch"),
    ("too much stack", "plain", "stack"),
    ("a trap", "plain", "trap"),
    ("too much static shared memory", "plain", "launch"),
    ("too much dynamic shared memory", "plain", "launch"),
]


@pytest.mark.parametrize(("fault", "mode", "kind"), CAUGHT)
def test_planted_faults_are_caught(build: Build, fault: str, mode: Mode, kind: str) -> None:
    name, edit = FAULTS[fault]
    function, arguments = CALLS[name]
    library = build(name, mode, edit)
    call = library.run if mode == "asan" else library.check  # run: each call starts a process
    with pytest.raises(Fault) as caught:
        call(function, *arguments())
    assert caught.value.kind == kind


def test_every_planted_fault_is_in_the_list() -> None:
    assert {fault for fault, _, _ in CAUGHT} == set(FAULTS)


BARRIERS = [
    (name, number)
    for name in CALLS
    for number, line in enumerate((KERNELS / f"{name}.cuh").read_text().splitlines(), 1)
    if re.match(r"\s*__(syncthreads|syncwarp|threadfence)\(", line)
]


@pytest.mark.parametrize(("name", "line"), BARRIERS)
def test_no_barrier_can_be_skipped(build: Build, name: str, line: int) -> None:
    function, arguments = CALLS[name]
    with pytest.raises(Fault) as caught:
        build(name, "checked").check(function, *arguments(), skipped=(f"{name}.cuh", line))
    assert caught.value.kind in ("race", "uninitialised")


def test_messages_name_threads_and_lines(build: Build) -> None:
    def message(fault: str, mode: Mode) -> str:
        name, edit = FAULTS[fault]
        function, arguments = CALLS[name]
        with pytest.raises(Fault) as caught:
            build(name, mode, edit).check(function, *arguments())
        return str(caught.value)

    def line(name: str, text: str) -> int:
        lines = (KERNELS / f"{name}.cuh").read_text(encoding="utf-8").splitlines()
        return next(number for number, line in enumerate(lines, 1) if text in line)

    text = message("a barrier in either branch", "plain")
    barrier = line("transpose", "__syncthreads")
    assert re.search(rf"threads 0-15, .* at transpose.cuh:{barrier + 1};", text)
    assert re.search(rf"threads 16-31, .* wait in __syncthreads at .*:{barrier + 3} ", text)
    assert "(kernel (tile_kernel<T, 1>), block 0 0 0)" in text

    text = message("an early return", "plain")
    assert re.search(r"; threads 6-31, .* returned", text)

    text = message("no barrier between reading and writing", "checked")
    assert "of tile" in text
    assert f"pairs.cuh:{line('pairs', 'tile[threadIdx.x] =')}" in text
    assert f"pairs.cuh:{line('pairs', 'place - tile[i]')}" in text

    assert "byte 12600 of argument 1, which has 12600, was written" in message(
        "an index one too far", "plain"
    )


def test_read_only_arguments_must_not_change(build: Build) -> None:
    image, out, rows, columns = transpose_arguments()
    with pytest.raises(Fault) as caught:
        build("transpose").run("transpose_floats", image, read_only(out), rows, columns)
    assert caught.value.kind == "read-only"


def test_shared_memory_is_limited_as_configured(build: Build) -> None:
    run, needed = build("transpose").run, 32 * 33 * 4
    run("transpose_floats", *transpose_arguments(), schedule=Schedule(shared_limit=needed))
    with pytest.raises(Fault) as caught:
        run("transpose_floats", *transpose_arguments(), schedule=Schedule(shared_limit=needed - 1))
    assert caught.value.kind == "launch"


def test_a_kernel_can_request_more_dynamic_shared_memory(build: Build) -> None:
    allow = "cudaFuncSetAttribute(scan_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 50000)"
    launch = "LEBM_LAUNCH(scan_kernel, 1, kThreads, {}, stream, in, out, count)"
    edit = (launch.format("kWarps * sizeof(int)"), f"{allow};\n  {launch.format(50000)}")
    run, arguments = build("scan", "plain", edit).run, scan_arguments()
    run("inclusive_scan", *arguments)
    np.testing.assert_array_equal(arguments[1], np.cumsum(arguments[0], dtype=np.int32))
    with pytest.raises(Fault) as caught:
        run("inclusive_scan", *arguments, schedule=Schedule(shared_limit=49999))
    assert caught.value.kind == "launch"


def test_runs_after_a_fault(build: Build) -> None:
    library = build("pairs")
    arguments = pairs_arguments()
    with pytest.raises(Fault):
        library.run("pair_sums", *arguments, schedule=Schedule(shared_limit=0))
    library.run("pair_sums", *arguments)
    assert np.isfinite(arguments[4]).all()


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        (("LEBM_SHARED(bool, last);", "__shared__ bool last;"), "declared by LEBM_SHARED"),
        (("partial[blockIdx.x] = of_block", "atomicAdd(total, of_block)"), "deleted function"),
    ],
)
def test_unsupported_features_do_not_compile(build: Build, edit: Edit, error: str) -> None:
    with pytest.raises(RuntimeError, match=error):
        build("pairs", "plain", edit)


def test_edits_must_match_once(build: Build) -> None:
    with pytest.raises(ValueError, match="0 times"):
        build("pairs", "plain", ("no such text", ""))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc on the PATH")
def test_nvcc_compiles_the_same_kernels(tmp_path: Path) -> None:
    source = tmp_path / "kernels.cu"
    source.write_text(
        "".join(f'#include "{name}.cuh"\n' for name in ("intrinsics", *CALLS))
        + "template void transpose::launch(const float*, float*, int, int, cudaStream_t);\n"
        + "template void intrinsics::launch_shuffles(const double*, double*, int, int, "
        "cudaStream_t);\n"
    )
    command = ["nvcc", "-c", "-std=c++17", "-Werror", "all-warnings", f"-I{KERNELS}", f"-I{CUDA}"]
    for number in (80, 90, 100):
        command.append(f"-gencode=arch=compute_{number},code=sm_{number}")
    done = subprocess.run(
        [*command, str(source), "-o", str(tmp_path / "kernels.o")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
