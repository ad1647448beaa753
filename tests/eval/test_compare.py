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
    a = write(tmp_path / "a", "random", 0.071, clips="4", seed=0)
    b = write(tmp_path / "b", "x.pt", 0.25, clips="10", seed=0)
    assert main([a, b + "/result.json"]) == 0
    out = capsys.readouterr().out
    assert "| retrieval | random | high | 7.1 |" in out and "| retrieval | x.pt | high | 25.0 |" in out
    assert "differs: clips: 4, 10" in out and "seed" not in out


def test_several_splits_show_their_deviation_and_differ_from_one(tmp_path, capsys):
    several = {"metrics_std": {"high": {"R@1": 0.006}}}
    assert main([write(tmp_path / "a", "x.pt", 0.4, seed=0),
                 write(tmp_path / "b", "x.pt", 0.415, several, seed=0, splits=["1", "2"])]) == 0
    out = capsys.readouterr().out
    assert "| high | 40.0 |" in out and "| high | 41.5 ± 0.6 |" in out and "differs: splits: -, ['1', '2']" in out


def test_comparing_needs_no_torch():
    program = "import sys, eval.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).resolve().parents[2]).returncode == 0


def test_not_a_card_is_one_line(tmp_path, capsys):
    (tmp_path / "result.json").write_text("{}")
    for path in (tmp_path, tmp_path / "none"):
        assert main([str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
