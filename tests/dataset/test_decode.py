from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dataset import decode
from dataset.decode import FrameNaming, find_naming, read_frames, resize_frames
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
    monkeypatch.delattr(decode.os, "listdir")
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


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none: cannot read the frame folder: No such file"):
        read_frames(str(tmp_path / "none"), np.array([0]), 1)


def test_each_distinct_frame_is_decoded_once(
    tmp_path: Path, write_coded_video: Callable, read_codes: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_coded_video(tmp_path / "v", 10)
    calls = []
    imdecode = cv2.imdecode
    monkeypatch.setattr(decode.cv2, "imdecode", lambda *args: calls.append(1) or imdecode(*args))
    indices = np.array([7, 2, 2, 9, 7, 0, 2])
    assert read_codes(read_frames(folder, indices, 10)).tolist() == indices.tolist()
    assert len(calls) == 4


def test_colors_are_rgb_and_exif_rotation_is_left_alone(tmp_path: Path) -> None:
    picture = Image.new("RGB", (32, 16), (250, 100, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "image_00001.jpg", quality=95, exif=exif)
    frames = read_frames(str(tmp_path), np.array([0]), 1)
    assert frames.shape == (1, 16, 32, 3) and frames.dtype == np.uint8
    assert np.abs(frames[0, 8, 16].astype(int) - (250, 100, 10)).max() <= 2


@pytest.mark.parametrize("content", [b"", b"no picture at all", "truncated"])
def test_a_broken_frame_is_named(tmp_path: Path, write_coded_video: Callable, content: bytes | str) -> None:
    folder = write_coded_video(tmp_path / "v", 5)
    path = tmp_path / "v" / "image_00003.jpg"
    path.write_bytes(path.read_bytes()[:400] if content == "truncated" else content)
    with pytest.raises(InputError, match="image_00003.jpg: not a readable picture"):
        read_frames(folder, np.arange(5), 5)


def test_a_missing_frame_is_named_with_the_count_of_the_csv(
    tmp_path: Path, write_coded_video: Callable
) -> None:
    folder = write_coded_video(tmp_path / "v", 5)
    with pytest.raises(InputError, match="image_00006.jpg: cannot read frame 6 of the 9 .*: No such file"):
        read_frames(folder, np.array([0, 5]), 9)


def test_frames_of_different_sizes_are_refused(tmp_path: Path, write_coded_video: Callable) -> None:
    folder = write_coded_video(tmp_path / "v", 2)
    cv2.imwrite(str(tmp_path / "v" / "image_00002.jpg"), np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(InputError, match="image_00002.jpg: 30x20, other frames of this video 64x48"):
        read_frames(folder, np.arange(2), 2)


def test_reading_at_a_size(tmp_path: Path, write_coded_video: Callable, read_codes: Callable) -> None:
    folder = write_coded_video(tmp_path / "v", 6)
    frames = read_frames(folder, np.array([5, 1, 1]), 6, size=(200, 150))
    assert frames.shape == (3, 150, 200, 3) and read_codes(frames).tolist() == [5, 1, 1]
    assert np.array_equal(
        read_frames(folder, np.arange(6), 6, size=(64, 48)), read_frames(folder, np.arange(6), 6)
    )


@pytest.mark.parametrize(("mode", "resample"), [("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)])
@pytest.mark.parametrize("size", [(200, 150), (112, 112), (400, 300), (65, 49)])
def test_resizing_equals_pillow(mode: str, resample: int, size: tuple[int, int]) -> None:
    """The same filter in fixed point: in each of the two passes a rounding tie may fall to the other side."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 256, 340, 3), dtype=np.uint8)
    ours = resize_frames(frames, size, mode)
    theirs = np.stack([np.asarray(Image.fromarray(frame).resize(size, resample)) for frame in frames])
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 2 and difference.mean() < 0.01
