"""Naming of frames, decoding and resizing; every kind of path is read alike."""
from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from dataset import frames as frames_module
from dataset.frames import (FrameNaming, decode_image, find_naming, find_series, read_folder, read_frames,
                            resize_frames)
from dataset.packed import write_shard
from dataset.transforms import CropBox, crop_and_flip
from dataset.video_file import iterate_frames
from tests.encoded_videos import encode_video
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
    monkeypatch.delattr(frames_module.os, "listdir")
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
    ["image_00003.jpg", "image_00004.jpg"], ["img_01.jpg", "img_002.jpg"], ["._img_1.jpg"],
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


def test_each_distinct_frame_is_decoded_once(
    tmp_path: Path, write_coded_video: Callable, read_codes: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_coded_video(tmp_path / "v", 10)
    calls = []
    monkeypatch.setattr(frames_module, "decode_image", lambda *args: calls.append(1) or decode_image(*args))
    indices = np.array([7, 2, 2, 9, 7, 0, 2])
    assert read_codes(read_frames(folder, indices, 10)).tolist() == indices.tolist()
    assert len(calls) == 4


def test_colors_are_rgb_and_exif_rotation_is_left_alone(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 16), (250, 100, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "image_00001.jpg", quality=95, exif=exif)
    frames = read_frames(str(tmp_path), np.array([0]), 1)
    assert frames.shape == (1, 16, 32, 3) and frames.dtype == np.uint8
    assert np.abs(frames[0, 8, 16].astype(int) - (250, 100, 10)).max() <= 2


@pytest.mark.parametrize("content", [b"", b"no image at all", 400, -20])
def test_a_broken_frame_is_named(tmp_path: Path, write_coded_video: Callable, content: bytes | int) -> None:
    folder = write_coded_video(tmp_path / "v", 5)
    path = tmp_path / "v" / "image_00003.jpg"
    path.write_bytes(path.read_bytes()[:content] if isinstance(content, int) else content)
    with pytest.raises(InputError, match=r"image_00003.jpg: not a readable image \(\d+ bytes"):
        read_frames(folder, np.arange(5), 5)


def test_a_header_that_promises_too_many_pixels_is_named(tmp_path: Path, write_coded_video: Callable) -> None:
    folder = write_coded_video(tmp_path / "v", 1)
    path = tmp_path / "v" / "image_00001.jpg"
    data = bytearray(path.read_bytes())
    sizes = data.index(b"\xff\xc0") + 5
    data[sizes : sizes + 4] = 2 * (40_000).to_bytes(2, "big")
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"image_00001.jpg: not a readable image"):
        read_frames(folder, np.arange(1), 1)


def jpeg(mode: str = "RGB", size: tuple[int, int] = (96, 80), **options: Any) -> bytes:
    """A JPEG of noise, written by Pillow with these options; ``size``: width, height."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("size", [(96, 80), (83, 61)])
@pytest.mark.parametrize("options", [
    {}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"restart_marker_rows": 1}, {"mode": "L"},
    {"mode": "CMYK"}])
def test_both_decoders_give_the_same_pixels(
    options: dict[str, Any], size: tuple[int, int], half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JPEGs are decoded by simplejpeg; OpenCV, which judges those that it refuses, has libjpeg-turbo too."""
    data = jpeg(size=size, **options)
    flags = cv2.IMREAD_REDUCED_COLOR_2 if half else cv2.IMREAD_COLOR
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)[..., ::-1]
    calls, imdecode = [], cv2.imdecode
    monkeypatch.setattr(frames_module.cv2, "imdecode", lambda *args: calls.append(1) or imdecode(*args))
    frame = decode_image(data, "x", half)
    assert np.array_equal(frame, expected) and not calls
    assert frame.shape[1::-1] == (tuple((side + 1) // 2 for side in size) if half else size)


def with_preview(data: bytes) -> bytes:
    """The JPEG with a whole small JPEG in an application segment before its own pixels."""
    preview = jpeg()
    return data[:2] + b"\xff\xe1" + (len(preview) + 2).to_bytes(2, "big") + preview + data[2:]


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}]
)
@pytest.mark.parametrize("preview", [False, True])
def test_no_cut_goes_unseen(options: dict[str, Any], preview: bool) -> None:
    """A JPEG of which an end is missing is an error, never filled up with grey, wherever the cut is."""
    data = with_preview(jpeg(**options)) if preview else jpeg(**options)
    whole = decode_image(data, "x")
    assert np.array_equal(decode_image(data + b"more", "x"), whole)
    for end in range(0, len(data) - 2, 7):
        with pytest.raises(InputError, match=rf"^x: not a readable image \({end} bytes\)$"):
            decode_image(data[:end], "x")


def test_a_png_that_was_cut_short() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    data = cv2.imencode(".png", pixels)[1].tobytes()
    with pytest.raises(InputError, match=r"^x: not a readable image \(900 bytes\)$"):
        decode_image(data[:900], "x")


def test_a_missing_frame_is_named_with_the_count_of_the_csv(
    tmp_path: Path, write_coded_video: Callable
) -> None:
    folder = write_coded_video(tmp_path / "v", 5)
    with pytest.raises(InputError, match="image_00006.jpg: cannot read frame 6 of the 9 given in the csv: No such file"):
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


def test_a_packed_folder_a_folder_and_a_video_file_are_read_alike(tmp_path: Path) -> None:
    """Bit for bit, at any size: the images hold the very frames of the video file, as png and jpg."""
    video = encode_video(tmp_path / "v.mp4", 20, options={"g": "6"})
    frames = [frame for _, frame in iterate_frames(str(video))]
    for suffix in (".png", ".jpg"):
        folder = tmp_path / f"folder{suffix}"
        folder.mkdir()
        for number, frame in enumerate(frames, start=1):
            cv2.imwrite(str(folder / f"image_{number:05d}{suffix}"), frame[..., ::-1])
        images = read_folder(str(folder), range(20), 20)
        write_shard(
            str(tmp_path / f"s{suffix}.tar"), [("a/v", [(Path(path).name, data) for path, data in images])]
        )
    indices = np.array([13, 2, 2, 19, 0, 7])
    for size in (None, (64, 48), (40, 30), (100, 90)):
        expected = read_frames(str(video), indices, 20, size)
        for kind in ("folder.png", "s.png.tar/a/v"):
            assert np.array_equal(read_frames(str(tmp_path / kind), indices, 20, size), expected), (
                kind,
                size,
            )
        loose = read_frames(str(tmp_path / "folder.jpg"), indices, 20, size)
        assert np.array_equal(read_frames(str(tmp_path / "s.jpg.tar/a/v"), indices, 20, size), loose)
        assert loose.shape == expected.shape
        if size is not None:
            assert np.array_equal(
                expected, resize_frames(read_frames(str(video), indices, 20), size, "bicubic")
            )


def test_few_full_size_frames_are_held(
    tmp_path: Path, write_coded_video: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resizing in groups gives what resizing all at once gives."""
    folder = write_coded_video(tmp_path / "v", 21)
    expected = resize_frames(read_frames(folder, np.arange(21), 21), (40, 30), "bicubic")
    groups = []
    resize = frames_module.resize_frames

    def counting(frames: np.ndarray, **how: Any) -> np.ndarray:
        groups.append(len(frames))
        return resize(frames, **how)

    monkeypatch.setattr(frames_module, "resize_frames", counting)
    assert np.array_equal(read_frames(folder, np.arange(21), 21, (40, 30)), expected)
    assert max(groups) == frames_module.FRAMES_PER_RESIZE and sum(groups) == 21
    halves = read_frames(folder, np.array([20, 3, 3]), 21, shrink=lambda frames: frames[:, ::2, ::2])
    assert np.array_equal(halves, read_frames(folder, np.array([20, 3, 3]), 21)[:, ::2, ::2])


def test_names_decide_only_with_what_lies_there(
    tmp_path: Path, write_coded_video: Callable, read_codes: Callable
) -> None:
    """Frame folders called like video files and shards stay frame folders."""
    for name in ("clip.mp4", "videos.tar/clip", "x.tar"):
        folder = write_coded_video(tmp_path / name, 4)
        assert read_codes(read_frames(folder, np.array([3, 1]), 4)).tolist() == [3, 1]


def natural_image(width: int, height: int, seed: int) -> np.ndarray:
    """Noise with a falling spectrum, uint8 RGB; at 340x256 and quality 90 a JPEG of 27 kB, as video frames give."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]) + 1 / width
    luma, *chroma = np.fft.ifft2(np.fft.fft2(rng.normal(size=(4, height, width))) / frequency**1.7).real
    image = np.stack([luma / luma.std() + 0.3 * plane / plane.std() for plane in chroma], axis=-1)
    return np.clip(128 + 50 * image, 0, 255).astype(np.uint8)


def test_half_decoding_is_nearer_than_the_compression_itself(tmp_path):
    """At 112 px, from a crop near the smallest, half of 200x150: the worst case for images decoded at half their size."""
    originals = np.stack([natural_image(340, 256, seed) for seed in range(4)])
    for index, image in enumerate(originals):
        file = str(tmp_path / f"image_{index + 1:05d}.jpg")
        assert cv2.imwrite(file, image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    full, half = (read_frames(str(tmp_path), np.arange(4), 4, (200, 150), half=half) for half in (False, True))
    assert half.shape == (4, 128, 170, 3)
    whole, part = (200, 150), CropBox(0, 40, 150, 100)
    box = part.rescaled(whole, (170, 128))
    assert box == CropBox(0, 34, 128, 85)  # nothing rounded: the same part
    ours, plain, lossless = (crop_and_flip(*cut, False, 112).astype(int) for cut in (
        (half, box), (full, part), (resize_frames(originals, whole, "bicubic"), part)))
    assert 0 < np.abs(ours - plain).mean() < np.abs(plain - lossless).mean() < 2


@pytest.mark.parametrize("size, ending", [((320, 240), "jpg"), ((200, 150), "jpg"), ((340, 256), "png")])
def test_where_half_is_not_enough_images_are_decoded_in_full(tmp_path, size, ending):
    for index in range(2):
        assert cv2.imwrite(str(tmp_path / f"image_{index + 1:05d}.{ending}"), natural_image(*size, index))
    full, half = (read_frames(str(tmp_path), np.arange(2), 2, (200, 150), half=half) for half in (False, True))
    assert np.array_equal(full, half)


def test_half_decoding_names_what_is_broken(tmp_path):
    data = cv2.imencode(".jpg", natural_image(340, 256, 0))[1].tobytes()
    (tmp_path / "image_00001.jpg").write_bytes(data)
    (tmp_path / "image_00002.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="image_00002.jpg: not a readable image"):
        read_frames(str(tmp_path), np.arange(2), 2, (200, 150), half=True)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "CMYK"}])
def test_strict_decoding_refuses_damage_that_libjpeg_only_warns_about(options: dict[str, Any]) -> None:
    data = jpeg(**options)
    assert np.array_equal(decode_image(data, "x", strict=True), decode_image(data, "x"))
    damaged = bytearray(data)
    damaged[-40:-30] = bytes([0xFF, 0x01] * 5)
    assert decode_image(bytes(damaged), "x").shape == (80, 96, 3)
    with pytest.raises(InputError, match=rf"^x: not a readable image \({len(data)} bytes\): Corrupt JPEG data"):
        decode_image(bytes(damaged), "x", strict=True)
    with pytest.raises(InputError, match=r"^x: not a readable image \(\d+ bytes\): Premature end of JPEG file"):
        decode_image(data[:-20], "x", strict=True)
