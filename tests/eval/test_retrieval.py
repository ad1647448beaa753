"""Retrieval: recall by an explicit oracle, features that encode the label or not, centering, command line."""
from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import eval.retrieval as retrieval
import eval.features.csv_features
from eval.retrieval import KS, centering_means, nearest, recall_at
from eval.features.extract import level_vectors
from models.levels import LEVELS

ROOT = Path(__file__).resolve().parents[2]


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

    # Other query labels: each query hits with probability (classes among its k neighbors) / (classes).
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
        queries = level_vectors(test_part, "concat", test_means)
        gallery = level_vectors(train_part, "concat", train_means)
        return nearest(queries, gallery, 10)

    assert np.array_equal(neighbors(train, test, "each"), neighbors(train, shifted_test, "each"))
    assert np.array_equal(neighbors(train, test, "train"), neighbors(shifted_train, shifted_test, "train"))
    assert not np.array_equal(neighbors(train, test, "train"), neighbors(train, shifted_test, "train"))
    assert not np.array_equal(neighbors(train, test, "none"), neighbors(shifted_train, shifted_test, "none"))


def test_concatenation_weighs_levels_alike_whatever_their_scale():
    train, _ = random_sets(2)
    scaled = {level: rows * factor for (level, rows), factor in zip(train.items(), (1, 100, 1e-3))}
    vectors = level_vectors(train, "concat")
    np.testing.assert_allclose(level_vectors(scaled, "concat"), vectors, atol=1e-6)
    expected = np.concatenate([train[level] / np.linalg.norm(train[level], axis=1, keepdims=True)
                               for level in LEVELS], axis=1)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def arguments(root: Path, out: Path, *more: str) -> list[str]:
    return ["--weights", "random", "--net", "r3d10", "--train_csv", str(root / "train.csv"), "--test_csv",
            str(root / "test.csv"), "--img_dim", "32", "--seq", "8", "--clips", "2", "--workers", "0",
            "--out", str(out), *more]


@pytest.mark.usefixtures("backbone_that_sees_the_class")
def test_a_backbone_that_sees_the_class_gives_100_per_cent(color_set, tmp_path, capsys):
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


def test_several_splits_give_mean_and_deviation_and_read_each_video_once(color_set, tmp_path, monkeypatch, capsys):
    extracted = []
    extract = eval.features.csv_features.extract_features
    monkeypatch.setattr(eval.features.csv_features, "extract_features", lambda backbone, records, *more, **named: (
        extracted.extend(records) or extract(backbone, records, *more, **named)))
    single, both = {}, tmp_path / "both"
    for split in "12":
        files = [part for role in ("train", "test")
                 for part in (f"--{role}_csv", str(color_set / f"{role}_{split}.csv"))]
        assert retrieval.main(arguments(color_set, tmp_path / split, *files)) == 0
        single[split] = json.loads((tmp_path / split / "result.json").read_text())
        assert "per_split" not in single[split] and "metrics_std" not in single[split]
    assert len(extracted) == 2 * 30
    extracted.clear()
    pattern = ["--train_csv", str(color_set / "train_{split}.csv"), "--test_csv", str(color_set / "test_{split}.csv")]
    assert retrieval.main(arguments(color_set, both, *pattern, "--splits", "1,2")) == 0
    card = json.loads((both / "result.json").read_text())
    assert len(extracted) == len({record.path for record in extracted}) == 30
    for split in "12":
        assert card["per_split"][split]["metrics"] == single[split]["metrics"]
        for role in ("train", "test"):
            digest = hashlib.sha256((color_set / f"{role}_{split}.csv").read_bytes()).hexdigest()
            assert card["csv_files"][f"{role} {split}"]["sha256"] == digest
    assert card["num_test_videos"] == 12 + 18 and card["settings"]["splits"] == ["1", "2"]
    one, two = (single[split]["metrics"]["high"]["R@1"] for split in "12")
    assert card["metrics"]["high"]["R@1"] == pytest.approx((one + two) / 2)
    assert card["metrics_std"]["high"]["R@1"] == pytest.approx(abs(one - two) / 2 ** 0.5) and one != two
    assert f"| {50 * (one + two):.1f} ± {100 * abs(one - two) / 2 ** 0.5:.1f} |" in capsys.readouterr().out


def test_script_start_and_torchrun_with_two_processes_give_the_same(color_set, tmp_path):
    starts = {"script": [str(ROOT / "eval" / "retrieval.py"), "--gpu", "none", "--workers", "1"],
              "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m",
                           "eval.retrieval", "--gpu", "none"]}
    cards, features = {}, {}
    for name, start in starts.items():
        out, feature_dir = tmp_path / name, tmp_path / f"features_{name}"
        command = [sys.executable, *start, *arguments(color_set, out, "--levels", "high,concat", "--feature_dir",
                                                      str(feature_dir))]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("| random | r3d10 | high | 2 | 1 | none | 0 | 12 |") == 1, "one process writes"
        cards[name] = json.loads((out / "result.json").read_text())
        features[name] = {path.name: dict(np.load(path)) for path in feature_dir.glob("*.npz")}
        assert cv2.imread(str(out / "retrieval.png")) is not None
    one, two = cards.values()
    assert list(one["metrics"]) == ["high", "concat"] and one["net"] == "r3d10"
    assert one["metrics"] == two["metrics"]
    assert features["script"].keys() == features["torchrun"].keys() and len(features["script"]) == 2
    for name, arrays in features["script"].items():
        for level in LEVELS:
            assert np.array_equal(arrays[level], features["torchrun"][name][level]), (name, level)


def test_stored_features_give_the_same_metrics(color_set, tmp_path, monkeypatch, capsys):
    flags = arguments(color_set, tmp_path / "out", "--feature_dir", str(tmp_path / "features"))
    assert retrieval.main(flags) == 0
    first = json.loads((tmp_path / "out" / "result.json").read_text())
    assert retrieval.main([*flags, "--amp", "bf16", "--out", str(tmp_path / "bf16")]) == 0
    half = json.loads((tmp_path / "bf16" / "result.json").read_text())
    assert (first["settings"]["amp"], half["settings"]["amp"]) == ("off", "bf16") and not half["features_reused"]
    monkeypatch.setattr(eval.features.csv_features, "extract_features", None)
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
        (["--test_csv", write("unknown.csv", "test_0_0,1,0\ntest_1_0,1,77\n")], "label 77"),
        (["--test_csv", write("word.csv", "test_0_0,1,0\ntest_1_0,1,red\n")], "word.csv:2: label (third"),
        (["--test_csv", write("mixed.csv", "test_0_0,1,0\ntest_1_0,1\n")], "mixed.csv:2: 2 column(s)"),
        (["--test_csv", str(color_set / "train.csv")], "are in"),
        (["--test_csv", str(color_set / "none.csv")], "none.csv: cannot read"),
        (["--levels", "high,top"], "--levels high,top"),
        (["--levels", "high,high"], "--levels high,high"),
        (["--clips", "0"], "--clips 0"), (["--clips", "all"], "--clips all"), (["--seq", "4"], "--seq 4"),
        (["--ds", "0"], "--ds 0"), (["--gpu", "tpu9"], "--gpu tpu9"),
        (["--picture_queries", "0"], "--picture_queries"),
        (["--weights", str(color_set / "train.csv")], "train.csv"),
        (["--out", str(color_set / "train.csv")], "--out"), (["--nproc", "0"], "--nproc 0"),
        (["--feature_dir", str(color_set / "train.csv")], "--feature_dir"),
        (["--splits", "1,2"], "lacks {split}"), (["--test_csv", "test_{split}.csv"], "name the splits"),
    ]
    for more, message in cases:
        assert retrieval.main(arguments(color_set, tmp_path / "out", *more)) == 2, more
        [line] = capsys.readouterr().err.splitlines()
        assert message in line and line.startswith("python -m eval.retrieval: error: "), line
