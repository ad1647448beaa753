"""The linear probe from features: what it finds, what the test videos cannot do, the command line."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import eval.linear_probe as linear_probe
from models.levels import LEVELS

ROOT = Path(__file__).resolve().parents[2]
EVERY_LEVEL = [*LEVELS, "concat"]


def arguments(root: Path, out: Path, *more: str) -> list[str]:
    return ["--weights", "random", "--net", "r3d10", "--train_csv", str(root / "train.csv"), "--test_csv",
            str(root / "test.csv"), "--img_dim", "32", "--seq", "8", "--clips", "2", "--workers", "0",
            "--holdout", "0.3", "--epochs", "30", "--batch_size", "8", "--lr", "0.1,1", "--wd", "1e-3,1e-2",
            "--gpu", "none", "--out", str(out), *more]


def read(out: Path) -> dict:
    return json.loads((out / "result.json").read_text())


@pytest.mark.usefixtures("backbone_that_sees_the_class")
def test_a_backbone_that_sees_the_class_gives_100_per_cent(color_set, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("\n".join("abcdef"))
    assert linear_probe.main(arguments(color_set, tmp_path / "out", "--levels", ",".join(EVERY_LEVEL),
                                       "--classes", str(tmp_path / "names.txt"))) == 0
    card = read(tmp_path / "out")
    assert card["metrics"] == {level: {"top1": 1, "top5": 1, "mean_class": 1} for level in EVERY_LEVEL}
    assert card["num_test_videos"] == 12 and card["num_train_videos"] == 18 and card["num_classes"] == 6
    for level in EVERY_LEVEL:
        rows = card["holdout_top1"][level]
        assert [(row["lr"], row["weight_decay"]) for row in rows] == [(0.1, 1e-3), (0.1, 1e-2), (1, 1e-3), (1, 1e-2)]
        best = max(row["top1"] for row in rows)
        assert card["chosen"][level]["holdout_top1"] == best
        assert {key: card["chosen"][level][key] for key in ("lr", "weight_decay")} in [
            {"lr": row["lr"], "weight_decay": row["weight_decay"]} for row in rows if row["top1"] == best]
        assert [(row["class"], row["name"], row["videos"], row["top1"]) for row in card["per_class"][level]] == [
            (label, "abcdef"[label], 2, 1) for label in range(6)]
        assert cv2.imread(str(tmp_path / "out" / f"confusion_{level}.png")) is not None
    assert card["holdout"]["num_videos_held_out"] == 6 and card["holdout"]["groups"].startswith("auto: no _gNN_")
    assert card["layers"] == {"low": "layer2", "mid": "layer3", "high": "layer4"} and card["versions"]["av"]
    assert card["settings"]["dropout"] is None and card["settings"]["lr_grid"] == [0.1, 1]
    printed = capsys.readouterr().out
    assert "6 of 18 training videos, 6 of 18 groups" in printed and "| 100.0 |" in printed


@pytest.mark.usefixtures("backbone_that_sees_the_class")
def test_test_videos_take_part_in_no_choice(color_set, tmp_path, monkeypatch, capsys):
    (color_set / "wrong.csv").write_text("".join(f"test_{label}_{n},{1 + 5 * n},{(label + n) % 3}\n"
                                                 for label in range(4) for n in range(2)))
    probes, fit = [], linear_probe.fit_probe
    monkeypatch.setattr(linear_probe, "fit_probe", lambda *given: probes.append(fit(*given)) or probes[-1])
    for name in ("test", "wrong"):
        test_csv = str(color_set / f"{name}.csv")
        assert linear_probe.main(arguments(color_set, tmp_path / name, "--test_csv", test_csv)) == 0
    one, two = read(tmp_path / "test"), read(tmp_path / "wrong")
    assert one["metrics"] != two["metrics"]
    for key in ("chosen", "holdout_top1", "holdout"):
        assert one[key] == two[key]
    assert probes[0][:2] == probes[1][:2]
    heads = [probe[2] for probe in probes]
    assert torch.equal(heads[0].weights, heads[1].weights)
    assert np.array_equal(*(head.standardize(np.eye(3, dtype=np.float32)) for head in heads)), "the same mean and scale"


@pytest.mark.usefixtures("backbone_that_sees_the_class")
def test_labels_may_have_gaps_and_classes_may_be_few(color_set, tmp_path, capsys):
    for role in ("train", "test"):
        lines = (color_set / f"{role}.csv").read_text().splitlines()
        rows = [line.split(",") for line in lines if line.split(",")[2] in "135"]
        (color_set / f"{role}_gaps.csv").write_text("".join(f"{a},{b},{7 * int(c)}\n" for a, b, c in rows))
    assert linear_probe.main(arguments(color_set, tmp_path, "--train_csv", str(color_set / "train_gaps.csv"),
                                       "--test_csv", str(color_set / "test_gaps.csv"))) == 0
    card = read(tmp_path)
    assert card["metrics"] == {"high": {"top1": 1, "mean_class": 1}}, "five best of three classes say nothing"
    assert [(row["class"], row["name"]) for row in card["per_class"]["high"]] == [(7, "7"), (21, "21"), (35, "35")]


@pytest.mark.usefixtures("backbone_that_sees_the_class")
def test_several_splits(color_set, tmp_path, capsys):
    pattern = ["--train_csv", str(color_set / "train_{split}.csv"), "--test_csv", str(color_set / "test_{split}.csv")]
    assert linear_probe.main(arguments(color_set, tmp_path, *pattern, "--splits", "1,2")) == 0
    card = read(tmp_path)
    tops = [card["per_split"][name]["metrics"]["high"]["top1"] for name in "12"]
    assert tops[0] == 1 > tops[1], "two classes of split 2 have each other's labels in training"
    assert card["metrics"]["high"]["top1"] == pytest.approx(sum(tops) / 2)
    assert card["metrics_std"]["high"]["top1"] == pytest.approx((tops[0] - tops[1]) / 2 ** 0.5)
    assert {"chosen", "holdout", "per_class"} <= card["per_split"]["2"].keys()
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "confusion_high_split_1.png", "confusion_high_split_2.png"]


@pytest.mark.usefixtures("backbone_that_sees_the_class")
def test_shots_of_several_seeds_share_one_extraction(color_set, tmp_path, monkeypatch, capsys):
    import eval.features.csv_features as csv_features
    shown, extract = [], csv_features.extract_features
    monkeypatch.setattr(csv_features, "extract_features", lambda backbone, records, *more, **named: (
        shown.extend(record.path for record in records) or extract(backbone, records, *more, **named)))
    store = ["--shots", "2", "--feature_dir", str(tmp_path / "store")]
    assert linear_probe.main(arguments(color_set, tmp_path, *store, "--shots_seeds", "0,1,2")) == 0
    assert len(shown) == len(set(shown)) > 24 and "| 2 |" in capsys.readouterr().out
    card = read(tmp_path)
    assert card["settings"]["shots"] == 2 and card["settings"]["shots_seeds"] == [0, 1, 2] and "metrics_std" in card
    assert {name: of_seed["num_train_videos"] for name, of_seed in card["per_split"].items()} == {
        f"seed_{seed}": 12 for seed in range(3)}
    assert all(of_seed["holdout"]["num_videos_held_out"] == 6 for of_seed in card["per_split"].values())
    assert linear_probe.main(arguments(color_set, tmp_path / "one", *store, "--seed", "2")) == 0
    assert read(tmp_path / "one")["settings"]["shots_seeds"] == [2]
    assert linear_probe.main(arguments(color_set, tmp_path, *store, "--shots", "4")) == 2
    assert "--shots 4: " in capsys.readouterr().err


def test_two_processes_give_the_card_of_one_and_agree_on_what_is_stored(color_set, tmp_path, dist_url, capsys):
    """The training features are stored already, the test features are not: one is read, the other extracted."""
    stores = {name: tmp_path / name / "features" for name in ("one", "two")}
    assert linear_probe.main(arguments(color_set, tmp_path / "one", "--feature_dir", str(stores["one"]))) == 0
    stores["two"].mkdir(parents=True)
    [train_file] = stores["one"].glob("train_*.npz")
    (stores["two"] / train_file.name).write_bytes(train_file.read_bytes())
    command = [sys.executable, "-m", "eval.linear_probe", *arguments(
        color_set, tmp_path / "two", "--feature_dir", str(stores["two"]),
        "--multiprocessing-distributed", "--nproc", "2", "--dist-url", dist_url)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("wrote ") == 1
    assert f"features read from {stores['two']}" in result.stdout and "features extracted" in result.stdout
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    for key in ("metrics", "chosen", "holdout", "holdout_top1", "per_class"):
        assert one[key] == two[key], key
    [test_file] = stores["one"].glob("test_*.npz")
    with np.load(test_file) as expected, np.load(stores["two"] / test_file.name) as found:
        assert all(np.array_equal(expected[level], found[level]) for level in LEVELS)


def test_a_video_that_one_process_cannot_read_ends_all_with_its_line(color_set, tmp_path, dist_url):
    rows = (color_set / "train.csv").read_text().splitlines()
    rows[1:1] = ["absent,9,0", "gone,9,0"]  # the second video, read by the second process, and one of the first's
    (color_set / "absent.csv").write_text("\n".join(rows) + "\n")
    command = [sys.executable, str(ROOT / "eval" / "linear_probe.py"), *arguments(
        color_set, tmp_path, "--train_csv", str(color_set / "absent.csv"),
        "--multiprocessing-distributed", "--nproc", "2", "--dist-url", dist_url)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert result.returncode == 2
    [line] = [line for line in result.stderr.splitlines() if "error" in line]
    assert line.startswith("python -m eval.linear_probe: error: ") and str(color_set / "gone") in line
    assert "Traceback" not in result.stderr and not (tmp_path / "result.json").exists()


def test_mistakes_are_one_line(color_set, tmp_path, capsys):
    cases = [
        (["--lr", "0.1,x"], "--lr 0.1,x: must be numbers"), (["--lr", "0.1,0"], "--lr 0.0: must be positive"),
        (["--wd", "1e-3,-1"], "--wd -1.0"), (["--wd", "0.01,1e-2"], "names a number twice"),
        (["--holdout", "1"], "--holdout 1.0: must be between"), (["--group", "g(\\d+"], "--group g(\\d+: not a regular"),
        (["--group", "g(\\d+)"], "does not match 18 of 18"), (["--epochs", "0"], "--epochs 0"),
        (["--batch_size", "0"], "--batch_size 0"), (["--levels", "top"], "--levels top"),
        (["--classes", str(color_set / "train_{split}.csv")], "cannot read the list"),
        (["--feature_dir", str(color_set / "train.csv")], "--feature_dir"), (["--splits", "1"], "lacks {split}"),
    ]
    features = ["--feature_dir", str(tmp_path / "features")]
    for more, message in cases:
        assert linear_probe.main(arguments(color_set, tmp_path / "out", *features, *more)) == 2, more
        [line] = capsys.readouterr().err.splitlines()
        assert message in line and line.startswith("python -m eval.linear_probe: error: "), line
    assert not (tmp_path / "features").exists(), "reported before anything is extracted"


def test_the_probe_on_features_loads_few_files_and_none_of_the_classifier():
    program = f"""
import os, sys, eval.linear_probe
files = [m.__file__ for m in sys.modules.values() if (getattr(m, "__file__", None) or "").startswith({str(ROOT)!r} + os.sep)]
ours = [file for file in files if ".venv" not in file and os.path.getsize(file)]
assert len(ours) <= 30 and not any("classifier" in file for file in ours), sorted(ours)
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
