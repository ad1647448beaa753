"""How cost grows with --sample, --seq, the gathered videos N, the prototypes K, the processes, and the csv's rows.

    python -m benchmarks.growth [--quick]
"""
from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from benchmarks.input import IMG_DIM, MAX_STRIDE, write_video
from benchmarks.measure import format_table, memory_mib, milliseconds, quick_flag, time_in_turns
from benchmarks.objective import random_output
from dataset.records import VideoRecord, read_records, usable_for_pretraining
from dataset.videos import PretrainVideos
from models.multilevel import MultiLevelModel
from models.objective import Objective
from utils.distributed import gather_rows

SMALL_PX = 56        # side of the clips of the steps timed here
CSV_ROWS = 240_000   # about Kinetics-400's training set
CSV_PATH = "/datasets/kinetics400/frames/train/playing_harmonica/{:011d}_000017_000027"


def print_clips(quick: bool) -> None:
    """Prints cost against --sample and --seq: of a pretraining sample, and of a step of r3d10 on two videos."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        records = [VideoRecord(write_video(Path(folder) / "video", (340, 256), 0, num_frames=200), 200)]
        for num_clips, clip_frames in [(2, 16), (2, 32)] if quick else [(2, 16), (2, 32), (2, 64), (3, 24), (4, 32)]:
            videos = PretrainVideos(records, num_clips, clip_frames, MAX_STRIDE, IMG_DIM, 0)
            model, objective = MultiLevelModel("r3d10").train(), Objective(graph_start_epoch=0)
            clips = torch.randn(2, num_clips + 1, 3, clip_frames, SMALL_PX, SMALL_PX)
            seconds = time_in_turns({"sample": lambda: videos[0, 0],
                                     "step": lambda: objective(model(clips), 0, lambda x: x, 0).total.backward()},
                                    1 if quick else 3)
            rows.append([f"--sample {num_clips} --seq {clip_frames}", num_clips * clip_frames,
                         (num_clips + 1) * clip_frames, milliseconds(seconds["sample"]), milliseconds(seconds["step"])])
    print(format_table(["clips", "frames decoded", "frames in views", "ms a sample",
                        f"ms a step, r3d10, 2 videos at {SMALL_PX} px"], rows))


def print_objective(quick: bool) -> None:
    """Prints cost against N and K, 64 of the videos local, with a full queue of 1024 rows."""
    rows = []
    for videos, prototypes in [(64, 1000), (512, 1000)] if quick else [
            (64, 1000), (256, 1000), (512, 1000), (1024, 1000), (512, 200), (512, 3000)]:
        local, remote = random_output(64, prototypes), random_output(videos - 64, prototypes)
        others = torch.stack([x.detach() for x in (*remote.instance, *remote.graph_embeddings)], dim=1)
        objective = Objective(graph_start_epoch=0, queue_start_epoch=0)
        older = torch.rand(1024, 2, prototypes) * 2 - 1

        def forward_and_backward() -> None:
            objective.queue.rows = older
            objective(local, 0, lambda x: torch.cat([x, others if x.ndim == 4 else remote.scores.detach()]),
                      0).total.backward()

        seconds = time_in_turns({"objective": forward_and_backward}, 3 if quick else 7)["objective"]
        rows.append([videos, prototypes, f"{4 * 1024 * 2 * prototypes / 2**20:.1f}", milliseconds(seconds)])
    print("\n" + format_table(["N", "K", "MiB of queue", "ms forward and backward"], rows))


def time_steps_of_rank(rank: int, num_processes: int, folder: str, turns: int) -> None:
    """Runs training steps as one of several processes; writes their median seconds into `folder`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = MultiLevelModel("r3d10").train()
    if num_processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous{num_processes}", rank=rank,
                                world_size=num_processes)
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)
    objective, clips = Objective(graph_start_epoch=0), torch.randn(4, 3, 3, 16, SMALL_PX, SMALL_PX)
    seconds = time_in_turns({"step": lambda: objective(model(clips), 0, gather_rows, rank).total.backward()}, turns,
                            time.perf_counter)["step"]
    Path(folder, f"{num_processes}_{rank}").write_text(str(statistics.median(seconds)))
    if num_processes > 1:
        dist.destroy_process_group()


def print_processes(quick: bool) -> None:
    """Prints the speed of 1 and 2 processes, each with its own four videos and one thread."""
    rows, alone = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for processes in (1, 2):
            mp.spawn(time_steps_of_rank, args=(processes, folder, 1 if quick else 8), nprocs=processes)
            seconds = max(float(Path(folder, f"{processes}_{rank}").read_text()) for rank in range(processes))
            speed = 4 * processes / seconds
            alone = alone or speed
            rows.append([processes, f"{1000 * seconds:.0f}", f"{speed:.2f}", f"{speed / alone / processes:.0%}"])
    header = ["processes", f"ms a step, r3d10, 4 videos each at {SMALL_PX} px", "videos/s", "of linear"]
    print("\n" + format_table(header, rows))


def print_csv(rows: int) -> None:
    """Prints time and memory of reading a csv: in the training process, and in a forked worker that has used every row."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "videos.csv")
        path.write_text("".join(f"{CSV_PATH.format(i)},{200 + i % 100}\n" for i in range(rows)))
        code = f"from benchmarks.growth import measure_csv; measure_csv({str(path)!r})"
        figures = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    print("\n" + format_table(["csv rows", "s to read", "MiB in the training process", "MiB of its own in a worker",
                               "of these without any rows"], [[f"{rows:,}", *figures]]))


def measure_csv(path: str) -> None:
    """Prints the figures of `print_csv`, in a new process."""
    bare = worker_mib([])
    before, begin = memory_mib("VmRSS"), time.perf_counter()
    records, _ = usable_for_pretraining(read_records(path, labelled=False), 2, 16, path)
    seconds, after = time.perf_counter() - begin, memory_mib("VmRSS")
    print(f"{seconds:.2f} {after - before:.0f} {worker_mib(records):.0f} {bare:.0f}")


def worker_mib(records: list[VideoRecord]) -> float:
    """Returns the memory that a forked process does not share after it has used every record, in any order."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        for index in random.sample(range(len(records)), len(records)):
            _ = records[index].path, records[index].num_frames
        os.write(writing, str(memory_mib("Private_Dirty", "/proc/self/smaps_rollup")).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return float(os.read(reading, 64))


def main() -> None:
    quick = quick_flag(__doc__)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    print_clips(quick)
    print_objective(quick)
    print_processes(quick)
    print_csv(CSV_ROWS)


if __name__ == "__main__":
    main()
