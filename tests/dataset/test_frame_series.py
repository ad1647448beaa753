"""The series that names make is the one that reading finds, with its gaps."""
from __future__ import annotations

from pathlib import Path

import pytest

from dataset.frame_folder import find_naming
from dataset.frame_series import find_series, list_series
from utils.errors import InputError

USUAL = "image_{:05d}.jpg"


def write_empty(folder: Path, names: list[str]) -> str:
    for name in names:
        (folder / name).write_bytes(b"")
    return str(folder)


@pytest.mark.parametrize(("pattern", "numbers"), [
    (USUAL, range(1, 13)), (USUAL, range(0, 12)), ("image_{:06d}.jpg", range(1, 4)), ("{:04d}.jpeg", range(0, 9)),
    ("img{:d}.png", range(1, 12)), ("frame-2-{:d}.jpg", range(0, 5)), (USUAL, [1, 2, 4, 5, 9]), (USUAL, [0, 2]),
    (USUAL, range(1, 2)), ("{:03d}.JPG", [1, 2, 3, 7]), (USUAL, [*range(1, 9), 99999, 100000]),
])
def test_series(tmp_path, pattern, numbers):
    folder = write_empty(tmp_path, [pattern.format(number) for number in numbers])
    write_empty(tmp_path, [".frames.json", "notes.txt"])
    series = list_series(folder)
    assert series.naming == find_naming(folder)
    assert series.count == len(numbers)
    assert series.missing == sum(number not in numbers for number in range(min(numbers), max(numbers)))
    usable = 0
    while (tmp_path / series.naming.file_name(usable)).exists():
        usable += 1
    assert series.usable == usable


def test_the_usual_series_hides_others_as_in_reading(tmp_path):
    folder = write_empty(tmp_path, [USUAL.format(number) for number in (1, 2, 3)] + ["flow_x_00001.jpg", "image_7.jpg"])
    assert list_series(folder).naming == find_naming(folder)
    assert (list_series(folder).count, list_series(folder).usable) == (3, 3)


@pytest.mark.parametrize("names", [
    [], ["readme.txt", "image.jpg"], ["img_1.jpg", "flow_1.jpg"], ["img_1.jpg", "img_2.png"],
    ["image_00003.jpg", "image_00004.jpg"], ["img_01.jpg", "img_002.jpg"], ["._img_1.jpg", "img_1.jpg"],
])
def test_folders_that_reading_refuses_are_refused_alike(tmp_path, names):
    folder = write_empty(tmp_path, names)
    with pytest.raises(InputError) as ours:
        list_series(folder)
    with pytest.raises(InputError) as theirs:
        find_naming(folder)
    assert str(ours.value) == str(theirs.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="absent: cannot read the frame folder: No such file"):
        list_series(str(tmp_path / "absent"))


def test_names_alone_decide(tmp_path):
    assert find_series("nowhere", {USUAL.format(number) for number in range(1, 301)}).usable == 300
