"""Runs side by side: means, spreads, gaps, and what is no run."""

import json

import pytest

from crab_mini.evaluation.compare import main


def run(folder, **values):
    """A run folder with one score a task."""
    folder.mkdir()
    score = dict(name="accuracy", chance=0.1, baseline=None, n=7)
    (folder / "results.json").write_text(json.dumps(
        {"results": {task: {"scores": [score | {"value": value}]} for task, value in values.items()}}))
    return folder


def test_columns_are_means_with_sample_spread(tmp_path, capsys):
    a, b, c = run(tmp_path / "a", ave=0.5, avqa=0.25), run(tmp_path / "b", ave=0.7, avqa=None), run(tmp_path / "c", ave=1)
    assert main([f"two seeds={a},{b}", f"alone={c / 'results.json'}"]) == 0
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["task", "score", "two seeds", "alone", "chance", "baseline", "n"]
    assert rows[2] == ["ave", "accuracy", "0.600 ± 0.141", "1.000", "0.100", "", "7"]
    assert rows[3] == ["avqa", "accuracy", "0.250", "", "0.100", "", "7"]


@pytest.mark.parametrize("content", ["{", "[]", '{"results": {"ave": 3}}', '{"results": {"ave": {"scores": [1]}}}'])
def test_what_is_no_run_is_one_line(tmp_path, capsys, content):
    (tmp_path / "results.json").write_text(content)
    for words in ([f"x={tmp_path}"], [f"x={tmp_path / 'none'}"], ["x"], [f"x={tmp_path}", "x=y"]):
        assert main(words) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("compare: ")
