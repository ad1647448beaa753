"""The report of runs that are torn, changed on the way, oddly named, or far from their videos."""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from tests.visualization.report.planted_run import FLAGS, write_run
from tests.visualization.report.report_page import report
from visualization.report.__main__ import main
from visualization.report.sections import read_report_videos

ROOT = Path(__file__).resolve().parents[3]


def test_videos_without_labels_are_read_too(tmp_path):
    for text, labels in (("a,40,1\nb,40,0\n", [1, 0]), ("a,40,1\nc,40,cat\n", [None, None]),
                         ("a,40,1\nc,40\nd,0\n", [None, None])):
        (tmp_path / "a.csv").write_text(text)
        records, _ = read_report_videos(str(tmp_path / "a.csv"), 9)
        assert [record.label for record in records] == labels


def test_word_labels_are_no_labels(full_run, videos_csv, tmp_path):
    csv = videos_csv.parent / "words.csv"
    csv.write_text("v0,40,cat\nv1,40,dog\nv2,40,cat\nv3,0,dog\n")
    page = report(full_run, "--csv_file", csv, "--max_checkpoints", 1, out=tmp_path / "a.html")
    assert "all 3 videos" in page.texts["prototypes"] and "epoch_0012" in page.texts["rank"]
    assert "visualization.embedding --weights" in page.texts["embedding"]


def test_videos_of_another_csv_replace_those_that_are_not_here(full_run, labelled_csv, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(full_run, run)
    config = json.loads((run / "config.json").read_text())
    config["flags"]["csv_file"] = "/nowhere/videos.csv"
    (run / "config.json").write_text(json.dumps(config))
    assert "/nowhere/videos.csv: cannot read" in report(run).texts["prototypes"]
    other = labelled_csv[1].with_name("held_out.csv")
    other.write_text("".join(f"v{number},40,{number}\n" for number in range(4)))
    page = report(run, "--csv_file", other, "--max_checkpoints", 1)
    assert "held_out.csv" in page.texts["prototypes"] and "epoch_0012" in page.texts["rank"]
    assert "Classes have numbers, not names: " in page.texts["prototypes"]


def test_one_torn_file_costs_no_more_than_itself(tmp_path):
    run = write_run(tmp_path / "run")
    card = {"task": "retrieval", "metrics": {"high": {"R@1": 0.415}}, "weights": "a | b", "settings": {}, "csv_files": {}}
    for name, text in (("good", json.dumps(card)), ("cut", json.dumps(card)[:-9]), ("other", "{}")):
        (run / name).mkdir()
        (run / name / "result.json").write_text(text)
    for name in ("retrieval.png", "embedding.png", "embedding_low.png"):
        (run / "good" / name).write_bytes(b"" if "low" in name else b"no image")
    (run / "good" / "embedding_mid.png").write_bytes(b"P5 20000 20000 255\n")  # more pixels than Pillow decompresses
    assert cv2.imwrite(str(run / "good" / "embedding_high.png"), np.eye(20, dtype=np.uint8) * 255)
    page = report(run, "--logs_only")
    text = page.texts["results"]
    assert [text.count(part) for part in ("Left out: ", "not a result card", "cannot be read")] == [3, 2, 1]
    assert [page.texts["embedding"].count(part) for part in ("Left out: ", "cannot be read")] == [3, 3]
    assert [one["alt"] for one in page.of("img") if "webp" in one["src"]] == [
        "Videos as points, t-SNE and PCA of each level, colored by class. of good"]
    assert re.search(r"retrieval ?a \| b - high 41\.5", text), "a cell each"


def test_cards_of_mode_eval_are_shown_too(tmp_path):
    run = write_run(tmp_path / "run")
    card = {"task": "temporal_order", "weights": "w", "settings": {}, "csv_files": {}}
    (run / "order").mkdir()
    for name, accuracy in (("result.json", 0.5), ("result_eval.json", 0.75)):
        (run / "order" / name).write_text(json.dumps({**card, "metrics": {"high": {"accuracy": accuracy}}}))
    text = report(run, "--logs_only").texts["results"]
    assert "50.0" in text and "75.0" in text and "Card order/result_eval.json" in text


def test_maps_written_last_come_first(tmp_path):
    run = write_run(tmp_path / "run")
    for folder, age in (("order_epoch_0004", 50), ("order_epoch_0012", 100), ("temporal_order", 200)):
        for number in (1, 0):
            path = run / folder / "cam" / f"{number:04d}_v.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"video")
        os.utime(path.parent, (1e9 - age, 1e9 - age))
    os.utime(run / "order_epoch_0012" / "cam", (1e9, 1e9))
    report(run, "--logs_only", "--max_cam_videos", 3)
    text = (run / "report.html").read_text()
    assert re.findall("<figcaption>(order[^<]*)", text) == [
        "order_epoch_0012/cam/0000_v.mp4", "order_epoch_0012/cam/0001_v.mp4", "order_epoch_0004/cam/0000_v.mp4"]
    assert "3 more below" in text


def test_skipped_videos_of_the_monitor_are_no_share(tmp_path):
    line = {"kind": "monitor", "epoch": 4, "step": 60, "monitor_R@1": 0.25, "monitor_skipped": 7}
    page = report(write_run(tmp_path / "run", events=[line]), "--logs_only")
    assert "R@1" in page.texts["curves"] and "700" not in page.texts["curves"] and "skipped" not in page.texts["curves"]
    assert "7 labelled video(s)" in page.texts["warnings"]


def test_chance_is_that_of_the_batch_of_the_last_epoch(tmp_path):
    config = {"earlier_starts": [{"start_epoch": 0, "processes": 1, "flags": FLAGS}], "start_epoch": 9}
    page = report(write_run(tmp_path / "run", config=config), "--logs_only")
    assert "with 64 videos" in page.texts["curves"] and "ln 127" in page.texts["curves"]
    page = report(write_run(tmp_path / "not_yet", config={**config, "start_epoch": 12}), "--logs_only")
    assert "ln 63" in page.texts["curves"] and "has changed" not in page.texts["curves"]


def test_a_flag_that_was_given_differs_from_one_that_was_not(tmp_path):
    text = report(write_run(tmp_path / "run", flags={"gpu": "none"}), "--logs_only").texts["configuration"]
    assert re.search("--gpu ?none ?None", text)


def test_any_name_of_a_run_can_be_shown(tmp_path):
    run = write_run(tmp_path / "run_\udcff_é")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-m", "visualization.report", os.fsencode(run), "--logs_only"], cwd=ROOT,
                          env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\\xe9" in done.stdout and "<h1>run_\\udcff_é</h1>" in (run / "report.html").read_text(encoding="utf-8")


def test_a_full_disk_leaves_no_part_of_a_page(tmp_path, monkeypatch, capsys):
    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.files.os.fsync", fail)
    run = write_run(tmp_path / "run")
    assert main([str(run), "--logs_only", "--gpu", "none"]) == 2
    assert "report.html: No space left" in capsys.readouterr().err
    assert not list(run.glob("report*"))
