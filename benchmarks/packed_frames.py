"""Frames read at random from packed shards against loose files, on one core.

The frames are 200x150 JPEGs in folders of 64; each sample is another video. Reading is measured alone and with decoding,
with the files in the page cache: what is left is the work of finding and reading them. A disk or network file system that
must be asked for each loose file favors shards more than this shows.

"Many shards" are hard links to one of 1,000 videos, each drawn at random: as many files to open and videos to find as in a
large data set, and more than a process keeps open, without its frames.
"""
from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path

import numpy as np

from benchmarks.measure import milliseconds, print_table, ratio, run_benchmark, time_in_turns
from benchmarks.videos import video_frames, write_frame_folder
from dataset.frames import locate_video, read_folder, read_frames
from dataset.packed import open_shard, read_packed
from scripts.pack_frames import main as pack_frames

VIDEO_FRAMES = 64
SAMPLES = {"1 frame: read": (1, False), "32 frames: read": (32, False), "32 frames: read and decode": (32, True)}


def main(quick: bool, folder: Path) -> None:
    num_videos, num_shards, turns, per_turn = (40, 30, 3, 5) if quick else (1000, 1000, 21, 40)
    loose, names = folder / "loose", [f"v{video:05d}" for video in range(num_videos)]
    first = write_frame_folder(loose / names[0], video_frames(VIDEO_FRAMES, (200, 150)))
    for name in names[1:]:
        shutil.copytree(first, loose / name, copy_function=shutil.copyfile)
    (loose / "videos.csv").write_text("".join(f"{name},{VIDEO_FRAMES}\n" for name in names))
    with contextlib.redirect_stdout(io.StringIO()):
        pack_frames([str(loose / "videos.csv"), str(folder / "packed"), "--per_shard", str(num_videos)])
    [shard] = (folder / "packed").glob("*.tar")
    shards = [shard] + [folder / f"{number}.tar" for number in range(1, num_shards)]
    for path in shards[1:]:
        path.hardlink_to(shard)
    videos = {"loose files": [f"{loose}/{name}" for name in names], "1 shard": [f"{shard}/{name}" for name in names],
              f"{num_shards} shards": [f"{path}/{name}" for path in shards for name in names]}
    rngs = {(sample, way): np.random.default_rng(0) for sample in SAMPLES for way in videos}

    def read_random(sample: str, way: str) -> None:
        (num_frames, decode), rng = SAMPLES[sample], rngs[sample, way]
        for _ in range(per_turn):
            path = videos[way][rng.integers(len(videos[way]))]
            indices = np.sort(rng.choice(VIDEO_FRAMES, num_frames, replace=False))
            if decode:
                read_frames(path, indices, VIDEO_FRAMES)
            elif (stored := locate_video(path)).kind == "packed":
                list(read_packed(stored.path, stored.inner, indices, VIDEO_FRAMES))
            else:
                list(read_folder(path, indices, VIDEO_FRAMES))

    seconds = time_in_turns({key: lambda key=key: read_random(*key) for key in rngs}, turns, units=per_turn)
    rows = [(sample, [seconds[sample, way] for way in videos]) for sample in SAMPLES]
    print_table(["a random video's", *(f"{way}, ms" for way in videos), f"loose / {num_shards} shards"],
                [[sample, *map(milliseconds, times), f"{ratio(times[0], times[-1]):.2f}"] for sample, times in rows])
    print(f"{num_videos * VIDEO_FRAMES:,} loose files became 1 shard; "
          f"a process keeps at most {open_shard.cache_parameters()['maxsize']} open.")


if __name__ == "__main__":
    run_benchmark(main, __doc__)
