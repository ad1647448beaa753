"""Clips of 32 frames read at random from one h264 video on one core: each decoder's time, and whose frames are right.

    python -m benchmarks.video_decoders [--quick]

The video has 340x256 pixels and 300 frames, as x264 writes it by default: B-frames, a keyframe every 250 frames. Every frame
shows its number, so that a decoder that returns a neighboring frame is noticed; this is counted on more files: even and
uneven times between frames, packets before the first keyframe, and mpeg4 in avi. torchcodec takes part where it is installed
and finds FFmpeg's libraries.
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

from benchmarks.measure import format_table, milliseconds, quick_flag, ratio, time_in_turns
from dataset.frames import read_frames
from dataset.video_file import iterate_frames, read_video
from tests.texture_videos import copy

NUM_FRAMES, SIZE, CLIP = 300, (340, 256), 32
BITS = 9
OURS = "PyAV, by packet index (ours)"
Reader = Callable[[str, int], list[np.ndarray]]  # (path, first frame) -> CLIP frames


@functools.cache
def background() -> np.ndarray:
    """Returns a noisy texture, float32 [512, 680, 3]."""
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.normal(128, 60, (40, 60, 3)).astype(np.float32), (680, 512), interpolation=cv2.INTER_CUBIC)
    return smooth + rng.normal(0, 5, smooth.shape).astype(np.float32)


def numbered_frame(index: int) -> np.ndarray:
    """Returns frame `index`, uint8 RGB [H, W, 3]: drifting texture, a moving disk, its number in stripes."""
    x, y = int(170 + 150 * np.sin(index / 40)), int(128 + 100 * np.cos(index / 33))
    frame = np.clip(background()[y:y + SIZE[1], x:x + SIZE[0]], 0, 255).astype(np.uint8)
    cv2.circle(frame, (int(170 + 100 * np.sin(index / 9)), int(140 + 80 * np.cos(index / 7))), 30, (200, 60, 30), -1)
    bits = np.repeat([255 * (index >> bit & 1) for bit in range(BITS)], 32)
    frame[:32, :32 * BITS] = bits[None, :, None]
    return frame


def frame_number(frame: np.ndarray) -> int:
    """Returns the number that a frame shows."""
    return sum(1 << bit for bit in range(BITS) if frame[16, 32 * bit + 16].mean() > 127)


def write_numbered_video(path: Path, codec: str, times: np.ndarray, **options: str) -> Path:
    """Writes the numbered frames, frame i at times[i] / 30 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for index in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(numbered_frame(index), format="rgb24")
            frame.pts, frame.time_base = int(times[index]), Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def read_by_index(path: str, start: int) -> list[np.ndarray]:
    return list(read_video(path, range(start, start + CLIP), NUM_FRAMES))


def read_from_start(path: str, start: int) -> list[np.ndarray]:
    return [frame for _, frame in itertools.islice(iterate_frames(path), start, start + CLIP)]


def read_opencv(path: str, start: int) -> list[np.ndarray]:
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    capture.set(cv2.CAP_PROP_POS_FRAMES, start)
    frames = [frame[..., ::-1] for good, frame in (capture.read() for _ in range(CLIP)) if good]
    capture.release()
    return frames


def torchcodec_readers() -> dict[str, Reader]:
    """Returns torchcodec's two seek modes; none, after printing why, where it does not load."""
    try:
        from torchcodec.decoders import VideoDecoder
    except ImportError:
        print("torchcodec: not installed\n")
        return {}
    except (OSError, RuntimeError):
        print("torchcodec: does not load here, as it needs FFmpeg's shared libraries on the machine\n")
        return {}

    def read(path: str, start: int, mode: str) -> list[np.ndarray]:
        decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=mode)
        return list(decoder.get_frames_in_range(start, min(start + CLIP, len(decoder))).data.numpy())

    return {f"torchcodec, {mode}": functools.partial(read, mode=mode) for mode in ("exact", "approximate")}


def count_right_clips(read: Reader, path: str, starts: list[int], expected: list[int]) -> str:
    """Returns how many clips have exactly the frames asked for, such as "12 of 12", or "an error"."""
    try:
        right = sum([frame_number(frame) for frame in read(path, start)] == expected[start:start + CLIP]
                    for start in starts)
    except (RuntimeError, IndexError):
        return "an error"
    return f"{right} of {len(starts)}"


def main() -> None:
    quick = quick_flag(__doc__)
    cv2.setNumThreads(0)
    readers = {OURS: read_by_index, "PyAV, from the start": read_from_start, "OpenCV": read_opencv, **torchcodec_readers()}
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root, even = Path(folder), np.arange(NUM_FRAMES)
        plain = write_numbered_video(root / "plain.mp4", "libx264", even)
        uneven = write_numbered_video(root / "uneven.mp4", "libx264", rng.integers(1, 9, NUM_FRAMES).cumsum())
        short_groups = write_numbered_video(root / "short_groups.mp4", "libx264", even, g="48")
        files = {"h264 in mp4": plain, "uneven times": uneven,
                 "begins without keyframe": copy(short_groups, root / "cut.mp4", 20),
                 "mpeg4 in avi": write_numbered_video(root / "xvid.avi", "mpeg4", even, bf="2", g="48")}
        starts = rng.integers(0, NUM_FRAMES - CLIP, 3 if quick else 25).tolist()
        jpegs = root / "jpegs"
        jpegs.mkdir()
        for index, (_, frame) in enumerate(iterate_frames(str(plain)), start=1):
            cv2.imwrite(str(jpegs / f"image_{index:05d}.jpg"), frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        jobs = {**readers, "JPEG folder": lambda _, start: read_frames(str(jpegs), start + np.arange(CLIP), NUM_FRAMES)}
        turns = {name: itertools.cycle(starts) for name in jobs}  # all jobs of a turn read the same clip
        seconds = time_in_turns(
            {name: lambda name=name: jobs[name](str(plain), next(turns[name])) for name in jobs}, len(starts))
        shown = {path: [frame_number(frame) for _, frame in iterate_frames(str(path))] for path in files.values()}
        rows = [[name, milliseconds(seconds[name]), f"{ratio(seconds[name], seconds[OURS]):.2f}",
                 *(count_right_clips(readers[name], str(path), [start % (len(numbers) - CLIP) for start in starts], numbers)
                   if name in readers else "-" for path, numbers in shown.items())] for name in jobs]
        print(format_table(["decoder", "ms a clip", "time / ours", *(f"right: {name}" for name in files)], rows))
        print(f"\nThe video file has {plain.stat().st_size / 1e6:.2f} MB, its JPEG folder "
              f"{sum(file.stat().st_size for file in jpegs.iterdir()) / 1e6:.2f} MB.")


if __name__ == "__main__":
    main()
