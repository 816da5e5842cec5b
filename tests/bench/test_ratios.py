"""Two saved runs of the speed tests are compared, and the machine's drift is taken out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ratios


def saved(path: Path, times: dict[tuple[str, str], float]) -> Path:
    entries = [
        {"params": {"title": title, "name": name}, "stats": {"median": seconds}}
        for (title, name), seconds in times.items()
    ]
    path.write_text(json.dumps({"benchmarks": entries}))
    return path


BEFORE = {("a", "native"): 1.0, ("a", ratios.PEER): 10.0, ("b", "native"): 2.0}


def test_a_machine_that_drifted_is_no_change_of_ours(tmp_path, capsys):
    after = {("a", "native"): 1.5, ("a", ratios.PEER): 15.0, ("b", "native"): 2.2}
    files = [str(saved(tmp_path / "1.json", BEFORE)), str(saved(tmp_path / "2.json", after))]
    assert ratios.ratios(BEFORE, after)["a", "native"] == (1.5, pytest.approx(1.0))
    assert ratios.ratios(BEFORE, after)["b", "native"] == (pytest.approx(1.1), None)
    assert ratios.main(files) == 0
    assert "none slower" in capsys.readouterr().out


def test_what_has_become_slower_is_told(tmp_path, capsys):
    after = {**BEFORE, ("a", "native"): 1.3}
    files = [str(saved(tmp_path / "1.json", BEFORE)), str(saved(tmp_path / "2.json", after))]
    assert ratios.main(files) == 1
    assert "1 slower than 1.2 times" in capsys.readouterr().out
    assert ratios.main([*files, "--limit", "1.4"]) == 0


@pytest.mark.parametrize("text", ["", "{}", '{"benchmarks": []}', '{"benchmarks": [{}]}'])
def test_a_file_of_something_else_is_named(tmp_path, capsys, text):
    path = tmp_path / "1.json"
    path.write_text(text)
    with pytest.raises(SystemExit) as caught:
        ratios.main([str(path), str(path)])
    assert caught.value.code == 2
    assert "1.json holds no run of bench/test_speed.py" in capsys.readouterr().err
