"""Several result cards as one table."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from eval.compare import main


def write(folder, weights, recall, more=None, **settings):
    folder.mkdir()
    card = {"task": "retrieval", "metrics": {"high": {"R@1": recall}}, "weights": weights, "settings": settings,
            "csv_files": {"test": {"path": "t.csv", "sha256": "0" * 64}}, **(more or {})}
    (folder / "result.json").write_text(json.dumps(card))
    return str(folder)


def test_rows_and_differences(tmp_path, capsys):
    a = write(tmp_path / "a", "random", 0.071, {"net": "r3d18"}, clips="4", seed=0)
    b = write(tmp_path / "b", "x.pt", 0.25, {"net": "s3d"}, clips="10", seed=0)
    assert main([a, b + "/result.json"]) == 0
    out = capsys.readouterr().out
    assert "| retrieval | random | r3d18 | high | 7.1 |" in out and "| retrieval | x.pt | s3d | high | 25.0 |" in out
    assert "differs: clips: 4, 10" in out and "differs: net: r3d18, s3d" in out and "seed" not in out


def test_several_splits_show_their_deviation_and_differ_from_one(tmp_path, capsys):
    several = {"metrics_std": {"high": {"R@1": 0.006}}}
    assert main([write(tmp_path / "a", "x.pt", 0.4, seed=0),
                 write(tmp_path / "b", "x.pt", 0.415, several, seed=0, splits=["1", "2"])]) == 0
    out = capsys.readouterr().out
    assert "| high | 40.0 |" in out and "| high | 41.5 ± 0.6 |" in out and "differs: splits: -, ['1', '2']" in out


def test_comparing_needs_no_torch():
    program = "import sys, eval.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).resolve().parents[2]).returncode == 0


def test_what_else_makes_numbers_incomparable_is_an_error(tmp_path, capsys):
    same = {"num_test_videos": 12, "git_commit": "c0ffee", "pretrained_epochs": 100}
    one = {"num_train_videos": 18, "skipped_train_videos": [], "device": "cpu", "checkpoint_sha256": "a" * 64,
           "chosen": {"high": {"lr": 0.1, "weight_decay": 0.001, "holdout_top1": 0.5}},
           "input": {"mean": [0.5], "std": [0.2]}, "holdout": {"groups": "auto", "num_groups": 25, "num_groups_held_out": 5},
           "skipped_held_out_videos": [], "trained_on": "cpu",
           "per_split": {"1": {"num_test_videos": 7, "epochs_done": 3}}}
    two = {"num_train_videos": 17, "skipped_train_videos": ["x"], "device": "H100", "checkpoint_sha256": None,
           "chosen": {"high": {"lr": 1, "weight_decay": 0.001, "holdout_top1": 0.4}},
           "input": {"mean": [0.4], "std": [0.2]}, "holdout": {"groups": "auto", "num_groups": 25, "num_groups_held_out": 6},
           "skipped_held_out_videos": ["y"], "trained_on": "H100",
           "per_split": {"1": {"num_test_videos": 8, "epochs_done": 3}}}
    assert main([write(tmp_path / "a", "x.pt", 0.4, {**same, **one}, picture_level="low"),
                 write(tmp_path / "b", "x.pt", 0.4, {**same, **two}, picture_level="high")]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("differs: ")] == [
        "differs: input: {'mean': [0.5], 'std': [0.2]}, {'mean': [0.4], 'std': [0.2]}", "differs: device: cpu, H100",
        "differs: trained_on: cpu, H100", "differs: num_train_videos: 18, 17", "differs: num_skipped_train_videos: 0, 1",
        "differs: num_skipped_held_out_videos: 0, 1", "differs: holdout: num_groups_held_out: 5, 6",
        "differs: chosen high: lr 0.1 weight decay 0.001, lr 1 weight decay 0.001",
        "differs: checkpoint_sha256: aaaaaaaaaaaa, -", "differs: split 1: num_test_videos: 7, 8"]


def test_it_starts_as_a_script(tmp_path):
    script = Path(__file__).resolve().parents[2] / "eval/compare.py"
    result = subprocess.run([sys.executable, str(script), write(tmp_path / "a", "x.pt", 0.4)], capture_output=True,
                            text=True)
    assert result.returncode == 0 and "| x.pt | - | high | 40.0 |" in result.stdout, result.stderr


def test_not_a_card_is_one_line(tmp_path, capsys):
    (tmp_path / "result.json").write_text("{}")
    for path in (tmp_path, tmp_path / "none"):
        assert main([str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("python -m eval.compare: error: ") and error.count("\n") == 1
