"""Extraction of one video: which frames, of what size, and a folder that is finished or not there at all."""
from __future__ import annotations

import json
import random

import cv2
import numpy as np
import pytest

from dataset.frames import FRAME_MARKER, read_frames
from dataset.prepare.extraction import ExtractionResult, FrameSettings, SourceVideo, extract_video, resample
from dataset.prepare.video_tree import read_marker
from dataset.video_file import iterate_frames
from tests.encoded_videos import encode_video
from utils.errors import InputError


def video_of(tmp_path, source, **settings) -> SourceVideo:
    return SourceVideo(source.name, source, tmp_path / "out" / source.stem, FrameSettings(**settings))


def read_all(video: SourceVideo, frames: int) -> np.ndarray:
    return read_frames(str(video.folder), np.arange(frames), frames)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".mpg"])
def test_every_frame_is_written_once_in_order(tmp_path, read_codes, suffix):
    video = video_of(tmp_path, encode_video(tmp_path / f"v{suffix}", 37), quality=100)
    assert extract_video(video) == ExtractionResult(37)
    written = read_all(video, 37)
    assert read_codes(written).tolist() == list(range(37))
    asked = np.stack([frame for _, frame in iterate_frames(str(video.source))])
    assert np.abs(written.astype(int) - asked).mean() < 1  # JPEG alone
    names = {path.name for path in video.folder.iterdir()}
    assert names == {FRAME_MARKER, *(f"image_{number:05d}.jpg" for number in range(1, 38))}
    status = video.source.stat()
    assert json.loads((video.folder / FRAME_MARKER).read_text()) == {
        "video": f"v{suffix}", "frames": 37,
        "settings": {"short_side": None, "size": None, "fps": None, "quality": 100},
        "source_bytes": status.st_size, "source_mtime_ns": status.st_mtime_ns, "note": ""}
    assert [path.name for path in video.folder.parent.iterdir()] == ["v"]


@pytest.mark.parametrize(("settings", "expected"), [
    ({"short_side": 24}, (32, 24)), ({"short_side": 96}, (128, 96)), ({"size": "40x50"}, (40, 50)), ({}, (64, 48)),
])
def test_sizes(tmp_path, read_codes, settings, expected):
    video = video_of(tmp_path, encode_video(tmp_path / "v.mp4", 3), **settings)
    assert extract_video(video).frames == 3
    frames = read_all(video, 3)
    assert frames.shape[2:0:-1] == expected
    assert read_codes(frames).tolist() == [0, 1, 2]


def test_short_side_of_portrait_videos(tmp_path):
    assert FrameSettings(short_side=100).frame_size(height=320, width=240) == (100, 133)
    assert FrameSettings(short_side=100).frame_size(height=240, width=320) == (133, 100)


def test_resizing_and_quality_match_reading(tmp_path):
    from dataset.frames import resize_frames

    video = video_of(tmp_path, encode_video(tmp_path / "v.mp4", 1), size="40x30", quality=37)
    extract_video(video)
    [(_, frame)] = iterate_frames(str(video.source))
    resized = resize_frames(frame[None], (40, 30), "bicubic")[0]
    data = cv2.imencode(".jpg", resized[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 37])[1].tobytes()
    assert (video.folder / "image_00001.jpg").read_bytes() == data


@pytest.mark.parametrize("settings", [
    {"short_side": 7}, {"size": "200"}, {"size": "200x"}, {"size": "axb"}, {"size": "4x40"}, {"fps": 0.0},
    {"fps": -1.0},
    {"fps": float("nan")}, {"quality": 0}, {"quality": 101}, {"short_side": 100, "size": "20x20"},
    {"size": "66000x16"}, {"size": "16x70000"}, {"size": "9" * 5000 + "x16"},
])
def test_invalid_settings(settings):
    with pytest.raises(InputError, match="--(short_side|size|fps|quality)"):
        FrameSettings(**settings)


def nearest(times: list[float], fps: float) -> list[int]:
    """The definition, one output frame at a time."""
    last = times[-1] - times[-2] if len(times) > 1 else 0
    chosen, number = [], 0
    while not chosen or times[0] + number / fps < times[-1] + last - 1e-6:
        distances = [round(abs(time - times[0] - number / fps), 6) for time in times]
        chosen.append(distances.index(min(distances)))
        number += 1
    return chosen


@pytest.mark.parametrize("fps", [1, 7.5, 12.5, 24, 25, 30, 60])
def test_resampling_takes_the_nearest_frames(fps):
    draw = random.Random(3)
    for times in ([i / 25 for i in range(50)], [i / 30 + 1.4 for i in range(31)], [0.5],
                  [round(t, 3) for t in sorted(draw.sample([i / 100 for i in range(300)], 40))]):
        assert list(resample(((time, number) for number, time in enumerate(times)), fps)) == nearest(times, fps)


def test_known_resamplings():
    def chosen(rate, count, fps):
        return list(resample(((i / rate, i) for i in range(count)), fps))

    assert chosen(25, 10, 25) == list(range(10))
    assert chosen(30, 12, 10) == [0, 3, 6, 9]
    assert chosen(10, 3, 20) == [0, 0, 1, 1, 2, 2]
    assert list(resample([], 5)) == []


def test_uneven_times_in_a_real_file(tmp_path, read_codes):
    times = [0, 0.04, 0.08, 0.5, 0.54, 0.58, 1.0, 1.04]
    video = video_of(tmp_path, encode_video(tmp_path / "v.mp4", 8, times=times), fps=4.0)
    result = extract_video(video)
    assert read_codes(read_all(video, result.frames)).tolist() == nearest(times, 4.0) == [0, 2, 3, 5, 6]


def test_long_gaps_are_shortened_and_noted(tmp_path, read_codes):
    times = [i / 25 + 3600 * (i >= 10) + 100 * (i == 19) for i in range(20)]
    video = video_of(tmp_path, encode_video(tmp_path / "v.mp4", 20, times=times), fps=5.0)
    result = extract_video(video)
    short = [time - 3590.04 * (i >= 10) - 90.04 * (i == 19) for i, time in enumerate(times)]
    assert short[10] - short[9] == pytest.approx(10) and short[19] - short[18] == pytest.approx(10)
    assert read_codes(read_all(video, result.frames)).tolist() == nearest(short, 5.0)
    assert result == (154, "2 gap(s) in its times, the longest of 3600 s: shortened to 10 s")
    assert read_marker(video.folder).note == result.reason
    assert extract_video(video_of(tmp_path, video.source)) == ExtractionResult(20)
    still = encode_video(tmp_path / "slides.mkv", 3, times=[0, 6, 12])
    assert extract_video(video_of(tmp_path, still, fps=5.0)) == ExtractionResult(90)


def test_frames_larger_than_a_jpeg_break_their_video(tmp_path):
    wide = encode_video(tmp_path / "wide.mp4", 1, size=(640, 16))
    result = extract_video(video_of(tmp_path, wide, short_side=2000))
    assert result.frames == 0 and result.reason.startswith("its frames: 80000x2000 px")


def test_a_broken_video_leaves_nothing(tmp_path):
    whole = encode_video(tmp_path / "whole.avi", 100)
    data = whole.read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])  # breaks after some frames
    (tmp_path / "junk.mp4").write_bytes(b"not a video" * 100)
    (tmp_path / "empty.mkv").write_bytes(b"")
    for name in ("cut.avi", "junk.mp4", "empty.mkv", "absent.mp4"):
        video = video_of(tmp_path, tmp_path / name)
        result = extract_video(video)
        assert result.frames == 0 and result.reason and str(tmp_path) not in result.reason
    assert list((tmp_path / "out").iterdir()) == []


def test_fewer_frames_than_in_the_header_are_noted(tmp_path):
    data = encode_video(tmp_path / "whole.mkv", 100).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    video = video_of(tmp_path, tmp_path / "cut.mkv")
    result = extract_video(video)
    assert 0 < result.frames < 90
    assert result.reason == f"decodes to {result.frames} frames, its header promises about 100: perhaps cut short"
    assert read_marker(video.folder).note == result.reason


def test_an_older_folder_is_replaced_whole(tmp_path):
    source = encode_video(tmp_path / "v.mp4", 5)
    assert extract_video(video_of(tmp_path, source)).frames == 5
    (tmp_path / "out" / "v" / "image_00006.jpg").write_bytes(b"of an earlier extraction")
    video = video_of(tmp_path, source, size="32x32")
    video.partial.mkdir()
    (video.partial / "image_00099.jpg").write_bytes(b"of a killed run")
    assert extract_video(video).frames == 5
    assert len(list(video.folder.iterdir())) == 6 and read_all(video, 5).shape[1:3] == (32, 32)
    assert [path.name for path in video.folder.parent.iterdir()] == ["v"]


def test_a_destination_that_cannot_be_written(tmp_path):
    (tmp_path / "out").write_text("a file where the folder belongs")
    with pytest.raises(FileExistsError, match="/out'"):
        extract_video(video_of(tmp_path, encode_video(tmp_path / "v.mp4", 2)))


def test_damaged_markers(tmp_path):
    assert read_marker(tmp_path) is None and read_marker(tmp_path / "absent") is None
    no_frames = '{"video": "v", "frames": 0, "settings": {}, "source_bytes": 1, "source_mtime_ns": 1}'
    for text in ("", "[]", "{}", no_frames):
        (tmp_path / FRAME_MARKER).write_text(text)
        with pytest.raises(InputError, match="not a marker"):
            read_marker(tmp_path)
