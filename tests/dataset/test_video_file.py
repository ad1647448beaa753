"""Random access must give the frames of a whole decode, bit for bit, whatever the file."""
from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from dataset import video_file
from dataset.frames import names_video_file
from dataset.video_file import count_frames, find_cut, iterate_frames, read_video
from tests.encoded_videos import encode_video
from tests.texture_videos import GOP, NUM_FRAMES, copy, open_gop, texture, turned, uneven, write
from utils.errors import InputError

# name -> (writes the file into a folder, number of frames, whether its packets are an index)
FILES: dict[str, tuple[Callable[[Path], Path], int, bool]] = {
    "b-frames": (lambda d: write(d / "v.mp4", "libx264", GOP), 40, True),
    "no b-frames": (lambda d: write(d / "v.mp4", "libx264", {"bf": "0", "g": "10"}), 40, True),
    "one group": (lambda d: write(d / "v.mov", "libx264", {"bf": "2"}), 40, True),
    "open groups": (lambda d: open_gop(d / "v.mp4"), 40, True),
    "open groups in mkv": (lambda d: open_gop(d / "v.mkv"), 40, True),
    "no keyframes, refreshed stripe by stripe": (
        lambda d: write(d / "v.mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=10:bframes=0"}),
        40,
        True,
    ),
    "uneven times": (lambda d: write(d / "v.mp4", "libx264", GOP, times=uneven()), 40, True),
    "uneven times in mkv": (lambda d: write(d / "v.mkv", "libx264", GOP, times=uneven()), 40, True),
    "starts at 2 s": (lambda d: write(d / "v.mkv", "libx264", GOP, times=list(range(50, 90))), 40, True),
    "transport stream": (lambda d: write(d / "v.ts", "libx264", GOP), 40, True),
    "first packets need one before": (
        lambda d: copy(write(d / "a.mp4", "libx264", GOP), d / "v.mp4", 5),
        30,
        False,
    ),
    "the same in mkv": (lambda d: copy(write(d / "a.mp4", "libx264", GOP), d / "v.mkv", 5), 30, False),
    "turned": (lambda d: turned(write(d / "a.mp4", "libx264", GOP), d / "v.mp4", (0, 1, -1, 0)), 40, True),
    "odd sizes": (lambda d: write(d / "v.mp4", "libx264", GOP, size=(61, 47), pixels="yuv444p"), 40, True),
    "hevc": (
        lambda d: write(d / "v.mp4", "libx265", {"x265-params": "keyint=10:bframes=3:log-level=none"}),
        40,
        True,
    ),
    "vp9": (lambda d: write(d / "v.webm", "libvpx-vp9", {"g": "10", "lag-in-frames": "8"}), 40, True),
    "vp8, some packets without frame": (
        lambda d: write(d / "v.webm", "libvpx", {"g": "10", "auto-alt-ref": "1", "lag-in-frames": "8"}),
        40,
        False,
    ),
    "mpeg4 in avi": (lambda d: write(d / "v.avi", "mpeg4", {"g": "10"}, size=(61, 47)), 40, False),
    "mpeg4 with b-frames in avi": (lambda d: write(d / "v.avi", "mpeg4", {"g": "10", "bf": "2"}), 40, False),
    "mpeg2": (lambda d: write(d / "v.mpg", "mpeg2video", {"g": "10", "bf": "2"}), 40, False),
    "mjpeg": (lambda d: write(d / "v.avi", "mjpeg", pixels="yuvj420p"), 40, True),
}


@pytest.fixture(autouse=True)
def no_kept_indexes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_file, "_kept_indexes", {})


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_each_frame_is_that_of_a_whole_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, keep: bool
) -> None:
    if keep:
        monkeypatch.setattr(video_file, "_LONG", 1)  # then the file is not read to its end before it is searched
    make, num_frames, indexed = FILES[name]
    path = str(make(tmp_path))
    times, frames = zip(*iterate_frames(path))
    assert len(frames) == num_frames and count_frames(path) == num_frames
    assert (np.diff(times) > 0).all()
    assert len({frame.tobytes() for frame in frames}) == num_frames, "all frames differ"
    for index in range(num_frames):
        [frame] = read_video(path, [index], num_frames)
        assert frame.flags["C_CONTIGUOUS"] and np.array_equal(frame, frames[index]), index
    rng = np.random.default_rng(0)
    for size in (num_frames, *rng.integers(2, 12, 12)):
        wanted = sorted(rng.choice(num_frames, size, replace=False).tolist())
        read = list(read_video(path, wanted, num_frames))
        assert len(read) == size and all(map(np.array_equal, read, [frames[index] for index in wanted])), (
            wanted
        )
    with video_file._open_video(path) as opened:
        assert (video_file._read_index(opened) is not None) == indexed
    assert len(video_file._kept_indexes) == (keep and indexed)


def test_an_index_that_the_decoder_contradicts_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(write(tmp_path / "v.mp4", "libx264", GOP))
    frames = [frame for _, frame in iterate_frames(path)]
    read_index = video_file._read_index

    def wrong(*args: Any) -> Any:
        index = read_index(*args)
        index.times[13:] += 1  # from the second group's fourth frame on
        return index

    monkeypatch.setattr(video_file, "_read_index", wrong)
    for wanted in ([5], [5, 12, 14], [33], [3, 33], list(range(NUM_FRAMES))):
        read = list(read_video(path, wanted, NUM_FRAMES))
        assert len(read) == len(wanted) and all(
            map(np.array_equal, read, [frames[index] for index in wanted])
        )


def test_indexes_of_long_videos_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(write(tmp_path / f"{number}.mp4", "libx264", GOP)) for number in range(3)]
    read: list[str] = []
    read_index = video_file._read_index
    monkeypatch.setattr(video_file, "_read_index", lambda *args: read.append(args[0].path) or read_index(*args))

    def draw(*numbers: int) -> list[int]:
        read.clear()
        for number in numbers:
            assert len(list(read_video(paths[number], [3, 25], NUM_FRAMES))) == 2
        return [paths.index(path) for path in read]

    assert draw(0, 0) == [0, 0], "short ones each time"
    monkeypatch.setattr(video_file, "_LONG", NUM_FRAMES)
    assert draw(0, 0, 1, 0) == [0, 1]
    monkeypatch.setattr(video_file, "_MOST_KEPT", 2 * NUM_FRAMES)
    assert draw(2, 2, 1, 0, 2) == [2, 0], "the oldest had to go"
    os.utime(paths[2], (1, 1))
    assert draw(2, 2) == [2], "it has changed"


def test_only_the_wanted_groups_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write(tmp_path / "v.mp4", "libx264", GOP))
    decoded: list[int] = []
    decode_from = video_file._decode_from

    def counting(*args: Any) -> Any:
        decoded.append(0)
        for frame in decode_from(*args):
            decoded[-1] += 1
            yield frame

    monkeypatch.setattr(video_file, "_decode_from", counting)
    for wanted, expected in [
        ([0], [1]),
        ([12, 15, 19], [10]),
        ([5, 33], [6, 4]),
        ([8, 12], [9, 3]),
        ([9, 10], [11]),
    ]:
        decoded.clear()
        assert len(list(read_video(path, wanted, NUM_FRAMES))) == len(wanted)
        assert decoded == expected, wanted


@pytest.mark.parametrize(
    ("matrix", "show"),
    [
        ((1, 0, 0, 1), lambda frame: frame),
        ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),  # a quarter clockwise
        ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
        ((0, -1, 1, 0), lambda frame: np.rot90(frame)),
        ((-1, 0, 0, 1), lambda frame: frame[:, ::-1]),
        ((1, 0, 0, -1), lambda frame: frame[::-1]),
        ((0, 1, 1, 0), lambda frame: frame.swapaxes(0, 1)),
    ],
)
def test_frames_are_the_right_way_up(tmp_path: Path, matrix: tuple[int, ...], show: Callable) -> None:
    plain = write(tmp_path / "a.mp4", "libx264", GOP)
    path = str(turned(plain, tmp_path / "v.mp4", matrix))
    for (_, frame), (_, expected) in zip(iterate_frames(path), iterate_frames(str(plain)), strict=True):
        assert np.array_equal(frame, show(expected))


def test_frames_have_the_colors_and_times_that_were_written(tmp_path: Path) -> None:
    """A lossless codec in RGB gives back every value."""
    path = str(write(tmp_path / "v.mkv", "ffv1", size=(61, 47), pixels="bgr0", times=uneven()))
    for index, (time, frame) in enumerate(iterate_frames(path)):
        assert np.array_equal(frame, texture(index, 61, 47))
        assert time == pytest.approx(uneven()[index] / 25, abs=1e-3)


@pytest.mark.parametrize(("space", "red"), [("bt709", (63, 102, 240)), ("smpte170m", (81, 90, 240))])
def test_the_files_color_matrix_is_used(tmp_path: Path, space: str, red: tuple[int, int, int]) -> None:
    """``red``: pure red's Y, Cb, Cr in that matrix (BT.709, BT.601), limited range."""
    path = str(tmp_path / "v.mp4")
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "0", "colorspace": space})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        planes = [np.full((64, 64), red[0]), np.full((16, 64), red[1]), np.full((16, 64), red[2])]
        frame = av.VideoFrame.from_ndarray(np.concatenate(planes).astype(np.uint8), format="yuv420p")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    [(_, frame)] = iterate_frames(path)
    assert np.abs(frame.astype(int) - (255, 0, 0)).max() <= 3


def test_an_index_behind_the_end_names_both_counts(tmp_path: Path) -> None:
    for name, codec in (("v.mp4", "libx264"), ("v.avi", "mpeg4")):
        path = str(write(tmp_path / name, codec))
        with pytest.raises(InputError) as caught:
            list(read_video(path, [3, 40], 50))
        assert str(caught.value) == (
            f"{path}: frame 41 of the 50 given in the csv is missing, the video file has 40"
        )


def no_video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def sound_with_a_cover(path: Path) -> None:
    with av.open(str(path), "w") as container:
        sound, cover = container.add_stream("aac", rate=16000), container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        image = av.VideoFrame(64, 48, "yuvj420p")
        image.pts = 0
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        for packets in (cover.encode(image), cover.encode(), sound.encode(frame), sound.encode()):
            container.mux(packets)


def cut_in_the_middle(path: Path) -> None:
    front = copy(
        write(path.with_name("a.mp4"), "libx264", GOP), path.with_name("b.mp4"), movflags="faststart"
    )
    path.write_bytes(front.read_bytes()[: front.stat().st_size * 6 // 10])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.write_bytes(b""), "cannot open the video file: Invalid data"),
        (lambda path: path.write_bytes(b"not a video " * 99), "cannot open the video file: Invalid data"),
        (lambda path: None, "cannot open the video file: No such file"),
        (lambda path: path.mkdir(), "cannot open the video file: Is a directory"),
        (no_video, "no video in the file"),
        (sound_with_a_cover, "no video in the file, only sound with a cover image"),
        (cut_in_the_middle, "the video file breaks on the way: Invalid data"),
        (
            lambda path: turned(write(path.with_name("a.mp4"), "libx264", GOP), path, (1, 1, -1, 1)),
            "rotated by an angle that is no multiple of 90 degrees",
        ),
    ],
)
def test_files_that_do_not_decode(tmp_path: Path, make: Callable, says: str) -> None:
    path = tmp_path / "v.mp4"
    make(path)
    for read in (lambda: list(iterate_frames(str(path))), lambda: list(read_video(str(path), range(40), 40))):
        with pytest.raises(InputError) as caught:
            read()
        message = str(caught.value)
        assert message.startswith(f"{path}: {says}") and "\n" not in message


def test_a_read_leaves_no_file_open_and_starts_no_thread(tmp_path: Path) -> None:
    path = str(write(tmp_path / "v.mp4", "libx264", GOP))
    names_open = lambda: [
        os.readlink(entry) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry)
    ]
    threads = len(os.listdir("/proc/self/task"))
    reading = read_video(path, range(NUM_FRAMES), NUM_FRAMES)
    next(reading)
    assert path in names_open() and len(os.listdir("/proc/self/task")) == threads
    reading.close()
    list(read_video(path, [39], NUM_FRAMES))
    next(iterate_frames(path))
    assert path not in names_open()


def test_a_process_that_was_forked_while_reading_reads_on(tmp_path: Path) -> None:
    path = str(write(tmp_path / "v.mp4", "libx264", GOP))
    expected = list(read_video(path, [5, 33], NUM_FRAMES))
    reading = read_video(path, range(NUM_FRAMES), NUM_FRAMES)
    next(reading)
    child = os.fork()
    if child == 0:
        same = all(map(np.array_equal, read_video(path, [5, 33], NUM_FRAMES), expected))
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(list(reading)) == NUM_FRAMES - 1


def test_names_of_video_files() -> None:
    assert all(map(names_video_file, ("a.mp4", "b/c.AVI", "x.tar.webm")))
    assert not any(map(names_video_file, ("a", "mp4", "a.mp4/b", "a.tar", "a.jpg", ".mp4")))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".webm", ".mpg"])
def test_what_shows_that_a_file_is_not_whole(tmp_path, suffix):
    """No file that is whole looks cut; mp4 is the format whose index names every frame."""
    path = encode_video(tmp_path / f"v{suffix}", 60, container_options={"movflags": "faststart"} if suffix == ".mp4" else {})
    assert find_cut(str(path)) == ""
    if suffix == ".mp4":
        data = path.read_bytes()
        half = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
        for cut, found in ((data[:half] + bytes(len(data) - half), "is zeros: a partial download"),
                           (data[:half], "is behind the end of the file: cut short")):
            path.write_bytes(cut)
            assert find_cut(str(path)).endswith(found)
