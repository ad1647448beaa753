"""Frames read at random from packed shards against loose files, on one core.

    python -m benchmarks.packed_frames [--quick]

The frames are 200x150 JPEGs in folders of 64; each sample is another video. Reading is measured alone and with decoding,
with the files in the page cache: what is left is the work of finding and reading them. A disk or network file system that
must be asked for each loose file favors shards more than this shows.

"Many shards" are hard links to one of 1,000 videos, each drawn at random: as many files to open and videos to find as in a
large data set, and more than a process keeps open, without its frames.
"""
from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

import cv2
import numpy as np

from benchmarks.measure import format_table, milliseconds, quick_flag, ratio, time_in_turns
from dataset.frames import read_folder, read_frames, split_packed_path
from dataset.packed import open_shard, read_packed
from scripts.pack_frames import main as pack_frames

VIDEO_FRAMES, SAMPLE = 64, 32
SAMPLES = {"1 frame: read": (1, False), "32 frames: read": (SAMPLE, False), "32 frames: read and decode": (SAMPLE, True)}


def write_folders(root: Path, num_videos: int) -> Path:
    """Writes frame folders of noise over a drifting pattern, and their csv, whose path it returns."""
    rng = np.random.default_rng(0)
    base = cv2.resize(rng.normal(128, 50, (20, 30, 3)).astype(np.float32), (400, 300), interpolation=cv2.INTER_CUBIC)
    images = []
    for index in range(VIDEO_FRAMES):
        frame = base[index:index + 150, index:index + 200] + rng.normal(0, 6, (150, 200, 3))
        images.append(cv2.imencode(".jpg", np.clip(frame, 0, 255).astype(np.uint8))[1].tobytes())
    for video in range(num_videos):
        folder = root / f"v{video:05d}"
        folder.mkdir(parents=True)
        for index, data in enumerate(images, start=1):
            (folder / f"image_{index:05d}.jpg").write_bytes(data)
    path = root / "videos.csv"
    path.write_text("".join(f"v{video:05d},{VIDEO_FRAMES}\n" for video in range(num_videos)))
    return path


def read_sample(path: str, indices: np.ndarray, decode: bool) -> None:
    """Reads frames of a frame folder or packed video."""
    if decode:
        read_frames(path, indices, VIDEO_FRAMES)
        return
    packed = split_packed_path(path)
    list(read_packed(*packed, indices, VIDEO_FRAMES) if packed else read_folder(path, indices, VIDEO_FRAMES))


def main() -> None:
    quick = quick_flag(__doc__)
    cv2.setNumThreads(0)
    num_videos, num_shards, turns, per_turn = (40, 30, 3, 5) if quick else (1000, 1000, 21, 40)
    with tempfile.TemporaryDirectory() as folder:
        loose_csv = write_folders(Path(folder, "loose"), num_videos)
        with contextlib.redirect_stdout(io.StringIO()):
            pack_frames([str(loose_csv), str(Path(folder, "packed")), "--per_shard", str(num_videos)])
        [shard] = Path(folder, "packed").glob("*.tar")
        shards = [shard] + [Path(folder, f"{number}.tar") for number in range(1, num_shards)]
        for path in shards[1:]:
            path.hardlink_to(shard)
        names = [f"v{video:05d}" for video in range(num_videos)]
        videos = {"loose files": [f"{folder}/loose/{name}" for name in names],
                  "1 shard": [f"{shard}/{name}" for name in names],
                  f"{num_shards} shards": [f"{path}/{name}" for path in shards for name in names]}
        generators = {(sample, way): np.random.default_rng(0) for sample in SAMPLES for way in videos}

        def read_random(sample: str, way: str) -> None:
            (num_frames, decode), rng = SAMPLES[sample], generators[sample, way]
            for _ in range(per_turn):
                path = videos[way][rng.integers(len(videos[way]))]
                read_sample(path, np.sort(rng.choice(VIDEO_FRAMES, num_frames, replace=False)), decode)

        seconds = time_in_turns({key: lambda key=key: read_random(*key) for key in generators}, turns)
    rows = []
    for sample in SAMPLES:
        times = [[value / per_turn for value in seconds[sample, way]] for way in videos]
        rows.append([sample, *map(milliseconds, times), f"{ratio(times[0], times[-1]):.2f}"])
    print(format_table(["a random video's", *(f"{way}, ms" for way in videos), f"loose / {num_shards} shards"], rows))
    print(f"\n{num_videos * VIDEO_FRAMES:,} loose files became 1 shard; "
          f"a process keeps at most {open_shard.cache_parameters()['maxsize']} open.")


if __name__ == "__main__":
    main()
