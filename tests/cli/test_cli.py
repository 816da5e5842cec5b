"""The command line does what it says, and answers a mistake with one line that names the option."""

from __future__ import annotations

import math
import platform
import subprocess
import sys
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import lebm_kernels
from lebm_kernels import cli
from lebm_kernels.backends import native, preferred
from lebm_kernels.benchmarks import compare as benchmarking
from lebm_kernels.benchmarks.threads import thread_count
from lebm_kernels.cli.errors import errors_by_option
from lebm_kernels.diagnostics import gradient_checks

runner = CliRunner()


def lebm(*arguments):
    return runner.invoke(cli.app, [str(argument) for argument in arguments])


def test_info_says_what_runs_here():
    result = lebm("info")
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    for fact in (
        f"lebm_kernels {lebm_kernels.__version__}",
        f"Python {platform.python_version()}",
        f"PyTorch {torch.__version__}",
        f"threads {torch.get_num_threads()}",
    ):
        assert fact in words
    for row in lebm_kernels.backends():
        assert f"{row.name} {', '.join(row.devices) or '-'} {row.reason.split()[0]}" in words


def test_without_a_command_it_prints_help():
    result = lebm()
    assert result.exit_code == 0
    for command in ("info", "train", "demo"):
        assert command in result.output


def test_version_is_the_packages():
    result = lebm("--version")
    assert result.exit_code == 0
    assert result.output == f"lebm_kernels {lebm_kernels.__version__}\n"


@pytest.mark.parametrize(("model", "beta"), [("ellipse", "inf"), ("horn", "1.5")])
def test_train_lowers_the_free_energy_and_writes(tmp_path, model, beta):
    result = lebm("train", model, "--beta", beta, "--epochs", 4, "--output", tmp_path / "new")
    assert result.exit_code == 0, result.output
    title = f"{model}-{'cold' if beta == 'inf' else 'beta-1.5'}"
    files = {path.name for path in (tmp_path / "new").iterdir()}
    suffixes = (".pt", ".csv", "-manifold.png", "-free-energy.png")
    assert files == {title + suffix for suffix in suffixes}
    told = [line[6:] for line in result.output.splitlines() if line.startswith("wrote ")]
    assert sorted(told) == sorted(str(tmp_path / "new" / name) for name in files)
    row = next(line.split() for line in result.output.splitlines() if line.split()[:1] == [title])
    before, after, held_out, epochs = float(row[1]), float(row[2]), float(row[4]), int(row[5])
    assert 0 < after < before
    assert after / 2 < held_out < 3 * after
    assert epochs == 4


def test_what_was_not_trained_is_not_called_so(tmp_path, monkeypatch):
    from lebm_kernels.cli import train

    titles = []
    monkeypatch.setattr(
        train,
        "save",
        lambda figure, path: titles.extend(axes.get_title() for axes in figure.axes),
    )
    for epochs, title in ((1, "Trained: "), (0, "After 0 epochs: ")):
        titles.clear()
        result = lebm("train", "ellipse", "--epochs", epochs, "--output", tmp_path)
        assert result.exit_code == 0, result.output
        assert titles[1].startswith(title)
    # The checkpoint is the first run's: the second has written the curves' head alone.
    assert [line for line in result.output.splitlines() if line.startswith("wrote ")] == [
        f"wrote {tmp_path / 'ellipse-cold.csv'}"
    ]


def test_train_takes_its_options(tmp_path, monkeypatch):
    from lebm_kernels.training import loop

    seen: dict[str, Any] = {}

    class Stop(Exception):
        pass

    def record(model, data, config, **options):
        seen.update(options, config=config)
        raise Stop

    monkeypatch.setattr(loop, "train", record)
    options = ["--learning-rate", 0.5, "--epochs", 7, "--seed", 3, "--backend", "chunked"]
    result = lebm("train", "ellipse", "--beta", 2, *options, "--output", tmp_path, "--resume")
    assert isinstance(result.exception, Stop)
    config = seen["config"]
    assert (config.beta, config.learning_rate, config.epochs) == (2.0, 0.5, 7)
    assert (config.seed, config.backend) == (3, "chunked")
    assert seen["resume"] is True
    assert seen["checkpoint"] == tmp_path / "ellipse-beta-2.pt"


@pytest.mark.parametrize("loss", ["hinge", "log"])
@pytest.mark.parametrize("negatives", ["box", "noise", "offending"])
def test_train_takes_a_contrastive_loss(tmp_path, monkeypatch, loss, negatives):
    from lebm_kernels.training import loop, losses
    from lebm_kernels.training import negatives as samples

    class Stop(Exception):
        pass

    def record(model, data, config, *, loss, checkpoint, **options):
        raise Stop(loss, data, checkpoint.name)

    monkeypatch.setattr(loop, "train", record)
    options = ["--loss", loss, "--negatives", negatives]
    if loss == "hinge":
        options += ["--margin", 2.5]
    result = lebm("train", "ellipse", *options, "--output", tmp_path)
    assert isinstance(result.exception, Stop)
    found, data, name = result.exception.args
    assert name == f"ellipse-{loss}-{negatives}-cold.pt"
    assert isinstance(found, losses.HingeLoss if loss == "hinge" else losses.LogLoss)
    assert loss == "log" or found.margin == 2.5
    kinds = {
        "box": samples.UniformBox,
        "noise": samples.GaussianNoise,
        "offending": samples.MostOffending,
    }
    assert isinstance(found.negatives, kinds[negatives])
    if negatives == "box":
        assert torch.equal(torch.tensor(found.negatives.low), data.y.amin(0))
        assert torch.equal(torch.tensor(found.negatives.high), data.y.amax(0))


def test_a_contrastive_run_resumes_and_a_wrong_margin_is_named(tmp_path):
    options = ["train", "ellipse", "--loss", "hinge", "--epochs", 2, "--output", tmp_path]
    for more in ([], ["--resume"]):
        assert lebm(*options, *more).exit_code == 0
    for more, option in (
        (["--margin", "nan"], "--margin"),
        (["--margin", 2, "--resume"], "--loss"),
    ):
        result = lebm(*options, *more)
        assert result.exit_code == 2
        assert option in result.stderr


@pytest.mark.no_cover  # what it reaches, others do
def test_several_models_are_trained_into_one_table(tmp_path):
    result = lebm("train", "horn", "neural-horn", "--epochs", 1, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line.split() for line in result.output.splitlines() if line.strip()}
    assert 0 < float(rows["horn-cold"][4]) < 100
    assert 0 < float(rows["neural-horn-cold"][4]) < 100


def test_gtm_prints_densities_beside_mixtures_and_draws_the_map(tmp_path):
    small = ("--latents", 5, "--bumps", 3, "--iterations", 3)
    result = lebm("gtm", *small, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    pictures = sorted(path.name for path in tmp_path.iterdir())
    assert pictures == ["gtm-digits.png", "gtm-restored.png"]
    errors = [float(line.split()[-1]) for line in result.output.splitlines() if "hidden" in line]
    assert 0 < errors[0] < errors[1] < 1
    rows = [line.split() for line in result.output.splitlines()]
    ours, *mixtures = (row for row in rows if row and row[0] in ("topographic", "GaussianMixture"))
    assert ours[2:4] == ["25", str(10 * 64 + 1)]
    assert [row[1] for row in mixtures] == ["9", "25"]
    assert all(0 < float(row[-3]) < 40 for row in (ours, *mixtures))


@pytest.mark.parametrize(
    ("option", "value"),
    [("--latents", 1), ("--bumps", 0), ("--width", 0), ("--decay", -1), ("--iterations", -1)],
)
def test_gtm_names_a_bad_option(tmp_path, option, value):
    result = lebm("gtm", option, value, "--output", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert f"'{option}'" in result.stderr


def test_show_prints_what_was_seen(monkeypatch):
    from lebm_kernels.practicum import demonstrations as d

    rows = [d.Memorising("none", 0.01, 0.03), d.Memorising("L2", 0.5, 1.0)]
    monkeypatch.setattr(d, "memorising", lambda: rows)
    words = lebm("show", "memorising").output.split()
    assert words[-6:] == ["L2", "0.500", "1.000", "0.500", "25.0", "x"]
    row = d.Collapsing(0.5, 0.125, (0.0, 1.25), (True, False))
    monkeypatch.setattr(d, "collapsing", lambda: [row])
    words = lebm("show", "collapsing").output.split()
    assert words[-6:] == ["0.5", "0.125", "0.0000,", "1.2500", "yes,", "no"]


def test_figures_writes_those_that_are_named_in_two_formats_and_the_same_again(tmp_path):
    for folder, names in (("first", ["section", "restored"]), ("again", ["section"])):
        result = lebm("figures", *names, "--out", tmp_path / folder)
        assert result.exit_code == 0, result.output
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == ["restored.png", "restored.svg", "section.png", "section.svg"]
    for name in files:
        written = (tmp_path / "first" / name).read_bytes()
        assert written.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
        if name.startswith("section"):
            assert written == (tmp_path / "again" / name).read_bytes()


def test_figures_draws_all_from_one_run_with_the_seed(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    from lebm_kernels import practicum

    assert [drawn.value for drawn in cli.figures.Drawn] == list(practicum.FIGURES)
    runs = []

    def draw(run):
        runs.append(run)
        return Figure()

    monkeypatch.setattr(practicum, "FIGURES", dict.fromkeys(practicum.FIGURES, draw))
    result = lebm("figures", "--seed", 5, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert {path.stem for path in tmp_path.glob("*.svg")} == set(practicum.FIGURES)
    assert len(runs) == len(practicum.FIGURES)
    assert all(run is runs[0] and run.seed == 5 for run in runs)


@pytest.mark.parametrize(
    ("option", "arguments"), [("--seed", ["section", "--seed", "-1"]), ("names", ["nothing"])]
)
def test_figures_names_a_mistake(tmp_path, option, arguments):
    result = lebm("figures", *arguments, "--output", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert option in result.stderr


def test_small_work_leaves_the_threads_as_they_were():
    threads = torch.get_num_threads()
    inside = []

    @thread_count(1)
    def fail():
        inside.append(torch.get_num_threads())
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside == [1]
    assert torch.get_num_threads() == threads


@pytest.mark.no_cover  # what it reaches, others do
def test_the_seed_decides_the_run(tmp_path):
    def final(seed):
        lebm("train", "ellipse", "--epochs", 2, "--seed", seed, "--output", tmp_path)
        state = torch.load(tmp_path / "ellipse-cold.pt", weights_only=True)
        return next(iter(state["model"].values()))

    assert torch.equal(final(1), final(1))
    assert not torch.equal(final(1), final(2))


def test_resume_takes_up_the_checkpoint(tmp_path):
    arguments = ("train", "ellipse", "--epochs", 3, "--output", tmp_path)
    first = lebm(*arguments)
    again = lebm(*arguments, "--resume")
    assert again.exit_code == 0, again.output

    def energies(result):
        return next(x.split()[1:4] for x in result.output.splitlines() if "ellipse-cold " in x)

    assert energies(again) == energies(first)


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("--beta", ["ellipse", "--beta", "-1"]),
        ("--beta", ["ellipse", "--beta", "nan"]),
        ("--beta", ["ellipse", "--beta", "warm"]),
        ("--epochs", ["ellipse", "--epochs", "-1"]),
        ("--epochs", ["horn", "--epochs", "1.5"]),
        ("--learning-rate", ["ellipse", "--learning-rate", "0"]),
        ("--seed", ["ellipse", "--seed", "-3"]),
        ("--backend", ["ellipse", "--backend", "nobody"]),
        ("--resume", ["ellipse", "--resume"]),
        ("--learning-rate", ["ellipse", "--learning-rate", "1e300"]),
        ("--learning-rate", ["horn", "--learning-rate", "3e38", "--epochs", "1"]),
        ("--seed", ["ellipse", "--seed", str(10**30)]),
        ("--margin", ["ellipse", "--margin", "1"]),
        ("--margin", ["ellipse", "--loss", "log", "--margin", "1"]),
        ("--margin", ["ellipse", "--loss", "hinge", "--margin", "-1"]),
        ("--margin", ["ellipse", "--loss", "hinge", "--margin", "inf"]),
        ("--negatives", ["ellipse", "--negatives", "box"]),
        ("--nothing", ["ellipse", "--nothing"]),
        ("model", ["sphere"]),
        ("model", []),
    ],
)
def test_a_mistake_is_one_line_that_names_the_option(tmp_path, option, arguments):
    result = lebm("train", *arguments, "--output", tmp_path)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("lebm: error: ")
    assert result.stderr.count("\n") == 1
    assert option in result.stderr.lower()


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("gtm", "--latents", 10**9),
        ("gtm", "--bumps", 10**9),
        ("gtm", "--width", 1e300),
        ("gtm", "--width", 1e-300),
        ("gtm", "--decay", "inf"),
        ("gtm", "--seed", 10**30),
        ("gtm", "--seed", -1),
        ("gradcheck", "--seed", 10**30),
        ("gradcheck", "--seed", -1),
        ("figures", "--seed", 10**30),
        ("bench", "--queries", 10**20),
        ("bench", "--latents", 10**20),
        ("bench", "--dims", 10**20),
        ("bench", "--threads", 10**8),
        ("bench", "--budget", "nan"),
    ],
)
def test_an_extreme_value_is_one_line(tmp_path, command, option, value):
    result = lebm(command, option, value, "--output", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert f"'{option}'" in result.stderr


def test_gradients_of_a_forward_pass_are_refused(tmp_path):
    result = lebm("bench", "--direction", "forward", "--gradients", "y", "--output", tmp_path)
    assert result.exit_code == 2
    assert "'--gradients'" in result.stderr


@pytest.mark.parametrize("size", [2**50, 2**62], ids=["too many", "beyond integers"])
def test_lack_of_memory_is_one_line(tmp_path, monkeypatch, size):
    monkeypatch.setattr(cli.train, "train_recipe", lambda *args, **kwargs: torch.empty(size))
    result = lebm("train", "ellipse", "--output", tmp_path)
    assert result.exit_code == 1
    assert result.stderr.startswith("lebm: error: not enough memory for these sizes: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["[red]", "a[/red]b", "[bold", "ü β"])
def test_any_name_of_a_folder_is_printed_as_it_is(tmp_path, name):
    folder = tmp_path / name
    result = lebm("train", "ellipse", "--epochs", 0, "--output", folder)
    assert result.exit_code == 0, result.output
    assert f"wrote {folder}/ellipse-cold.csv" in result.stdout
    (tmp_path / "file[b]").touch()
    result = lebm("train", "ellipse", "--output", tmp_path / "file[b]")
    assert result.exit_code == 2
    assert "file[b]: File exists" in result.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_of_another_encoding_gets_other_characters(tmp_path, encoding, monkeypatch):
    from lebm_kernels.practicum import demonstrations as d

    row = d.Collapsing(0.5, 0.125, (0.0, 1.25), (True, False))
    monkeypatch.setattr(d, "collapsing", lambda: [row])
    monkeypatch.setattr(d, "memorising", lambda: [d.Memorising("none", 0.01, 0.03)])
    folder = tmp_path / "ü β"
    for arguments in (
        ["--help"],
        ["info"],
        ["show", "collapsing"],
        ["show", "memorising"],
        ["train", "ellipse", "--epochs", 0, "--output", folder],
    ):
        result = CliRunner(charset=encoding).invoke(cli.app, [str(x) for x in arguments])
        assert result.exit_code == 0, result.output
        # Only the folder's name has characters that need a substitute.
        assert ("\\u03b2" in result.stdout) == (arguments[0] == "train")


def test_a_wrong_instruction_set_is_one_line_and_does_not_hide_the_facts(monkeypatch):
    wrong = "LEBM_KERNELS_ISA must be one of avx2, baseline on this processor, got 'axv2'"
    monkeypatch.setattr(native, "_FAILURE", native._Failure(wrong, wrong_setting=True))
    for arguments in (["train", "ellipse"], ["gradcheck"], ["demo"]):
        result = lebm(*arguments)
        assert result.exit_code == 2
        assert result.stderr == f"lebm: error: Invalid value for the environment: {wrong}\n"
    for arguments in (["info"], ["--version"], ["--help"]):
        assert lebm(*arguments).exit_code == 0
    assert "got 'axv2'" in " ".join(lebm("info").output.split())


def test_whether_a_setting_is_wrong_does_not_depend_on_the_words(monkeypatch):
    words = "LEBM_KERNELS_ISA is not the reason"
    for wrong_setting, code in ((False, 0), (True, 2)):
        monkeypatch.setattr(native, "_FAILURE", native._Failure(words, wrong_setting))
        assert lebm("train", "--help").exit_code == code
        monkeypatch.setattr(native, "_FAILURE", native._Failure("other words", wrong_setting))
        assert native.wrong_setting() == ("other words" if wrong_setting else None)


def test_help_says_what_resuming_asks_for():
    assert "no option may differ" in " ".join(lebm("train", "--help").output.split())


def test_a_backend_that_cannot_run_says_why(tmp_path):
    for row in lebm_kernels.backends():
        if not row.available:
            result = lebm("train", "ellipse", "--backend", row.name, "--output", tmp_path)
            assert result.exit_code == 2
            assert result.stderr.count("\n") == 1
            assert "'--backend'" in result.stderr
            assert row.reason in result.stderr


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    lebm("train", "ellipse", "--epochs", 2, "--output", tmp_path)
    result = lebm("train", "ellipse", "--epochs", 2, "--seed", 1, "--output", tmp_path, "--resume")
    assert result.exit_code == 2
    assert "'--seed'" in result.stderr


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for command in (["train", "ellipse"], ["demo"]):
        result = lebm(*command, "--output", tmp_path / "file")
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
        assert "'--output'" in result.stderr


def test_an_error_of_ours_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(cli.train, "train_recipe", lambda *args, **kwargs: [][0])
    assert isinstance(lebm("train", "ellipse", "--output", tmp_path).exception, IndexError)
    with pytest.raises(ValueError, match="something else"), errors_by_option():
        raise ValueError("something else went wrong")


def test_demo_trains_draws_times_and_checks(tmp_path):
    result = lebm("demo", "--quick", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {
        f"{model}-{picture}.png"
        for model in ("ellipse", "horn")
        for picture in ("cold-manifold", "beta-1-manifold", "cold-and-warm")
    }
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in pictures)
    ours = preferred("cpu")
    words = " ".join(result.output.split())
    for expected in (ours, "reference", "eager, cdist", "forward + backward (y, decoded)"):
        assert expected in words
    assert f"gradcheck passed: {ours}" in words


@pytest.mark.no_cover  # what it reaches, others do
def test_a_failed_gradcheck_fails_the_demo(tmp_path, monkeypatch, capsys):
    failed = gradient_checks.GradientCheck("chunked", "y", ok=False, message="warm: off by 1")
    monkeypatch.setattr(gradient_checks, "check_gradients", lambda: [failed])
    monkeypatch.setattr(cli.demo, "_timings", lambda quick: [])
    monkeypatch.setattr(benchmarking, "comparison_table", lambda comparisons: "")
    result = lebm("demo", "--quick", "--output", tmp_path)
    assert result.exit_code == 1
    assert "gradcheck FAILED 1 of 1" in result.output
    assert "warm: off by 1" in result.output


def test_the_module_runs_as_a_program():
    command = [sys.executable, "-m", "lebm_kernels", "train", "ellipse", "--beta", "-1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "'--beta'" in result.stderr


def test_temperatures_in_file_names():
    assert cli.train.temperature(math.inf) == "cold"
    assert cli.train.temperature(0.5) == "beta-0.5"
