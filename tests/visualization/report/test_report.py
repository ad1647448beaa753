"""The report of a run: every section, everything inside the page, and what is said where something is not there."""
from __future__ import annotations

import base64
import io
import json
import re
import shutil

import av
import cv2
import numpy as np
import torch

from tests.visualization.report.planted_run import FLAGS, write_run
from tests.visualization.report.report_page import SECTIONS, read_page, report
from visualization.report.__main__ import main


def test_every_section_is_there_and_says_what_it_should(full_report):
    page = read_page(full_report)
    assert [attributes["id"] for attributes in page.of("section")] == SECTIONS
    assert [attributes["href"] for attributes in page.of("a")] == [f"#{name}" for name in SECTIONS]
    texts = page.texts
    assert "Unreadable videos" in texts["warnings"] and "collapse" not in texts["warnings"].lower()
    for value in ("NVIDIA H100", "0123456789abcdef", "2.8.0", "--cluster"):
        assert value in texts["configuration"], value
    assert "bad video" in texts["events"]
    for value in ("instance_high", "chance ln 127 = 4.84", "graph on (--split)", "queue on", "lr / 10", "ln K = 1.61",
                  "R@1", "Gradient norm", "waiting for data"):
        assert value in texts["curves"], value
    assert "all 4 videos" in texts["prototypes"] and "another file than the one" in texts["prototypes"]
    for value in ("random start", "epoch_0004", "epoch_0012"):
        assert value in texts["rank"], value
    assert "41.5" in texts["results"] and "temporal_order" in texts["results"]
    assert "broken/result.json: not a result card" in texts["results"]


def test_nothing_is_loaded_and_nothing_runs(full_report):
    text, page = full_report.read_text(), read_page(full_report)
    assert "script" not in {tag for tag, _ in page.elements}
    assert "<b>w</b>" not in text and "<script" not in text
    loading = [value for _, attributes in page.elements for name, value in attributes.items()
               if name in ("src", "href", "poster", "srcset", "data", "action")]
    assert loading and all(value.startswith(("data:", "#")) for value in loading)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    style = re.search("<style>(.*)</style>", text, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style and "http" not in style
    [policy] = [one["content"] for one in page.of("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_images_and_videos_are_whole_and_described(full_report):
    page = read_page(full_report)
    images = [one["src"] for one in page.of("img")] + [one["poster"] for one in page.of("video") if "poster" in one]
    kinds = set()
    for uri in images:
        kind, data = uri.removeprefix("data:").split(";base64,")
        kinds.add(kind)
        if kind == "image/webp":
            decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
            assert decoded is not None and decoded.std() > 0
    assert kinds == {"image/webp", "image/svg+xml"}
    assert all(len(one["alt"]) > 10 for one in page.of("img"))
    assert all(one["aria-label"] for one in page.of("video"))
    videos = page.of("video")
    for one in videos:
        assert {"muted", "loop", "controls"} <= one.keys()
        with av.open(io.BytesIO(base64.b64decode(one["src"].removeprefix("data:video/mp4;base64,")))) as video:
            assert sum(1 for _ in video.decode(video=0)) == 16
    assert sum("Temporal-order" in one["aria-label"] for one in videos) == 1, "--max_cam_videos 1"


def test_prototypes_show_each_video_once_at_its_nearest(full_report):
    shown = [one["title"] for one in read_page(full_report).of("li") if "title" in one]
    assert sorted(re.search(r"v\d", title)[0] for title in shown) == ["v0", "v1", "v2", "v3"]


def test_a_run_alone_says_what_is_missing(tmp_path):
    page = report(write_run(tmp_path / "run", flags={"csv_file": str(tmp_path / "<i>gone.csv")}))
    assert "i" not in {tag for tag, _ in page.elements}, "names of files are text"
    for section in ("prototypes", "rank"):
        assert "<i>gone.csv: cannot read" in page.texts[section] and "--csv_file VIDEOS.csv" in page.texts[section]
    assert "No result.json" in page.texts["results"] and "eval.retrieval" in page.texts["results"]
    assert page.texts["order"].count("visualization.main_temporal") == 2
    assert "No unreadable video" in page.texts["events"] and "None" in page.texts["warnings"]
    assert "effective rank and spread of features: not computed" in page.texts["warnings"]
    assert "Only the log was judged" in page.texts["warnings"]


def test_a_run_moved_away_from_its_videos(full_run, full_report, tmp_path):
    run = tmp_path / "moved"
    shutil.copytree(full_run, run)
    (tmp_path / "videos.csv").write_text("v0,40\nv1,40\n")
    config = json.loads((run / "config.json").read_text())
    config["flags"]["csv_file"] = str(tmp_path / "videos.csv")
    (run / "config.json").write_text(json.dumps(config))
    assert "none of 2 video(s) can be read" in report(run).texts["prototypes"]
    shutil.rmtree(run / "checkpoints")
    page = report(run)
    assert "holds no checkpoint" in page.texts["rank"]
    assert "instance_high" in page.texts["curves"] and "R@1" in page.texts["results"]
    assert any("Temporal-order" in one["aria-label"] for one in page.of("video")), "maps need no videos"


def test_a_run_that_diverged_is_reported_at_the_top(full_run, videos_csv, tmp_path):
    run = write_run(tmp_path / "run", flags={"csv_file": str(videos_csv), "num_prototypes": 5})
    (run / "checkpoints").mkdir()
    checkpoint = torch.load(full_run / "checkpoints" / "epoch_0012.pt")
    checkpoint["model"]["backbone.stem.0.weight"].fill_(torch.nan)
    torch.save(checkpoint, run / "checkpoints" / "epoch_0001.pt")
    assert "features are not finite" in report(run).texts["warnings"]


def test_an_unreadable_video_is_reported_and_left_out(full_run, labelled_csv, videos_csv, tmp_path):
    csv = videos_csv.parent / "one_gone.csv"
    csv.write_text("gone,40\nv1,40\nv2,40\n")
    page = report(full_run, "--csv_file", str(csv), "--max_checkpoints", "1", out=tmp_path / "a.html")
    assert "1 of them cannot be read" in page.texts["prototypes"] and "gone" in page.texts["prototypes"]
    assert "epoch_0012" in page.texts["rank"] and "epoch_0004" not in page.texts["rank"]
    page = report(full_run, "--csv_file", str(csv), "--max_videos", "2", out=tmp_path / "b.html")
    assert "2 evenly spread ones of the 3 videos" in page.texts["prototypes"]


def test_a_run_at_its_beginning(tmp_path):
    run = write_run(tmp_path / "run", epochs=0)
    page = report(run, "--logs_only")
    assert "--logs_only" in page.texts["prototypes"] and "instance_high" in page.texts["curves"]
    (run / "log.jsonl").write_text('{"kind": "epoch", "epo')
    page = report(run, "--logs_only")
    assert "no values yet" in page.texts["curves"]


def test_a_resumed_run_shows_its_starts_and_events_are_limited(tmp_path):
    earlier = {"start_epoch": 0, "processes": 4, "device": "NVIDIA A100", "versions": {"torch": "2.6.0"},
               "git_commit": None, "flags": FLAGS}
    events = [{"kind": "bad_video", "path": f"v{number}", "reason": f"v{number}: gone"} for number in range(30)]
    page = report(write_run(tmp_path / "run", config={"earlier_starts": [earlier], "start_epoch": 5}, events=events),
                  "--logs_only")
    assert "Starts2" in page.texts["configuration"] and "NVIDIA A100" in page.texts["configuration"]
    assert "v19: gone" in page.texts["events"] and "v20: gone" not in page.texts["events"]
    assert "10 more in log.jsonl" in page.texts["events"]


def test_mistakes_are_one_line(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    classifier = write_run(tmp_path / "classifier")
    (classifier / "config.json").write_text('{"flags": {"net": "r3d18"}}')
    torn = write_run(tmp_path / "torn")
    (torn / "log.jsonl").write_text('{"kind": "epoch", "epoch": 0, "step": 1}\nnonsense\n')
    for wrong, named in (([tmp_path / "none"], "not a run directory"), ([classifier], "num_prototypes"),
                         ([torn], "log.jsonl:2"), ([run, "--csv_file", "gone.csv"], "gone.csv"),
                         ([run, "--max_videos", "1"], "--max_videos 1"), ([run, "--gpu", "x"], "--gpu x"),
                         ([run, "--logs_only", "--csv_file", "a"], "--logs_only: "),
                         ([run, "--logs_only", "--out", tmp_path / "none" / "a.html"], "a.html: No such")):
        assert main([*map(str, wrong), "--workers", "0"]) == 2, wrong
        error = capsys.readouterr().err
        assert named in error and error.count("\n") == 1, (wrong, error)


def test_the_terminal_names_file_and_size(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    assert main([str(run), "--logs_only", "--out", str(tmp_path / "page.html")]) == 0
    size = (tmp_path / "page.html").stat().st_size / 1e6
    assert f"{tmp_path}/page.html ({size:.1f} MB" in capsys.readouterr().out
    assert not (run / "report.html").exists()
