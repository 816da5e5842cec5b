"""The limits do the work they are named for, and the table of targets compares what it says."""

from __future__ import annotations

import io
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from rich.console import Console

import lebm_kernels
import peak as peak_script
import targets
from lebm_kernels.backends import preferred
from lebm_kernels.benchmarks import limits, peak
from lebm_kernels.benchmarks.cases import Case
from lebm_kernels.benchmarks.compare import Comparison, Timing
from lebm_kernels.benchmarks.providers import NotAvailableError, providers
from targets import Row, Target

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def shown(rows: list[Row]) -> str:
    text = io.StringIO()
    Console(file=text, width=200).print(targets.target_table(rows))
    return text.getvalue()


# The limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", peak.VARIANTS, ids=str)
def test_the_loop_adds_exponentials_on_every_thread(variant):
    if COMPILER is None:
        with pytest.raises(NotAvailableError, match="compiler"):
            peak.ExponentialLoop(variant, 2)
        return
    repeats = 3
    thread_pairs = repeats * peak.LATENTS * variant.queries
    loop = peak.ExponentialLoop(variant, 2, thread_pairs)
    assert loop.pairs == 2 * thread_pairs
    loop()
    loop()  # begins anew
    g, c = loop.latents.double().split((2, 1), dim=1)
    exponents = loop.queries.double() @ g.mT + c.squeeze(1)
    expected = repeats * torch.exp2(exponents).sum(-1)
    found = torch.stack([sums.double().sum(-1) for sums in loop.sums])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)


def test_the_loop_multiplies_and_adds_on_every_thread():
    if COMPILER is None:
        with pytest.raises(NotAvailableError, match="compiler"):
            peak.MultiplyAddLoop(2)
        return
    count, factor, addend = 5, peak.MultiplyAddLoop.FACTOR, peak.MultiplyAddLoop.ADDEND
    chains = peak.MultiplyAddLoop(1, 1).products  # of one FMA for each lane
    loop = peak.MultiplyAddLoop(2, count * chains)
    assert loop.products == 2 * count * chains
    loop()
    loop()  # begins anew
    for sums in loop.sums:
        assert sums.numel() == chains
        wanted = addend * (1 - factor**count) / (1 - factor)
        torch.testing.assert_close(sums, torch.full_like(sums, wanted))


class Counted:
    """A loop of which only the amounts count."""

    def __init__(self, *arguments):
        self.arguments, self.calls = arguments, 0
        self.pairs = 1000
        self.variant = "variant"

    def __call__(self):
        self.calls += 1


@pytest.mark.parametrize(
    ("backward", "exponentials", "products"),
    [((), 1, 6), (("y",), 1, 14), (("y", "decoded"), 2, 28), (("log_weight",), 2, 28)],
    ids=str,
)
def test_the_least_work_of_eight_dimensions(monkeypatch, backward, exponentials, products):
    monkeypatch.setattr(limits, "fastest_loop", lambda threads: Counted())
    monkeypatch.setattr(limits, "ExponentialLoop", Counted)
    monkeypatch.setattr(limits, "MultiplyAddLoop", Counted)
    work = limits.LeastWork(Case(5, 7, 8, backward=backward), 2)
    work()
    assert work.pairs == 1000
    assert work._loop.calls == exponentials
    assert work._products.calls == 1
    assert work._products.arguments == (2, 500 * products)


def test_the_product_is_one():
    case = Case(5, 7, 3)
    product = limits.Product(case)
    product()
    inputs = case.inputs()
    assert product.pairs == 35
    torch.testing.assert_close(product._out, inputs["y"] @ inputs["decoded"].T)


def test_the_fastest_loop_has_the_shortest_time(monkeypatch):
    if COMPILER is None:
        with pytest.raises(NotAvailableError, match="compiler"):
            peak.fastest_loop(1)
        return

    def measure(works, rounds):
        return [Timing(name, [1.0 if name == "2 x 4" else 2.0, 3.0]) for name in works]

    monkeypatch.setattr(peak, "THREAD_PAIRS", 1 << 12)
    monkeypatch.setattr(peak, "measure", measure)
    loop = peak.fastest_loop.__wrapped__(1)
    assert loop.variant == peak.Variant(2, 4)


def test_works_are_timed_in_turn_after_a_warm_up():
    calls = []
    works = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    timings = peak.measure(works, 2)
    assert calls == list("ababab")
    assert [timing.name for timing in timings] == ["a", "b"]
    assert all(len(timing.seconds) == 2 and timing.median > 0 for timing in timings)


def test_the_limits_are_printed(capsys, monkeypatch):
    for name in ("ExponentialLoop", "MultiplyAddLoop", "Product"):
        monkeypatch.setattr(peak_script, name, lambda *arguments: FakeLimit())
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    assert peak_script.main(["--rounds", "2", "--m", "3", "--n", "4", "--d", "5"]) == 0
    printed = capsys.readouterr().out
    assert "exponential loop, 4 x 4" in printed
    assert "multiply-add loop" in printed
    assert "product, 3 x 5 x 4" in printed


class FakeLimit:
    pairs = products = 1000

    def __call__(self):
        pass


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(NotAvailableError, match=r"no C\+\+ compiler .* CXX can name one"):
        peak.compiler()
    monkeypatch.setenv("CXX", "no-such-compiler -x")
    with pytest.raises(NotAvailableError, match=r"CXX, 'no-such-compiler', was not found"):
        peak.compiler()


def test_a_compiler_that_fails_says_why(monkeypatch):
    monkeypatch.setenv("CXX", "sh -c 'echo out of luck >&2; exit 1'")
    peak.library.cache_clear()
    with pytest.raises(NotAvailableError, match=r"peak\.cpp does not compile: out of luck"):
        peak.library()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--rounds", "0"], "--rounds: must be at least 1, got 0"), (["--m", "0"], "M must be")],
)
def test_peak_names_a_bad_argument(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        peak_script.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        (Case(2048, 2048, 2), "loop"),
        (Case(2048, 2048, 3), "work"),
        (Case(2048, 2048, 64), "work"),
        (Case(2048, 2048, 2, dtype=torch.float64), type(None)),
        (Case(2048, 2048, 64, dtype=torch.float64), limits.Product),
        (Case(2048, 2048, 2, backward=("y",)), "loop"),
        (Case(2048, 2048, 2, layout="curve"), "loop"),
    ],
    ids=str,
)
def test_which_limit_bounds_which_case(monkeypatch, case, kind):
    monkeypatch.setattr(limits, "fastest_loop", lambda threads: "loop")
    monkeypatch.setattr(limits, "LeastWork", lambda case, threads: "work")
    bound = limits.bound(case)
    assert bound == kind if isinstance(kind, str) else isinstance(bound, kind)


def test_a_product_that_does_not_fit_is_no_limit(monkeypatch):
    monkeypatch.setattr(limits, "available_bytes", lambda device: 4 * 8 * 100)
    case = Case(10, 10, 64, dtype=torch.float64)
    assert isinstance(limits.bound(case), limits.Product)
    assert limits.bound(replace(case, N=11)) is None


# The targets -----------------------------------------------------------------------------------


def test_every_target_has_an_aim_and_a_title_of_its_own():
    for target in targets.TARGETS:
        if isinstance(target, targets.SoftTarget):
            assert callable(getattr(lebm_kernels, target.name))
            assert callable(getattr(torch, target.peer))
            continue
        names = ("ratio", "unpruned_ratio", "share", "seconds", "mebibytes")
        aims = {name for name in names if getattr(target, name) is not None}
        assert len(aims) == 1 or aims == {"ratio", "share"}
        assert set(target.peers) <= set(providers())
    titles = [target.title for target in targets.TARGETS]
    assert len(set(titles)) == len(titles)


def comparison(case: Case, *beside: Timing) -> Comparison:
    timings = (
        Timing("ours", [1.0, 2.0, 3.0]),
        Timing("slow", [9.0]),
        Timing("missing", failure="not available: no such library"),
        Timing("fast", [8.0, 7.0, 6.0]),
    )
    return Comparison(case, timings, beside)


@pytest.mark.parametrize(("aim", "reached"), [(3.5, True), (3.6, False)])
def test_the_best_peer_counts(aim, reached):
    case = Case(100, 20, 2)
    target = Target(case, ratio=aim)
    row = targets._fill(Row(target.title, "t"), target, comparison(case), None)
    assert (row.seconds, row.peer, row.peer_seconds) == (2.0, "fast", 7.0)
    assert row.pairs_per_second == 1000.0
    assert (row.figure, row.reached) == (3.5, reached)
    assert row.share is None


@pytest.mark.parametrize(("aim", "reached"), [(0.5, True), (0.51, False)])
def test_the_share_is_of_the_limit_in_the_same_rounds(aim, reached):
    case = Case(100, 20, 2)
    target = Target(case, share=aim)
    # 8000 pairs in 4 s: 2000 a second, and ours 1000.
    row = targets._fill(Row("", ""), target, comparison(case, Timing("limit", [4.0])), 8000)
    assert (row.share, row.figure, row.reached) == (0.5, 0.5, reached)


def test_a_ratio_and_a_share_have_a_row_each():
    target = Target(Case(100, 20, 8), ratio=3, share=0.6)
    ratio = targets._fill(
        Row(target.title, ">= 3x"), target, comparison(target.case, Timing("limit", [4.0])), 8000
    )
    (share,) = targets._rows_of_share(target, ratio)
    assert (ratio.title, share.title) == (target.title, f"{target.title}{targets.SHARE}")
    assert (ratio.target, share.target) == (">= 3x", ">= 60% of limit")
    assert (ratio.figure, ratio.reached) == (3.5, True)
    assert (share.figure, share.reached, share.seconds, share.peer) == (0.5, False, 2.0, None)
    assert targets._rows_of_share(replace(target, share=None), ratio) == []


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("name", "peer"), [("softmin", "logsumexp"), ("softargmin", "softmax")])
def test_functions_of_energies_are_timed_beside_torch(name, peer, backward):
    target = targets.SoftTarget(name, peer, backward, size=6, ratio=0.0)
    (row,) = targets.measure_soft(target, 2, lambda text: None)
    assert row.reached is True
    assert row.peer == f"torch.{peer}"
    assert set(row.timings) == {name, peer}
    assert row.figure == row.peer_seconds / row.seconds


@pytest.mark.parametrize("backward", [False, True])
def test_a_step_takes_what_it_is_named_for(backward):
    step = targets.soft_step(lambda energy, dim: (3 * energy).sum(dim), 6, backward)
    if backward:
        (grad_energy,) = step()
        assert grad_energy.shape == (6, 6)
        assert (grad_energy == grad_energy[:, :1]).all()
    else:
        assert step().shape == (6,)


def test_pruning_is_compared_with_ours_unpruned():
    case = Case(100, 20, 2)
    target = Target(case, unpruned_ratio=10)
    others = comparison(case, Timing("unpruned", [30.0]), Timing("limit", [4.0]))
    row = targets._fill(Row("", ""), target, others, 400)
    assert (row.peer, row.figure, row.reached) == ("unpruned", 15.0, True)
    # 2000 pairs in 30 s, of 100 a second.
    assert row.notes == ["fast takes 7 s", "unpruned visits 0.0667 k/s, 67% of the limit"]
    assert row.share == 10.0


def test_nothing_can_be_left_out_of_the_unpruned_case():
    # A latent is left out whose exponent, in bits, is below another's by log2 N and those of a
    # float, at the least.
    case = Case(500, 4000, 2, beta=1e4, layout="curve")
    inputs = case.inputs()
    energy = torch.cdist(inputs["y"], inputs["decoded"]).square()
    bits = targets.WARM * (energy.amax(1) - energy.amin(1)) / math.log(2)
    assert bits.max() < 24 + math.log2(case.N)
    # It is the same problem at another temperature.
    (value,) = targets.unpruned_step(case, preferred("cpu"))(case.cotangent())
    wanted = lebm_kernels.free_energy(inputs["y"], inputs["decoded"], targets.WARM)
    torch.testing.assert_close(value, wanted)


def test_a_case_of_few_pairs_has_more_rounds():
    (row,) = targets.measure_time(Target(Case(5, 6, 2), ratio=1.0), 2, lambda text: None)
    assert len(row.timings[preferred("cpu")]) == 2 * targets.MORE_ROUNDS


@pytest.mark.parametrize(("aim", "reached"), [(2.0, True), (1.9, False)])
def test_seconds_are_an_upper_bound(aim, reached):
    case = Case(100, 20, 2)
    row = targets._fill(Row("", ""), Target(case, seconds=aim), comparison(case), None)
    assert (row.figure, row.reached) == (2.0, reached)


def test_nothing_is_reached_where_nothing_was_measured():
    case = Case(100, 20, 2)
    alone = Comparison(case, (Timing("ours", [1.0]), Timing("missing", failure="gone")))
    row = targets._fill(Row("case", ">= 2x"), Target(case, ratio=2), alone, None)
    assert (row.figure, row.reached, row.peer) == (None, None, None)
    failed = Comparison(case, (Timing("ours", failure="wrong"), Timing("fast", [1.0])))
    assert targets._fill(Row("", ""), Target(case, ratio=2), failed, None).seconds is None
    assert "?" in shown([row])


def test_a_peer_that_needs_too_much_is_not_asked(monkeypatch):
    monkeypatch.setattr(targets, "MOST_BYTES", 1 << 20)
    case = Case(300, 400, 2)
    (row,) = targets.measure_time(Target(case, targets.EAGER[:2], ratio=1.0), 1, lambda text: None)
    # Four matrices of 300 x 400 floats are too many already.
    assert [note.partition(":")[0] for note in row.notes] == list(targets.EAGER[:2])
    assert row.seconds is not None
    assert row.reached is None
    assert targets.needed_bytes("KeOps", case) == 0
    assert targets.needed_bytes(targets.UNROLLED, case) == 300 * 400 * 4


def test_ours_without_pruning_has_as_many_pairs():
    case = Case(60, 50, 2, beta=1e4, layout="curve", backward=("y",))
    target = Target(case, ("chunked",), unpruned_ratio=1.0)
    (row,) = targets.measure_time(target, 2, lambda text: None)
    assert row.peer == "unpruned"
    assert row.figure is not None
    assert len(row.timings["unpruned"]) == len(row.timings[preferred("cpu")])


def test_memory_is_measured_in_a_process_of_its_own():
    case = Case(2000, 2000, 2, backward=("y", "decoded"))
    (row,) = targets.measure_memory(Target(case, mebibytes=1e6), 1, lambda text: None)
    assert row.notes[0].startswith("added memory")
    assert row.reached is True
    assert row.seconds is not None


def test_the_memory_measure_sees_a_matrix(monkeypatch):
    whole = targets.MEMORY.replace("(**arguments)", "(**arguments, backend='reference')")
    monkeypatch.setattr(targets, "MEMORY", whole)
    (row,) = targets.measure_memory(
        Target(Case(3000, 3000, 2), mebibytes=1.0), 1, lambda text: None
    )
    assert row.reached is False
    assert row.figure is not None
    assert row.figure > 3000**2 * 4 / 2**20


def test_the_memory_measure_tells_of_a_failure(monkeypatch):
    monkeypatch.setattr(targets, "MEMORY", "raise SystemExit('no luck')")
    (row,) = targets.measure_memory(Target(Case(2, 2, 2), mebibytes=1.0), 1, lambda text: None)
    assert row.notes == ["failed: no luck"]
    assert row.reached is None


def test_the_table_shows_what_was_measured():
    row = Row("a case", ">= 9x", figure=10.0, reached=True, seconds=0.002, pairs_per_second=2.5e9)
    row.share, row.peer, row.peer_seconds = 0.625, "a [peer]", 0.02
    row.notes.append("someone: skipped")
    other = Row("another", ">= 2x", figure=1.0, reached=False, seconds=1.0, pairs_per_second=1e9)
    text = shown([row, other])
    line = next(line for line in text.splitlines() if "a case" in line)
    for part in ("2 ms", "2.5", "62%", "a [peer]", "20 ms", "10x", ">= 9x", "yes"):
        assert part in line
    assert "no" in next(line for line in text.splitlines() if "another" in line)
    assert "a case: someone: skipped" in text
    assert targets.limits([row, other]) == {"a case": pytest.approx(4e9)}


def test_the_command_measures_what_is_asked_for_and_writes_it(monkeypatch, tmp_path, capsys):
    small = (
        Target(Case(5, 6, 2), targets.EAGER, ratio=1e9),
        Target(Case(7, 6, 2), targets.EAGER, ratio=0.0),
    )
    monkeypatch.setattr(targets, "TARGETS", small)
    file = tmp_path / "figures.json"
    assert targets.main(["--only", "5 x 6", "--rounds", "2", "--json", str(file)]) == 0
    record = json.loads(file.read_text())
    (row,) = record["rows"]
    assert row["title"] == "5 x 6, D 2: forward"
    assert row["reached"] is False
    assert row["peer"] in targets.EAGER
    rounds = 2 * targets.MORE_ROUNDS
    assert all(len(seconds) == rounds for seconds in row["timings"].values())
    assert math.isclose(row["figure"], row["peer_seconds"] / row["seconds"])
    assert record["facts"]["PyTorch"] == torch.__version__
    assert "5 x 6" in capsys.readouterr().out
    assert targets.main(["--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [target.title for target in small]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds: must be at least 1, got 0"),
        (["--threads", "0"], "--threads: must be at least 1, got 0"),
        (["--only", "nothing like it"], "--only: no title contains 'nothing like it'"),
    ],
)
def test_targets_names_a_bad_argument(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        targets.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
