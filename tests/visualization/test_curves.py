"""Loss curves of a run."""
from __future__ import annotations

import json

import cv2

from tests.visualization.report.planted_run import FLAGS
from visualization.curves import main


def write_run(folder, epochs):
    folder.mkdir()
    config = {"flags": {**FLAGS, "graph_start_epoch": 1}, "start_epoch": 0, "processes": 1, "videos": 9}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [{"kind": "step", "epoch": 0, "step": 1}]
    lines += [{"kind": "epoch", "epoch": e, "step": e + 1, "instance_high": 3.0 - e, **({"graph_high": 1.0} if e else {})}
              for e in range(epochs)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_figure_of_a_run(tmp_path, capsys):
    write_run(tmp_path / "run", 3)
    assert main([str(tmp_path / "run")]) == 0
    figure = cv2.imread(str(tmp_path / "run" / "curves.png"))
    assert figure is not None and figure.std() > 0
    assert str(tmp_path / "run" / "curves.png") in capsys.readouterr().out


def test_out_chooses_path_and_format(tmp_path, capsys):
    write_run(tmp_path / "run", 2)
    (tmp_path / "file").touch()
    out = tmp_path / "new" / "folder" / "a.svg"
    assert main([str(tmp_path / "run"), "--out", str(out)]) == 0 and "<svg" in out.read_text()
    capsys.readouterr()
    for wrong, named in ((tmp_path / "a.abc", "must end in one of .png"), (tmp_path / "a", "must end in"),
                         (tmp_path / "file" / "a.png", "cannot write the figure")):
        assert main([str(tmp_path / "run"), "--out", str(wrong)]) == 2
        error = capsys.readouterr().err
        assert f"--out {wrong}: " in error and named in error and error.count("\n") == 1


def test_what_is_no_run_is_one_line(tmp_path, capsys):
    write_run(tmp_path / "young", 0)
    write_run(tmp_path / "head", 1)
    (tmp_path / "head" / "config.json").write_text('{"flags": {"net": "r3d10"}}')
    for folder, named in ((tmp_path / "none", "not a run directory"), (tmp_path / "young", "no finished epoch"),
                          (tmp_path / "head", "not a pretraining run")):
        assert main([str(folder)]) == 2
        error = capsys.readouterr().err
        assert named in error and error.count("\n") == 1
