from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dataset import frames
from dataset.frames import FrameNaming, find_naming, find_series, read_frames
from utils.errors import InputError

USUAL = "image_{:05d}.jpg"


@pytest.mark.parametrize(
    ("pattern", "first"),
    [
        ("image_{:05d}.jpg", 1),
        ("image_{:05d}.jpg", 0),
        ("image_{:06d}.jpg", 1),
        ("image_{:03d}.JPG", 0),
        ("{:04d}.jpeg", 1),
        ("img{:d}.png", 1),
        ("frame-2-{:d}.jpg", 0),
    ],
)
def test_naming_is_found_in_the_folder(
    tmp_path: Path, write_coded_video: Callable, read_codes: Callable, pattern: str, first: int
) -> None:
    folder = write_coded_video(tmp_path / "v", 12, pattern, first)
    (tmp_path / "v" / "notes.txt").write_text("no frame")
    indices = np.array([0, 3, 11])
    assert read_codes(read_frames(folder, indices, 12)).tolist() == [0, 3, 11]


def test_the_usual_naming_needs_no_list_of_files(
    tmp_path: Path, write_coded_video: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_coded_video(tmp_path / "v", 2)
    (tmp_path / "v" / "flow_x_00001.jpg").write_bytes(b"")
    monkeypatch.delattr(frames.os, "listdir")
    assert find_naming(folder) == FrameNaming("image_", 5, ".jpg", 1)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "no frames in it"),
        (["readme.txt", "image.jpg"], "no frames in it"),
        (["img_1.jpg", "flow_1.jpg"], r"several series of frames \(flow_\*.jpg, img_\*.jpg\)"),
        (["img_1.jpg", "img_2.png"], "several series"),
        (["image_00003.jpg", "image_00004.jpg"], "first frame is image_00003.jpg, expected number 0 or 1"),
        (["img_01.jpg", "img_002.jpg"], "different digit counts"),
    ],
)
def test_folders_that_leave_the_frames_open(tmp_path: Path, names: list[str], says: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=says) as caught:
        find_naming(str(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path}: ")


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
    series = find_series(folder)
    assert series.naming == find_naming(folder)
    assert series.count == len(numbers)
    assert series.missing == sum(number not in numbers for number in range(min(numbers), max(numbers)))
    usable = 0
    while (tmp_path / series.naming.file_name(usable)).exists():
        usable += 1
    assert series.usable == usable


def test_the_usual_series_hides_others_as_in_reading(tmp_path):
    folder = write_empty(tmp_path, [USUAL.format(number) for number in (1, 2, 3)] + ["flow_x_00001.jpg", "image_7.jpg"])
    assert find_series(folder).naming == find_naming(folder)
    assert (find_series(folder).count, find_series(folder).usable) == (3, 3)


@pytest.mark.parametrize("names", [
    [], ["readme.txt", "image.jpg"], ["img_1.jpg", "flow_1.jpg"], ["img_1.jpg", "img_2.png"],
    ["image_00003.jpg", "image_00004.jpg"], ["img_01.jpg", "img_002.jpg"], ["._img_1.jpg", "img_1.jpg"],
])
def test_folders_that_reading_refuses_are_refused_alike(tmp_path, names):
    folder = write_empty(tmp_path, names)
    with pytest.raises(InputError) as ours:
        find_series(folder)
    with pytest.raises(InputError) as theirs:
        find_naming(folder)
    assert str(ours.value) == str(theirs.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="absent: cannot read the frame folder: No such file"):
        find_series(str(tmp_path / "absent"))


def test_names_alone_decide(tmp_path):
    assert find_series("nowhere", {USUAL.format(number) for number in range(1, 301)}).usable == 300
