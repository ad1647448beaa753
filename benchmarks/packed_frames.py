"""Samples of 32 frames read at random from packed shards against loose files, on one core.

    python -m benchmarks.packed_frames [--quick]

The frames are 200x150 JPEGs in folders of 64; each sample is another video. Reading is measured alone and
with decoding, with the files in the page cache: what is left is the work of finding and reading them. A disk
or network file system that must be asked for each loose file favors shards more than this shows.
"""
from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

import cv2
import numpy as np

from benchmarks.measure import milliseconds, quick_flag, ratio, table, time_in_turns
from dataset.decode import read_frames
from dataset.frame_folder import read_folder
from dataset.packed import read_packed, split_reference
from dataset.records import VideoRecord, read_records
from scripts.pack_frames import main as pack

VIDEO_FRAMES, SAMPLE = 64, 32


def write_folders(root: Path, num_videos: int) -> Path:
    """Writes folders of noise over a drifting pattern, and their csv, whose path it returns."""
    rng = np.random.default_rng(0)
    base = cv2.resize(
        rng.normal(128, 50, (20, 30, 3)).astype(np.float32), (400, 300), interpolation=cv2.INTER_CUBIC
    )
    pictures = []
    for index in range(VIDEO_FRAMES):
        frame = base[index : index + 150, index : index + 200] + rng.normal(0, 6, (150, 200, 3))
        pictures.append(cv2.imencode(".jpg", np.clip(frame, 0, 255).astype(np.uint8))[1].tobytes())
    for video in range(num_videos):
        folder = root / f"v{video:05d}"
        folder.mkdir(parents=True)
        for index, data in enumerate(pictures, start=1):
            (folder / f"image_{index:05d}.jpg").write_bytes(data)
    path = root / "videos.csv"
    path.write_text("".join(f"v{video:05d},{VIDEO_FRAMES}\n" for video in range(num_videos)))
    return path


def main() -> None:
    quick = quick_flag(__doc__)
    cv2.setNumThreads(0)
    num_videos, turns, per_turn = (40, 3, 5) if quick else (1000, 21, 40)
    with tempfile.TemporaryDirectory() as folder:
        loose_csv = write_folders(Path(folder, "loose"), num_videos)
        with contextlib.redirect_stdout(io.StringIO()):
            pack([str(loose_csv), str(Path(folder, "packed")), "--per_shard", str(num_videos // 8)])
        records = {
            "loose files": read_records(loose_csv, labelled=False),
            "shards": read_records(Path(folder, "packed", "videos.csv"), labelled=False),
        }
        draws = {
            name: np.random.default_rng(0)
            for name in [f"{a} {b}" for a in records for b in ("read", "decode")]
        }

        def sample(name: str, decode: bool) -> None:
            rng = draws[f"{name} {'decode' if decode else 'read'}"]  # the same videos and frames for each job
            for _ in range(per_turn):
                video: VideoRecord = records[name][rng.integers(num_videos)]
                indices = np.sort(rng.choice(VIDEO_FRAMES, SAMPLE, replace=False))
                if decode:
                    read_frames(video.path, indices, VIDEO_FRAMES)
                else:
                    place = split_reference(video.path)
                    list(
                        read_packed(*place, indices, VIDEO_FRAMES)
                        if place
                        else read_folder(video.path, indices, VIDEO_FRAMES)
                    )

        jobs = {
            f"{name} {what}": (lambda name=name, decode=what == "decode": sample(name, decode))
            for what in ("read", "decode")
            for name in records
        }
        seconds = time_in_turns(jobs, turns)
        rows = []
        for what, title in (("read", "read"), ("decode", "read and decode")):
            loose, shards = ([value / per_turn for value in seconds[f"{name} {what}"]] for name in records)
            rows.append([title, milliseconds(loose), milliseconds(shards), f"{ratio(loose, shards):.2f}"])
        print(table(["32 frames", "loose files, ms", "shards, ms", "loose / shards"], rows))
        files = sum(1 for path in Path(folder, "loose").rglob("*.jpg"))
        print(f"\n{files:,} loose files became {len(list(Path(folder, 'packed').iterdir()))}.")


if __name__ == "__main__":
    main()
