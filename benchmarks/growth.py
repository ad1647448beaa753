"""How cost grows with --sample, --seq, the gathered videos N, the prototypes K, the processes, and the csv's rows."""
from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from benchmarks import scale
from benchmarks.input import MAX_STRIDE
from benchmarks.measure import memory_mib, milliseconds, peak_mib, print_table, run_benchmark, run_python, time_in_turns
from benchmarks.objective import GatheredVideos
from benchmarks.step import IMG_DIM, BenchmarkStep
from benchmarks.videos import video_frames, write_frame_folder
from dataset.records import PackedRecords, VideoRecord, read_packed_records, usable_for_pretraining
from dataset.videos import EpochBatchSampler, PretrainVideos
from utils.distributed import DistContext, average, true_on_any_rank

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


def print_objective(quick: bool) -> float:
    """Prints cost against N and K, 64 of the videos local, with a full queue of 1024 rows, and the model's milliseconds.

    Returns the model's rate, in bytes a second: that of 512 videos and 1000 prototypes.
    """
    rows, rate = [], 0.0
    for videos, prototypes in [(512, 1000), (64, 1000)] if quick else [
            (512, 1000), (64, 1000), (256, 1000), (1024, 1000), (4096, 1000), (32768, 1000), (512, 200), (512, 3000)]:
        batch = GatheredVideos(all_videos=videos, prototypes=prototypes, rank=0)
        turns = 1 if videos > 4096 else 3 if quick else 7
        seconds = time_in_turns({"objective": lambda: batch.ours().backward()}, turns)["objective"]
        moved = scale.objective_bytes(64, videos, prototypes)
        rate = rate or moved / statistics.median(seconds)
        setup = (f"from benchmarks.objective import GatheredVideos\n"
                 f"batch = GatheredVideos(all_videos={videos}, prototypes={prototypes}, rank=0)")
        rows.append([videos, prototypes, f"{batch.older.nbytes / 2**20:.1f}", milliseconds(seconds),
                     milliseconds([moved / rate]), f"{peak_mib(setup, 'batch.ours().backward()'):.0f}"])
    print_table(["N", "K", "MiB of queue", "ms forward and backward", "ms by the model", "peak MiB"], rows)
    return rate


def time_steps_of_rank(rank: int, num_processes: int, folder: Path, turns: int) -> None:
    """Times training steps on four videos as one of several processes; saves the median seconds in `folder`.

    So also an exchange of three values and the average of 32 MB.
    """
    torch.set_num_threads(1)
    step = BenchmarkStep("r3d10", 4, img_dim=SMALL_PX, rank=rank)
    context = DistContext(rank, num_processes, torch.device("cpu"))
    if num_processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous{num_processes}", rank=rank,
                                world_size=num_processes)
        step.train_model = DistributedDataParallel(step.model, gradient_as_bucket_view=True)
    large = torch.zeros(8_000_000)
    jobs = {"step": lambda: (step.backward("float32"), true_on_any_rank([False] * 3, context)),
            "status": lambda: [true_on_any_rank([False] * 3, context) for _ in range(100)], "sum": lambda: average(large)}
    seconds = time_in_turns(jobs, turns, time.perf_counter)
    np.save(folder / f"{num_processes}_{rank}.npy", [np.median(times) for times in seconds.values()])
    if num_processes > 1:
        dist.destroy_process_group()


def print_processes(quick: bool, folder: Path, rate: float) -> None:
    """Prints the speed of 1, 2 and 4 processes, each with its own four videos and one thread, and the model's.

    The model's rates are those of one process, and of messages between two. `rate`: of the objective.
    """
    rows, machine = [], scale.Machine(0, rate, 1, 0, 0, os.cpu_count(), overlap=False)
    for processes in (1, 2, 4):
        mp.spawn(time_steps_of_rank, args=(processes, folder, 1 if quick else 8), nprocs=processes)
        step, status, large = np.max([np.load(path) for path in folder.glob(f"{processes}_*.npy")], axis=0).tolist()
        if processes == 1:
            alone = step
            machine = machine._replace(compute_s_a_video=(step - scale.objective_bytes(4, 4) / rate) / 4)
        elif processes == 2:
            hop = status / 100
            machine = machine._replace(hop_s=hop, control_hop_s=hop, link_bytes_s=32e6 / large)
        parts = scale.step_seconds(machine, "r3d10", 4, processes, sync_batch_norm=False)
        rows.append([processes, f"{1000 * step:.0f}", f"{1000 * sum(parts.values()):.0f}", f"{4 * processes / step:.2f}",
                     f"{alone / step:.0%}", *(f"{1000 * parts[name]:.1f}" for name in list(parts)[1:4])])
    print_table(["processes", f"ms a step, r3d10, 4 videos each at {SMALL_PX} px", "ms by the model", "videos/s",
                 "of linear", *(f"model's ms: {name}" for name in list(parts)[1:4])], rows)
    print(f"{os.cpu_count()} cores. Between two processes: {machine.link_bytes_s / 1e6:.0f} MB/s, "
          f"{1e6 * machine.hop_s:.0f} µs a hop.\n")


def print_csv(quick: bool, folder: Path) -> None:
    """Prints time and memory of reading a csv: in the training process, and in a forked worker that has used every row."""
    path, rows = folder / "videos.csv", []
    name = "/datasets/kinetics400/frames/train/playing_harmonica/{:011d}_000017_000027,{}\n"
    for num_rows in (240_000,) if quick else (240_000, 10_000_000):  # the first: about Kinetics-400's training set
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(name.format(row, 200 + row % 100) for row in range(num_rows))
        bare, *figures = run_python(f"from benchmarks.growth import measure_csv; measure_csv({str(path)!r})")
        rows.append([f"{num_rows:,}", *figures, bare])
    print_table(["csv rows", "s to read", "MiB in the training process", "MiB at the peak", "s to draw an epoch's order",
                 "MiB of its own in a worker", "of these without any rows"], rows)


def measure_csv(path: str) -> None:
    """Prints the figures of `print_csv` in a new process, those of a worker without any rows first."""
    print_worker_mib(PackedRecords())
    before, begin = memory_mib("VmRSS"), time.perf_counter()
    records, _ = usable_for_pretraining(read_packed_records(path, labelled=False), 2, 16, path)
    end = time.perf_counter()
    print(f"{end - begin:.1f} {memory_mib('VmRSS') - before:.0f} {memory_mib('VmHWM') - before:.0f}", flush=True)
    next(iter(EpochBatchSampler(len(records), 64, 0, 1, 0)))
    print(f"{time.perf_counter() - end:.2f}", flush=True)
    print_worker_mib(records)


def print_worker_mib(records: PackedRecords) -> None:
    """Prints the memory that a forked process does not share after it has used every record, in any order."""
    if child := os.fork():
        os.waitpid(child, 0)
        return
    for index in np.random.default_rng(0).permutation(len(records)):
        _ = records[index]
    print(f"{memory_mib('Private_Dirty', '/proc/self/smaps_rollup'):.0f}", flush=True)
    os._exit(0)


def main(quick: bool, folder: Path) -> None:
    print_clips(quick, folder)
    rate = print_objective(quick)
    print_processes(quick, folder, rate)
    print_csv(quick, folder)


if __name__ == "__main__":
    run_benchmark(main, __doc__)
