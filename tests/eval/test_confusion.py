"""The confusion matrix, its picture, and the names of the classes."""
from __future__ import annotations

import cv2
import numpy as np
import pytest

from eval.metrics import class_names, confusion_matrix, draw_confusion
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
def test_the_picture_shows_rows_in_per_cent_from_white_to_blue(tmp_path, num_classes):
    matrix = np.diag(np.arange(num_classes) * 2)  # class 0 has no videos
    draw_confusion(tmp_path / "c.png", matrix, {i: f"class {i}" for i in range(num_classes)}, "high")
    picture = cv2.imread(str(tmp_path / "c.png"))
    assert picture.shape[0] == picture.shape[1] > 9 * num_classes
    colors, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    share = {tuple(color): count / counts.sum() for color, count in zip(colors.tolist(), counts)}
    blue, grey = (107, 48, 8), (216, 216, 216)
    assert share[blue] > 0.1 / num_classes, "every class with videos is right in all of them"
    assert share[grey] > 0.1 / num_classes, "a class without videos is grey"


def test_names_are_those_of_the_file_or_beside_the_csv_or_the_labels(tmp_path):
    csv = str(tmp_path / "train.csv")
    assert class_names(None, csv, np.array([0, 2, 10 ** 12])) == {0: "0", 2: "2", 10 ** 12: str(10 ** 12)}
    (tmp_path / "classes.txt").write_text("walk\nrun\n")
    assert class_names(None, csv, [1, 0]) == {0: "walk", 1: "run"}
    (tmp_path / "other.txt").write_text("a\nb\nc\n")
    assert class_names(str(tmp_path / "other.txt"), csv, [1]) == {1: "b"}
    for file, message in ((None, "classes.txt: names 2 class"), (str(tmp_path / "none.txt"), "none.txt: cannot read")):
        with pytest.raises(InputError, match=message):
            class_names(file, csv, [2])
