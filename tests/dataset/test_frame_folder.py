from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dataset import frame_folder
from dataset.frames import read_frames
from dataset.frame_folder import FrameNaming, find_naming
from utils.errors import InputError


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
    monkeypatch.delattr(frame_folder.os, "listdir")
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
