"""How cost grows with --sample, --seq, the gathered videos N, the prototypes K, the processes, and the csv's rows."""
from __future__ import annotations

import os
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from benchmarks.input import MAX_STRIDE
from benchmarks.measure import memory_mib, milliseconds, print_table, run_benchmark, run_python, time_in_turns
from benchmarks.objective import GatheredVideos
from benchmarks.step import IMG_DIM, BenchmarkStep
from benchmarks.videos import video_frames, write_frame_folder
from dataset.records import VideoRecord, read_packed_records, usable_for_pretraining
from dataset.videos import PretrainVideos

SMALL_PX = 56  # side of the clips of the steps timed here


def print_clips(quick: bool, folder: Path) -> None:
    """Prints cost against --sample and --seq: of a pretraining sample, and of a step of r3d10 on two videos."""
    rows = []
    records = [VideoRecord(write_frame_folder(folder / "video", video_frames(200)), 200)]
    for num_clips, clip_frames in [(2, 16), (2, 32)] if quick else [(2, 16), (2, 32), (2, 64), (3, 24), (4, 32)]:
        videos = PretrainVideos(records, num_clips, clip_frames, MAX_STRIDE, IMG_DIM, 0)
        model = BenchmarkStep("r3d10", 2, num_clips=num_clips, clip_frames=clip_frames, img_dim=SMALL_PX)
        sample, step = time_in_turns({"sample": lambda: videos[0, 0], "step": lambda: model.backward("float32")},
                                     1 if quick else 3).values()
        rows.append([f"--sample {num_clips} --seq {clip_frames}", num_clips * clip_frames, (num_clips + 1) * clip_frames,
                     milliseconds(sample), milliseconds(step)])
    print_table(["clips", "frames decoded", "frames in views", "ms a sample",
                 f"ms a step, r3d10, 2 videos at {SMALL_PX} px"], rows)


def print_objective(quick: bool) -> None:
    """Prints cost against N and K, 64 of the videos local, with a full queue of 1024 rows."""
    rows = []
    for videos, prototypes in [(64, 1000), (512, 1000)] if quick else [
            (64, 1000), (256, 1000), (512, 1000), (1024, 1000), (512, 200), (512, 3000)]:
        batch = GatheredVideos(all_videos=videos, prototypes=prototypes, rank=0)
        seconds = time_in_turns({"objective": lambda: batch.ours().backward()}, 3 if quick else 7)["objective"]
        rows.append([videos, prototypes, f"{batch.older.nbytes / 2**20:.1f}", milliseconds(seconds)])
    print_table(["N", "K", "MiB of queue", "ms forward and backward"], rows)


def time_steps_of_rank(rank: int, num_processes: int, folder: Path, turns: int) -> None:
    """Times training steps on four videos as one of several processes; saves the median seconds in `folder`."""
    torch.set_num_threads(1)
    step = BenchmarkStep("r3d10", 4, img_dim=SMALL_PX, rank=rank)
    if num_processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_processes)
        step.train_model = DistributedDataParallel(step.model, gradient_as_bucket_view=True)
    seconds = time_in_turns({"step": lambda: step.backward("float32")}, turns, time.perf_counter)["step"]
    np.save(folder / f"{num_processes}_{rank}.npy", np.median(seconds))
    if num_processes > 1:
        dist.destroy_process_group()


def print_processes(quick: bool, folder: Path) -> None:
    """Prints the speed of 1 and 2 processes, each with its own four videos and one thread."""
    rows, alone = [], 0.0
    for processes in (1, 2):
        mp.spawn(time_steps_of_rank, args=(processes, folder, 1 if quick else 8), nprocs=processes)
        seconds = max(np.load(path).item() for path in folder.glob(f"{processes}_*.npy"))
        speed = 4 * processes / seconds
        alone = alone or speed
        rows.append([processes, f"{1000 * seconds:.0f}", f"{speed:.2f}", f"{speed / alone / processes:.0%}"])
    print_table(["processes", f"ms a step, r3d10, 4 videos each at {SMALL_PX} px", "videos/s", "of linear"], rows)


def print_csv(folder: Path) -> None:
    """Prints time and memory of reading a csv: in the training process, and in a forked worker that has used every row."""
    path, num_rows = folder / "videos.csv", 240_000  # about Kinetics-400's training set
    name = "/datasets/kinetics400/frames/train/playing_harmonica/{:011d}_000017_000027,{}\n"
    path.write_text("".join(name.format(row, 200 + row % 100) for row in range(num_rows)))
    bare, *figures = run_python(f"from benchmarks.growth import measure_csv; measure_csv({str(path)!r})")
    print_table(["csv rows", "s to read", "MiB in the training process", "MiB of its own in a worker",
                 "of these without any rows"], [[f"{num_rows:,}", *figures, bare]])


def measure_csv(path: str) -> None:
    """Prints the figures of `print_csv` in a new process, those of a worker without any rows first."""
    print_worker_mib([])
    before, begin = memory_mib("VmRSS"), time.perf_counter()
    records, _ = usable_for_pretraining(read_packed_records(path, labelled=False), 2, 16, path)
    print(f"{time.perf_counter() - begin:.2f} {memory_mib('VmRSS') - before:.0f}", flush=True)
    print_worker_mib(records)


def print_worker_mib(records: list[VideoRecord]) -> None:
    """Prints the memory that a forked process does not share after it has used every record, in any order."""
    if child := os.fork():
        os.waitpid(child, 0)
        return
    for index in random.sample(range(len(records)), len(records)):
        _ = records[index].path, records[index].num_frames
    print(f"{memory_mib('Private_Dirty', '/proc/self/smaps_rollup'):.0f}", flush=True)
    os._exit(0)


def main(quick: bool, folder: Path) -> None:
    print_clips(quick, folder)
    print_objective(quick)
    print_processes(quick, folder)
    print_csv(folder)


if __name__ == "__main__":
    run_benchmark(main, __doc__)
