"""Several result cards as one table."""
from __future__ import annotations

import json

from eval.compare import main


def write(folder, weights, recall, **settings):
    folder.mkdir()
    card = {"task": "retrieval", "metrics": {"high": {"R@1": recall}}, "weights": weights, "settings": settings,
            "csv_files": {"test": {"path": "t.csv", "sha256": "0" * 64}}}
    (folder / "result.json").write_text(json.dumps(card))
    return str(folder)


def test_rows_and_differences(tmp_path, capsys):
    a, b = write(tmp_path / "a", "random", 0.071, clips="4", seed=0), write(tmp_path / "b", "x.pt", 0.25, clips="10", seed=0)
    assert main([a, b + "/result.json"]) == 0
    out = capsys.readouterr().out
    assert "| retrieval | random | high | 7.1 |" in out and "| retrieval | x.pt | high | 25.0 |" in out
    assert "differs: clips: 4, 10" in out and "seed" not in out


def test_not_a_card_is_one_line(tmp_path, capsys):
    (tmp_path / "result.json").write_text("{}")
    for path in (tmp_path, tmp_path / "none"):
        assert main([str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
