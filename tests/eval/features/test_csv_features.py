"""Features of several csv files: unreadable videos, and errors that all processes share."""
from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

import eval.features.csv_features
from eval.retrieval import retrieval_parser
from eval.features.csv_features import read_split_features
from utils.distributed import DistContext, run_on_all_ranks, run_on_main
from utils.errors import AgreedError, InputError

HERE = DistContext(0, 1, torch.device("cpu"))


def flags(root, out, *more: str):
    return retrieval_parser().parse_args([
        "--weights", "random", "--net", "r3d10", "--train_csv", str(root / "train_{split}.csv"), "--test_csv",
        str(root / "test_{split}.csv"), "--splits", "1,2", "--img_dim", "32", "--seq", "8", "--clips", "1",
        "--workers", "0", "--out", str(out), *more])


def test_an_unreadable_video_is_met_once_and_left_out_of_every_split(tmp_path, color_set, monkeypatch, capsys,
                                                                      backbone_that_sees_the_class):
    for name in ("train_1", "test_1", "train_2", "test_2"):
        lines = [f"{color_set}/{line}" for line in (color_set / f"{name}.csv").read_text().splitlines()]
        if name in ("train_1", "test_2"):
            lines.insert(4, "absent,9,3")
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    calls, extract = [], eval.features.csv_features.extract_features
    monkeypatch.setattr(eval.features.csv_features, "extract_features", lambda backbone, records, *more, **named: (
        calls.append(len(records)) or extract(backbone, records, *more, **named)))
    with pytest.raises(InputError, match="absent"):
        read_split_features(flags(tmp_path, tmp_path / "out"), HERE)
    store = ["--skip_bad", "--feature_dir", str(tmp_path / "store")]
    sets, weights = read_split_features(flags(tmp_path, tmp_path / "out", *store), HERE)
    assert calls[1:] == [19, 12] and weights["net"] == "r3d10"
    for of_split, num_train, num_test in zip(sets, (18, 12), (12, 18)):
        counts = of_split.counts
        assert (counts["num_train_videos"], counts["num_test_videos"]) == (num_train, num_test)
        for videos in (of_split.train, of_split.test):
            assert len(videos.labels) == len(videos.features["low"]) and np.isfinite(videos.features["low"]).all()
            assert [record.label for record in videos.records] == videos.labels.tolist()
    assert [len(of_split.train.skipped) for of_split in sets] == [1, 0]
    assert [len(of_split.test.skipped) for of_split in sets] == [0, 1]
    rows = {record.path: row for record, row in zip(sets[0].train.records, sets[0].train.features["high"])}
    for record, row in zip(sets[1].train.records, sets[1].train.features["high"]):
        assert np.array_equal(row, rows[record.path])
    assert {path.name.split("_")[0] for path in (tmp_path / "store").iterdir()} == {"train", "test"}
    assert len(list((tmp_path / "store").iterdir())) == 4

    # What is stored as unreadable is tried again, once, and left out again or, without --skip_bad, reported.
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()}
    sets, _ = read_split_features(flags(tmp_path, tmp_path / "out", *store), HERE)
    assert calls[3:] == [1] and all(of_split.counts["features_reused"] for of_split in sets)
    assert [len(of_split.train.skipped) for of_split in sets] == [1, 0] and "absent" in sets[0].train.skipped[0]
    assert len(sets[0].train.records) == len(sets[0].train.features["low"]) == 18
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()}
    with pytest.raises(InputError, match="absent"):
        read_split_features(flags(tmp_path, tmp_path / "out", *store[1:]), HERE)
    assert calls[4:] == [1], "the others are known"
    shutil.copytree(color_set / "train_3_2", tmp_path / "absent")
    for number_extracted, more in (([1], store), ([], store), ([], store[1:])):
        del calls[:]
        sets, _ = read_split_features(flags(tmp_path, tmp_path / "out", *more), HERE)
        assert calls == number_extracted and not sets[0].train.skipped and len(sets[0].train.records) == 19


def test_a_class_that_cannot_be_read_is_reported(tmp_path, color_set, backbone_that_sees_the_class):
    for role in ("train", "test"):
        lines = [f"{color_set}/{line}" for line in (color_set / f"{role}.csv").read_text().splitlines()]
        for split in "12":
            (tmp_path / f"{role}_{split}.csv").write_text("\n".join(lines) + "\n")
    for label in (2, 5):
        lines = (tmp_path / "train_1.csv").read_text().splitlines()
        gone = [f"{tmp_path}/gone{i},9,{label}" if line.endswith(f",{label}") else line for i, line in enumerate(lines)]
        (tmp_path / "train_2.csv").write_text("\n".join(gone) + "\n")
        with pytest.raises(InputError, match=f"train_2.csv: none of its videos of label {label} can be read"):
            read_split_features(flags(tmp_path, tmp_path / "out", "--skip_bad"), HERE)


def test_what_does_not_fit_the_training_videos_is_reported_before_anything_is_read(tmp_path, color_set, monkeypatch):
    def refuse(split, videos):
        assert [split.name, len(videos)] == ["1", 18]
        raise InputError("--group: no")

    monkeypatch.setattr(eval.features.csv_features, "load_backbone", None)
    with pytest.raises(InputError, match="--group: no"):
        read_split_features(flags(color_set, tmp_path / "out"), HERE, refuse)


def test_a_mistake_in_any_process_is_raised_alike_in_all():
    def fail() -> None:
        raise InputError("a.csv: wrong")

    assert run_on_all_ranks(lambda: 3) == run_on_main(HERE, lambda: 3) == 3
    for together in (run_on_all_ranks, lambda work: run_on_main(HERE, work)):
        with pytest.raises(AgreedError, match="^a.csv: wrong$"):
            together(fail)
