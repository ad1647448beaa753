"""Clips of 32 frames read at random from one h264 video on one core: each decoder's time, and whose frames are right.

The video has 340x256 pixels and 300 frames, as x264 writes it by default: B-frames, a keyframe every 250 frames. Every frame
shows its number, so that a decoder that returns a neighboring frame is noticed; this is counted on more files: even and
uneven times between frames, packets before the first keyframe, and mpeg4 in avi. torchcodec takes part where it is installed
and finds FFmpeg's libraries.
"""
from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from benchmarks.measure import print_timed_table, run_benchmark
from benchmarks.videos import VIDEO_SIZE, video_frames, write_frame_folder
from dataset.frames import read_frames
from dataset.video_file import iterate_frames, read_video
from tests.texture_videos import copy, write

NUM_FRAMES, CLIP, BITS = 300, 32, 9
OURS = "PyAV, by packet index (ours)"
Reader = Callable[[str, int], list[np.ndarray]]  # (path, first frame) -> CLIP frames


def numbered_frames() -> list[np.ndarray]:
    """Returns uint8 RGB [H, W, 3], each with its number as BITS stripes of 32 px at the top."""
    frames = list(video_frames(NUM_FRAMES))
    for index, frame in enumerate(frames):
        frame[:32, :32 * BITS] = np.repeat([255 * (index >> bit & 1) for bit in range(BITS)], 32)[:, None]
    return frames


def frame_number(frame: np.ndarray) -> int:
    """Returns the number that a frame shows."""
    return sum(1 << bit for bit in range(BITS) if frame[16, 32 * bit + 16].mean() > 127)


def read_opencv(path: str, start: int) -> list[np.ndarray]:
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    capture.set(cv2.CAP_PROP_POS_FRAMES, start)
    frames = [frame[..., ::-1] for good, frame in (capture.read() for _ in range(CLIP)) if good]
    capture.release()
    return frames


READERS: dict[str, Reader] = {
    OURS: lambda path, start: list(read_video(path, range(start, start + CLIP), NUM_FRAMES)),
    "PyAV, from the start": lambda path, start: [
        frame for _, frame in itertools.islice(iterate_frames(path), start, start + CLIP)],
    "OpenCV": read_opencv,
}


def torchcodec_readers() -> dict[str, Reader]:
    """Returns torchcodec's two seek modes; none, after printing why, where it does not load."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        print("torchcodec: not installed\n" if isinstance(error, ImportError) else
              "torchcodec: does not load here, as it needs FFmpeg's shared libraries on the machine\n")
        return {}

    def read(path: str, start: int, mode: str) -> list[np.ndarray]:
        decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=mode)
        return list(decoder.get_frames_in_range(start, min(start + CLIP, len(decoder))).data.numpy())

    return {f"torchcodec, {mode}": functools.partial(read, mode=mode) for mode in ("exact", "approximate")}


def count_right_clips(read: Reader, path: str, starts: list[int]) -> str:
    """Returns how many clips have exactly the frames asked for, such as "12 of 12", or "an error"."""
    numbers = [frame_number(frame) for _, frame in iterate_frames(path)]
    starts = [start % (len(numbers) - CLIP) for start in starts]
    try:
        right = sum([*map(frame_number, read(path, start))] == numbers[start:start + CLIP] for start in starts)
    except (RuntimeError, IndexError):
        return "an error"
    return f"{right} of {len(starts)}"


def main(quick: bool, folder: Path) -> None:
    readers = {**READERS, **torchcodec_readers()}
    rng = np.random.default_rng(0)
    uneven = rng.integers(1, 9, NUM_FRAMES).cumsum().tolist()
    starts = rng.integers(0, NUM_FRAMES - CLIP, 3 if quick else 25).tolist()
    encode = functools.partial(write, size=VIDEO_SIZE, frames=numbered_frames())
    plain = encode(folder / "plain.mp4", "libx264")
    files = {"h264 in mp4": plain, "uneven times": encode(folder / "uneven.mp4", "libx264", times=uneven),
             "begins without keyframe": copy(encode(folder / "whole.mp4", "libx264", {"g": "48"}), folder / "cut.mp4", 20),
             "mpeg4 in avi": encode(folder / "xvid.avi", "mpeg4", {"bf": "2", "g": "48"})}
    jpegs = write_frame_folder(folder / "jpegs", (frame for _, frame in iterate_frames(str(plain))))
    jobs = {name: functools.partial(read, str(plain)) for name, read in readers.items()}
    jobs["JPEG folder"] = lambda start: read_frames(jpegs, start + np.arange(CLIP), NUM_FRAMES)
    turns = {name: itertools.cycle(starts) for name in jobs}  # all jobs of a turn read the same clip
    print_timed_table(
        ["decoder", "ms a clip", "time / ours", *(f"right: {name}" for name in files)],
        {name: lambda name=name: jobs[name](next(turns[name])) for name in jobs}, len(starts), OURS,
        lambda name, _, ratio: [f"{1 / ratio:.2f}", *(
            count_right_clips(readers[name], str(path), starts) if name in readers else "-" for path in files.values())])
    print(f"The video file has {plain.stat().st_size / 1e6:.2f} MB, its JPEG folder "
          f"{sum(file.stat().st_size for file in Path(jpegs).iterdir()) / 1e6:.2f} MB.")


if __name__ == "__main__":
    run_benchmark(main, __doc__)
