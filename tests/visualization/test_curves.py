"""Loss curves of a run."""
from __future__ import annotations

import json

import cv2

from visualization.curves import main


def write_run(folder, epochs):
    folder.mkdir()
    flags = {"graph_start_epoch": 1, "epochs": 3, "net": "r3d10", "img_dim": 32, "csv_file": "a.csv"}
    (folder / "config.json").write_text(json.dumps({"flags": flags}))
    lines = [{"kind": "step", "epoch": 0, "step": 1}]
    lines += [{"kind": "epoch", "epoch": e, "step": e + 1, "instance_high": 3.0 - e, **({"graph_high": 1.0} if e else {})}
              for e in range(epochs)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_picture_of_a_run(tmp_path, capsys):
    write_run(tmp_path / "run", 3)
    assert main([str(tmp_path / "run")]) == 0
    picture = cv2.imread(str(tmp_path / "run" / "curves.png"))
    assert picture is not None and picture.std() > 0
    assert str(tmp_path / "run" / "curves.png") in capsys.readouterr().out


def test_what_is_no_run_is_one_line(tmp_path, capsys):
    write_run(tmp_path / "young", 0)
    for folder, named in ((tmp_path / "none", "not a run directory"), (tmp_path / "young", "no finished epoch")):
        assert main([str(folder)]) == 2
        error = capsys.readouterr().err
        assert named in error and error.count("\n") == 1
