"""Clips of 32 frames read at random from one h264 video on one core: each decoder's time, and who is right.

    python -m benchmarks.video_decoders [--quick]

The video has 340x256 pixels and 300 frames, as x264 writes it by default: B-frames, a keyframe every 250
frames. Every frame shows its number, so that a decoder that gives a neighbor is found out; that is counted on
more files: even and uneven times between frames, packets before the first keyframe, and mpeg4 in avi.
torchcodec takes part where it is installed and finds FFmpeg's libraries.
"""
from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from benchmarks.measure import milliseconds, quick_flag, ratio, table, time_in_turns
from dataset.frames import read_frames
from dataset.video_file import iterate_frames, read_video
from tests.texture_videos import copy

NUM_FRAMES, SIZE, CLIP = 300, (340, 256), 32
BITS = 9
OURS = "PyAV, by packet index (ours)"


@functools.cache
def clouds() -> np.ndarray:
    """Returns a noisy texture, float32 [512, 680, 3]."""
    rng = np.random.default_rng(0)
    smooth = cv2.resize(
        rng.normal(128, 60, (40, 60, 3)).astype(np.float32), (680, 512), interpolation=cv2.INTER_CUBIC
    )
    return smooth + rng.normal(0, 5, smooth.shape).astype(np.float32)


def picture(index: int) -> np.ndarray:
    """Returns frame `index`, uint8 RGB [H, W, 3]: drifting texture, a moving disk, its number in stripes."""
    x, y = int(170 + 150 * np.sin(index / 40)), int(128 + 100 * np.cos(index / 33))
    frame = np.clip(clouds()[y : y + SIZE[1], x : x + SIZE[0]], 0, 255).astype(np.uint8)
    cv2.circle(
        frame, (int(170 + 100 * np.sin(index / 9)), int(140 + 80 * np.cos(index / 7))), 30, (200, 60, 30), -1
    )
    bits = np.repeat([255 * (index >> bit & 1) for bit in range(BITS)], 32)
    frame[:32, : 32 * BITS] = bits[None, :, None]
    return frame


def number(frame: np.ndarray) -> int:
    """Returns the number that a frame shows."""
    return sum(1 << bit for bit in range(BITS) if frame[16, 32 * bit + 16].mean() > 127)


def write(path: Path, codec: str, times: np.ndarray, options: dict[str, str] | None = None) -> Path:
    """Writes the frames, frame i at times[i] / 30 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options=options or {})
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for index in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            frame.pts, frame.time_base = int(times[index]), Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def read_by_index(path: str, start: int) -> list[np.ndarray]:
    return list(read_video(path, range(start, start + CLIP), NUM_FRAMES))


def read_from_start(path: str, start: int) -> list[np.ndarray]:
    frames = []
    for index, (_, frame) in enumerate(iterate_frames(path)):
        if index >= start:
            frames.append(frame)
        if len(frames) == CLIP:
            break
    return frames


def read_opencv(path: str, start: int) -> list[np.ndarray]:
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    capture.set(cv2.CAP_PROP_POS_FRAMES, start)
    frames = [frame[..., ::-1] for good, frame in (capture.read() for _ in range(CLIP)) if good]
    capture.release()
    return frames


def torchcodec_readers() -> dict[str, Callable[[str, int], list[np.ndarray]]]:
    """Returns torchcodec's two ways to seek; none, after a line that says so, where it does not load."""
    try:
        from torchcodec.decoders import VideoDecoder
    except ImportError:
        print("torchcodec: not installed\n")
        return {}
    except (OSError, RuntimeError):
        print(
            "torchcodec: does not load here, as it needs FFmpeg's shared libraries on the machine\n"
        )
        return {}

    def reader(mode: str) -> Callable[[str, int], list[np.ndarray]]:
        def read(path: str, start: int) -> list[np.ndarray]:
            decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=mode)
            return list(decoder.get_frames_in_range(start, min(start + CLIP, len(decoder))).data.numpy())

        return read

    return {f"torchcodec, {mode}": reader(mode) for mode in ("exact", "approximate")}


def right_clips(
    read: Callable[[str, int], list[np.ndarray]], path: str, starts: list[int], expected: list[int]
) -> str:
    """Returns how many of the clips have just the frames asked for, such as "12 of 12", or that one is an error."""
    right = 0
    for start in starts:
        try:
            right += [number(frame) for frame in read(path, start)] == expected[start : start + CLIP]
        except (RuntimeError, IndexError):
            return "an error"
    return f"{right} of {len(starts)}"


def main() -> None:
    quick = quick_flag(__doc__)
    cv2.setNumThreads(0)
    readers = {
        OURS: read_by_index,
        "PyAV, from the start": read_from_start,
        "OpenCV": read_opencv,
        **torchcodec_readers(),
    }
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        even = np.arange(NUM_FRAMES)
        plain = write(Path(folder, "plain.mp4"), "libx264", even)
        files = {
            "h264 in mp4": plain,
            "uneven times": write(
                Path(folder, "uneven.mp4"), "libx264", rng.integers(1, 9, NUM_FRAMES).cumsum()
            ),
            "begins without keyframe": copy(
                write(Path(folder, "short_groups.mp4"), "libx264", even, {"g": "48"}),
                Path(folder, "cut.mp4"),
                20,
            ),
            "mpeg4 in avi": write(Path(folder, "xvid.avi"), "mpeg4", even, {"bf": "2", "g": "48"}),
        }
        starts = rng.integers(0, NUM_FRAMES - CLIP, 3 if quick else 25).tolist()
        jpegs = Path(folder, "jpegs")
        jpegs.mkdir()
        for index, (_, frame) in enumerate(iterate_frames(str(plain)), start=1):
            quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
            cv2.imwrite(str(jpegs / f"image_{index:05d}.jpg"), frame[..., ::-1], quality)
        clip = np.arange(CLIP)
        jobs = dict(readers)
        jobs["JPEG folder"] = lambda path, start: read_frames(str(jpegs), start + clip, NUM_FRAMES)
        places = {name: itertools.cycle(starts) for name in jobs}  # all jobs of a turn read the same clip
        seconds = time_in_turns(
            {name: lambda name=name: jobs[name](str(plain), next(places[name])) for name in jobs}, len(starts)
        )
        shown = [[int(number(frame)) for _, frame in iterate_frames(str(path))] for path in files.values()]
        rows = []
        for name in jobs:
            row = [name, milliseconds(seconds[name]), f"{ratio(seconds[name], seconds[OURS]):.2f}"]
            for path, expected in zip(files.values(), shown):
                in_file = [start % (len(expected) - CLIP) for start in starts]
                row.append(
                    right_clips(readers[name], str(path), in_file, expected) if name in readers else "-"
                )
            rows.append(row)
        print(table(["decoder", "ms a clip", "time / ours", *(f"right: {name}" for name in files)], rows))
        print(
            f"\nThe video file has {plain.stat().st_size / 1e6:.2f} MB, its JPEG folder "
            f"{sum(file.stat().st_size for file in jpegs.iterdir()) / 1e6:.2f} MB."
        )


if __name__ == "__main__":
    main()
