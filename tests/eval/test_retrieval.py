"""Retrieval: recall by an explicit oracle, features that encode the label or not, centering, command line."""
from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import eval.retrieval as retrieval
from dataset.records import VideoRecord
from eval.retrieval import KS, centering_means, level_vectors, nearest, recall_at
from models.levels import LEVELS, LevelFeatures

ROOT = Path(__file__).resolve().parents[2]
COLORS = [(230, 20, 20), (20, 230, 20), (20, 20, 230), (210, 210, 20), (20, 210, 210), (210, 20, 210)]


def loop_oracle(queries, gallery, query_labels, gallery_labels) -> dict[str, float]:
    """R@k by sorting, for each query, all gallery videos by (-cosine, index)."""
    hits = {k: 0 for k in KS if k <= len(gallery)}
    for query, label in zip(queries, query_labels):
        cosines = [float(np.dot(query, other) / np.linalg.norm(query) / np.linalg.norm(other))
                   for other in gallery]
        order = sorted(range(len(gallery)), key=lambda i: (-cosines[i], i))
        for k in hits:
            hits[k] += any(gallery_labels[i] == label for i in order[:k])
    return {f"R@{k}": count / len(queries) for k, count in hits.items()}


@pytest.mark.parametrize("num_gallery", [7, 60])
def test_recall_is_that_of_explicit_loops(num_gallery, monkeypatch):
    monkeypatch.setattr(retrieval, "CHUNK", 11)  # several chunks, the last one short
    rng = np.random.default_rng(num_gallery)
    queries, gallery = (rng.normal(size=(n, 5)).astype(np.float32) for n in (40, num_gallery))
    query_labels, gallery_labels = rng.integers(0, 9, 40), rng.integers(0, 9, num_gallery)
    neighbors = nearest(queries, gallery, min(50, num_gallery))
    recall = recall_at(neighbors, query_labels, gallery_labels)
    assert recall == loop_oracle(queries, gallery, query_labels, gallery_labels)
    assert list(recall) == [f"R@{k}" for k in KS if k <= num_gallery]
    assert list(recall.values()) == sorted(recall.values()) and 0 < recall["R@1"] < recall["R@5"]


def test_equal_similarities_are_taken_in_index_order(monkeypatch):
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(4, 300)).astype(np.float32)
    which = rng.integers(0, 4, 90)
    queries = np.concatenate([kinds, -kinds, np.zeros((1, 300), np.float32)])
    expected = None
    for chunk in (1, 4, 256):
        monkeypatch.setattr(retrieval, "CHUNK", chunk)
        neighbors = nearest(queries, kinds[which], 90)
        for row in neighbors:
            assert sorted(row) == list(range(90))
            for kind in range(4):
                found = [i for i in row if which[i] == kind]
                assert found == sorted(found)
        assert neighbors[-1].tolist() == list(range(90)), "a zero query is equally unlike all"
        assert np.array_equal(nearest(queries, kinds[which], 20), neighbors[:, :20])
        assert expected is None or np.array_equal(neighbors, expected)
        expected = neighbors


def test_memory_does_not_grow_with_queries_times_gallery():
    program = """
import resource, sys
import numpy as np
from eval.retrieval import nearest
rng = np.random.default_rng(0)
queries, gallery = (rng.normal(size=(n, 4)).astype(np.float32) for n in (6000, 10000))
nearest(queries[:600], gallery, 50)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nearest(queries, gallery, 50)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    # A fixed threshold gives large blocks back when freed, so that what is in use counts, not the heap's fragments.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, env=environment)
    grown_kib = int(result.stdout)
    assert grown_kib < 100_000, "all similarities at once would take 240 MB in float32 alone"


def test_features_that_encode_the_label_give_everything_and_labels_at_random_give_chance():
    rng = np.random.default_rng(1)
    num_classes, num = 10, 500
    query_labels, gallery_labels = rng.integers(0, num_classes, num), rng.permutation(num) % num_classes
    centers = np.eye(num_classes, 32)
    queries, gallery = ((centers[labels] + 0.05 * rng.normal(size=(num, 32))).astype(np.float32)
                        for labels in (query_labels, gallery_labels))
    neighbors = nearest(queries, gallery, 50)
    assert set(recall_at(neighbors, query_labels, gallery_labels).values()) == {1.0}

    # Query labels drawn anew: each query hits with probability (classes among its k neighbors) / (classes).
    neighbors = nearest(queries, rng.permutation(gallery), 50)
    blind = recall_at(neighbors, rng.integers(0, num_classes, num), gallery_labels)
    for k in (1, 5, 10):
        chance = np.mean([len(set(gallery_labels[row[:k]])) / num_classes for row in neighbors])
        assert abs(blind[f"R@{k}"] - chance) < 4.5 * np.sqrt(chance * (1 - chance) / num), k
    assert chance < 0.8


def random_sets(seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return tuple({level: (rng.normal(size=(n, c)) + offset).astype(np.float32)
                  for level, c in zip(LEVELS, (3, 4, 6))} for n, offset in ((30, 5), (20, -2)))


def test_centering_takes_off_the_mean_that_it_names():
    train, test = random_sets(0)
    cases = (("none", None, None), ("train", train, train), ("each", train, test))
    for centering, train_rows, test_rows in cases:
        means = centering_means(train, test, centering)
        for found, rows in zip(means, (train_rows, test_rows)):
            for level in LEVELS:
                expected = 0 if rows is None else rows[level].mean(axis=0)
                np.testing.assert_allclose(found[level] - expected, 0, atol=1e-6)


def test_centering_each_undoes_a_shift_of_one_set_and_train_a_shift_of_both():
    train, test = random_sets(1)
    shifted_train, shifted_test = (
        {level: rows + 3 for level, rows in part.items()} for part in (train, test))

    def neighbors(train_part, test_part, centering):
        train_means, test_means = centering_means(train_part, test_part, centering)
        queries = level_vectors(test_part, test_means, "concat")
        gallery = level_vectors(train_part, train_means, "concat")
        return nearest(queries, gallery, 10)

    assert np.array_equal(neighbors(train, test, "each"), neighbors(train, shifted_test, "each"))
    assert np.array_equal(neighbors(train, test, "train"), neighbors(shifted_train, shifted_test, "train"))
    assert not np.array_equal(neighbors(train, test, "train"), neighbors(train, shifted_test, "train"))
    assert not np.array_equal(neighbors(train, test, "none"), neighbors(shifted_train, shifted_test, "none"))


def test_concatenation_weighs_levels_alike_whatever_their_scale():
    train, test = random_sets(2)
    means, _ = centering_means(train, test, "none")
    scaled = {level: rows * factor for (level, rows), factor in zip(train.items(), (1, 100, 1e-3))}
    vectors = level_vectors(train, means, "concat")
    np.testing.assert_allclose(level_vectors(scaled, means, "concat"), vectors, atol=1e-6)
    expected = np.concatenate([train[level] / np.linalg.norm(train[level], axis=1, keepdims=True)
                               for level in LEVELS], axis=1)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


class MeanColor(nn.Module):
    """A backbone whose features are the clip itself: its mean colors after pooling."""

    channels = {"low": 3, "mid": 3, "high": 3}

    def forward(self, clips: torch.Tensor) -> LevelFeatures:
        return LevelFeatures(clips, clips, clips)


@pytest.fixture(scope="module")
def color_set(tmp_path_factory) -> Path:
    """Six classes told by color: train.csv has three videos of each, test.csv two, of 1 to 11 frames."""
    root = tmp_path_factory.mktemp("colors")
    rng = np.random.default_rng(0)
    for split, per_class in (("train", 3), ("test", 2)):
        rows = []
        for label, color in enumerate(COLORS):
            for number in range(per_class):
                folder, num_frames = root / f"{split}_{label}_{number}", 1 + 5 * number
                folder.mkdir()
                for index in range(1, num_frames + 1):
                    frame = (np.array(color) + rng.integers(-15, 16, (48, 64, 3))).astype(np.uint8)
                    assert cv2.imwrite(str(folder / f"image_{index:05d}.jpg"), frame[..., ::-1])
                rows.append((folder.name, num_frames, label))
        with open(root / f"{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)
    return root


def arguments(root: Path, out: Path, *more: str) -> list[str]:
    return ["--weights", "random", "--net", "r3d10", "--train_csv", str(root / "train.csv"), "--test_csv",
            str(root / "test.csv"), "--img_dim", "32", "--seq", "8", "--clips", "2", "--workers", "0",
            "--out", str(out), *more]


def test_a_backbone_that_sees_the_class_gives_100_per_cent(color_set, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(retrieval, "load_backbone", lambda weights, net, seed: (
        MeanColor(), {"weights": weights, "net": net, "checkpoint_sha256": None, "pretrained_epochs": None}))
    assert retrieval.main(arguments(color_set, tmp_path / "new" / "out", "--centering", "each")) == 0
    card = json.loads((tmp_path / "new" / "out" / "result.json").read_text())
    assert card["metrics"] == {level: {"R@1": 1, "R@5": 1, "R@10": 1} for level in (*LEVELS, "concat")}
    assert card["num_test_videos"] == 12 and card["num_test_videos_shorter_than_clip"] == 12
    assert card["settings"]["centering"] == "each" and card["settings"]["clips"] == 2
    for role in ("train", "test"):
        digest = hashlib.sha256((color_set / f"{role}.csv").read_bytes()).hexdigest()
        assert card["csv_files"][role]["sha256"] == digest
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 6 and len({line.count("|") for line in table}) == 1 and "100.0" in table[2]


def test_picture_frames_hits_green_and_misses_red(color_set, tmp_path):
    videos = [VideoRecord(str(color_set / f"train_{label}_0"), 1, label) for label in range(3)]
    retrieval.draw_picture(tmp_path / "p.png", videos[:2], [[videos[0], videos[2]], [videos[2], videos[1]]])
    picture = cv2.imread(str(tmp_path / "p.png"))[..., ::-1]
    height = retrieval.TILE_SIZE[1] + 2 * retrieval.FRAME_PX
    width = retrieval.TILE_SIZE[0] + 2 * retrieval.FRAME_PX
    gap = picture.shape[1] - 3 * width
    assert picture.shape[0] == 2 * height and gap > 0
    corners = [[tuple(picture[row * height, column].tolist()) for column in (0, width + gap, 2 * width + gap)]
               for row in range(2)]
    grey, green, red = retrieval.GREY, retrieval.GREEN, retrieval.RED
    assert corners == [[grey, green, red], [grey, red, green]]
    shown = picture[height + height // 2, width + gap + width // 2].astype(int)
    assert np.abs(shown - np.array(COLORS[2])).max() < 40, "the second query's first neighbor is of class 2"


@pytest.mark.parametrize("start", [["-m", "eval.retrieval"], [str(ROOT / "eval" / "retrieval.py")]])
def test_command_line(color_set, tmp_path, start):
    more = ["--feature_dir", str(tmp_path / "features"), "--levels", "high,concat", "--workers", "1"]
    command = [sys.executable, *start, *arguments(color_set, tmp_path / "out", *more)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    card = json.loads((tmp_path / "out" / "result.json").read_text())
    assert list(card["metrics"]) == ["high", "concat"] and card["net"] == "r3d10"
    assert cv2.imread(str(tmp_path / "out" / "retrieval.png")) is not None
    assert "| random | r3d10 | high | 2 | 1 | none | 0 | 12 |" in result.stdout
    assert len(list((tmp_path / "features").glob("*.npz"))) == 2


def test_stored_features_give_the_same_metrics(color_set, tmp_path, monkeypatch, capsys):
    flags = arguments(color_set, tmp_path / "out", "--feature_dir", str(tmp_path / "features"))
    assert retrieval.main(flags) == 0
    first = json.loads((tmp_path / "out" / "result.json").read_text())
    monkeypatch.setattr(retrieval, "extract_features", None)
    assert retrieval.main(flags) == 0
    second = json.loads((tmp_path / "out" / "result.json").read_text())
    assert second["metrics"] == first["metrics"]
    assert second["features_reused"] and not first["features_reused"]


def test_unreadable_videos_stop_or_are_counted(color_set, tmp_path, capsys):
    rows = (color_set / "test.csv").read_text()
    bad_csv = color_set / "with_absent.csv"
    bad_csv.write_text("absent,4,2\n" + rows)
    flags = arguments(color_set, tmp_path / "out", "--test_csv", str(bad_csv), "--levels", "low")
    assert retrieval.main(flags) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert str(color_set / "absent") in line and not (tmp_path / "out" / "result.json").exists()
    assert retrieval.main([*flags, "--skip_bad"]) == 0
    card = json.loads((tmp_path / "out" / "result.json").read_text())
    assert card["num_test_videos"] == 12 and len(card["skipped_test_videos"]) == 1
    assert str(color_set / "absent") in card["skipped_test_videos"][0]
    assert retrieval.main(arguments(color_set, tmp_path / "plain", "--levels", "low")) == 0
    assert json.loads((tmp_path / "plain" / "result.json").read_text())["metrics"] == card["metrics"]


def test_mistakes_are_one_line(color_set, tmp_path, capsys):
    def write(name: str, text: str) -> str:
        (color_set / name).write_text(text)
        return str(color_set / name)

    cases = [
        (["--test_csv", write("strange.csv", "test_0_0,1,0\ntest_1_0,1,77\n")], "label 77"),
        (["--test_csv", write("word.csv", "test_0_0,1,0\ntest_1_0,1,red\n")], "word.csv:2: label (third"),
        (["--test_csv", write("mixed.csv", "test_0_0,1,0\ntest_1_0,1\n")], "mixed.csv:2: 2 column(s)"),
        (["--test_csv", str(color_set / "train.csv")], "are in"),
        (["--test_csv", str(color_set / "none.csv")], "none.csv: cannot read"),
        (["--levels", "high,top"], "--levels high,top"),
        (["--levels", "high,high"], "--levels high,high"),
        (["--clips", "0"], "--clips 0"), (["--clips", "all"], "--clips all"), (["--seq", "4"], "--seq 4"),
        (["--ds", "0"], "--ds 0"), (["--device", "tpu9"], "--device tpu9"),
        (["--picture_queries", "0"], "--picture_queries"),
        (["--weights", str(color_set / "train.csv")], "train.csv"),
        (["--out", str(color_set / "train.csv")], "--out"),
    ]
    for more, message in cases:
        assert retrieval.main(arguments(color_set, tmp_path / "out", *more)) == 2, more
        [line] = capsys.readouterr().err.splitlines()
        assert message in line and line.startswith("python -m eval.retrieval: error: "), line
