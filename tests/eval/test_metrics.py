"""Accuracies, the confusion matrix with its figure, and the names of the classes."""
from __future__ import annotations

import cv2
import numpy as np
import pytest

from dataset.prepare.checks import count_classes
from eval.metrics import accuracies, class_names, confusion_matrix, draw_confusion, per_class, ranks_of_truth
from utils.errors import InputError


def test_cells_count_videos_of_the_row_taken_for_the_column():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, 60), rng.integers(0, 5, 60)
    matrix = confusion_matrix(labels, predicted, 5)
    assert matrix.shape == (5, 5) and matrix.sum() == 60
    for row in range(5):
        for column in range(5):
            assert matrix[row, column] == sum(a == row and b == column for a, b in zip(labels, predicted))


@pytest.mark.parametrize("num_classes", [3, 25])
def test_the_figure_shows_rows_in_per_cent_from_white_to_blue(tmp_path, num_classes):
    matrix = np.diag(np.arange(num_classes) * 2)  # class 0 has no videos
    draw_confusion(tmp_path / "c.png", matrix, {i: f"class {i}" for i in range(num_classes)}, "high")
    figure = cv2.imread(str(tmp_path / "c.png"))
    assert figure.shape[0] == figure.shape[1] > 9 * num_classes
    colors, counts = np.unique(figure.reshape(-1, 3), axis=0, return_counts=True)
    share = {tuple(color): count / counts.sum() for color, count in zip(colors.tolist(), counts)}
    blue, grey = (107, 48, 8), (216, 216, 216)
    assert share[blue] > 0.1 / num_classes, "every class with videos is right in all of them"
    assert share[grey] > 0.1 / num_classes, "a class without videos is grey"


def test_names_are_those_of_the_file_or_beside_the_csv_or_the_labels(tmp_path):
    csv = str(tmp_path / "train.csv")
    assert class_names(None, csv, np.array([0, 2, 10 ** 12])) == {0: "0", 2: "2", 10 ** 12: str(10 ** 12)}
    (tmp_path / "classes.txt").write_text("walk\nrun\n")
    assert class_names(None, csv, [1, 0]) == {0: "walk", 1: "run"}
    (tmp_path / "classes.txt").write_text("\ufeff\nwalk\r\n \n\nrun\n", encoding="utf-8")
    assert class_names(None, csv, [1, 0]) == {0: "walk", 1: "run"}, "blank lines shift no name"
    assert count_classes(None, csv) == 2
    (tmp_path / "other.txt").write_text("a\nb\nc\n")
    assert class_names(str(tmp_path / "other.txt"), csv, [1]) == {1: "b"}
    for file, message in ((None, "classes.txt: names 2 class"), (str(tmp_path / "none.txt"), "none.txt: cannot read")):
        with pytest.raises(InputError, match=message):
            class_names(file, csv, [2])
    (tmp_path / "classes.txt").write_text("walk\nru\u2028n\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"classes.txt:2: 'ru.*n', expected one line of text"):
        class_names(None, csv, [1, 0])


def test_ranks_and_accuracies_by_sorting():
    rng = np.random.default_rng(0)
    probabilities = rng.integers(0, 4, (60, 7)) / 4  # many ties
    labels = rng.integers(0, 7, 60)
    ranks = [sorted(range(7), key=lambda c: (-row[c], c)).index(label) for row, label in zip(probabilities, labels)]
    assert ranks_of_truth(probabilities, labels).tolist() == ranks
    found = accuracies(probabilities, labels)
    assert found["top1"] == sum(rank < 1 for rank in ranks) / 60
    assert found["top5"] == sum(rank < 5 for rank in ranks) / 60
    by_class = [np.mean([rank == 0 for rank, label in zip(ranks, labels) if label == c]) for c in range(7)]
    assert found["mean_class"] == pytest.approx(np.mean(by_class)) and 0 < found["top1"] < found["top5"] < 1
    assert "top5" not in accuracies(probabilities[:, :5], labels % 5), "it could not miss"


def test_per_class_table():
    matrix = confusion_matrix(np.array([0, 0, 0, 1, 1, 2, 2]), np.array([0, 0, 2, 1, 1, 0, 0]), 4)
    rows = per_class(matrix, {7: "run", 8: "walk", 21: "jump", 35: "never tested"})
    assert [(row["class"], row["name"], row["videos"], row["taken_for"], row["taken_for_videos"]) for row in rows] == [
        (7, "run", 3, 21, 1), (8, "walk", 2, None, 0), (21, "jump", 2, 7, 2)]
    assert [row["top1"] for row in rows] == pytest.approx([2 / 3, 1, 0])
