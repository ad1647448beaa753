"""Thousands of steps leave no more behind than the first hundreds: memory, open files, threads, processes, shared memory.

The run is the real one: its loop, objective, log, checkpoints and DataLoader; only the backbone is replaced by a tiny one,
and frames are stored in the smaller size to which they are cropped. It is started, stopped and resumed again and again in
one process, so that what a start leaves behind (DataLoader workers, log writers, data sets) would pile up. It has a process
of its own: this file, run as a program.
"""
from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

FRAME_SIZE = (48, 36)  # width, height in pixels
STARTS, EPOCHS_OF_A_START, STEPS_OF_AN_EPOCH = 5, 8, 50
QUANTITIES = ("memory_kb", "worker_memory_kb", "files", "threads", "processes", "shared_memory")
# Growth from the second start to the fifth, 1,200 steps later. Without a leak all but memory stayed exactly as they were,
# and memory (resident set) grew in four runs of this file by 1.1 MB at most, that of a DataLoader worker, which shares pages
# with it, by 4.1 MB. The bounds are that and a margin: a batch of clips (295 kB) kept in every 40th step, or 7 kB
# in each, is beyond it.
ALLOWED = {"memory_kb": 8_000, "worker_memory_kb": 16_000, "files": 0, "threads": 0, "processes": 0, "shared_memory": 0}


class TinyBackbone(nn.Module):
    """Three levels of 16 channels, at the same timestamps as the real backbones' and at 4, 2 and 1 positions a side."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = {"low": 16, "mid": 16, "high": 16}
        self.project = nn.ModuleDict({"low": nn.Conv3d(3, 16, 1), "mid": nn.Conv3d(16, 16, 1), "high": nn.Conv3d(16, 16, 1)})
        self.norm = nn.BatchNorm3d(16)

    def forward(self, clips: Tensor) -> object:
        """[M, 3, T, H, W] -> LevelFeatures."""
        from models.levels import LevelFeatures
        low = F.relu(self.norm(self.project["low"](F.avg_pool3d(clips, (2, clips.shape[3] // 4, clips.shape[4] // 4)))))
        mid = F.relu(self.project["mid"](F.avg_pool3d(low, 2)))
        return LevelFeatures(low, mid, self.project["high"](F.avg_pool3d(mid, 2)))


def measure() -> dict[str, int]:
    """What this process and its DataLoader workers hold."""
    gc.collect()
    own = str(os.getpid())
    workers = [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    maps = [line for pid in [own, *workers] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
            if "/dev/shm/" in line or "memfd:" in line]
    named = [name for name in os.listdir("/dev/shm") if any(pid in name.split("_") for pid in [own, *workers])]
    return {"memory_kb": resident_kb(own), "worker_memory_kb": max(map(resident_kb, workers)),
            "files": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in [own, *workers]),
            "threads": sum(len(os.listdir(f"/proc/{pid}/task")) for pid in [own, *workers]),
            "processes": len(workers), "shared_memory": len(maps) + len(named)}


def resident_kb(pid: str) -> int:
    """Memory of a process that is in use, in kB."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1])


def main(csv: str, out: str, starts: int, epochs: int, leak: bool) -> None:
    """The run; prints one line of JSON for each epoch: what is held then."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    import dataset.videos
    import models.multilevel
    import train
    from utils.pretraining_flags import parse_pretraining_flags
    from utils.launch import launch

    models.multilevel.BACKBONES["r3d10"] = TinyBackbone
    dataset.videos.PRETRAIN_FRAME_SIZE = FRAME_SIZE
    save, sync_step_status, kept = train.save, train.sync_step_status, []

    def measured_save(run: object) -> None:
        save(run)
        if run.progress.step == 0:
            print(json.dumps({**measure(), "step": run.progress.total_steps}), flush=True)

    def leaking_sync(*arguments: object) -> object:
        if random.random() < 0.1:
            threading.Thread(target=threading.Event().wait, daemon=True).start()
            kept.append([open(os.devnull), torch.zeros(1).share_memory_()])
        kept.append(os.urandom(300_000))
        return sync_step_status(*arguments)

    train.save = measured_save
    if leak:
        train.sync_step_status = leaking_sync
    torch.set_num_threads(1)
    for _ in range(starts):
        status = launch(train.pretrain, parse_pretraining_flags(
            f"--csv_file {csv} --out {out} --resume --net r3d10 --img_dim 32 --train_batch 2 --workers 1 --channel 8 "
            f"--cluster 6 --queue 6 --queue_start 1 --split 2 --epoch {starts * epochs} --stop_after {epochs} "
            f"--lr_decay 3 --log_every 10 --save_every 1000 --save_steps 50 --gpu none".split()), "train.py")
        assert status == 0


def write_csv(folder: Path) -> Path:
    """A csv of eight videos of 40 frames, each named again and again."""
    draw = np.random.default_rng(0)
    for number in range(8):
        (folder / f"v{number}").mkdir()
        for index in range(40):
            frame = cv2.resize(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8), FRAME_SIZE)
            assert cv2.imwrite(str(folder / f"v{number}" / f"image_{index + 1:05d}.jpg"), frame)
    csv = folder / "videos.csv"
    csv.write_text("".join(f"v{number % 8},40\n" for number in range(2 * STEPS_OF_AN_EPOCH)))
    return csv


def run(folder: Path, starts: int, epochs: int, leak: bool = False) -> list[dict[str, int]]:
    """What was held at the end of each epoch."""
    csv = write_csv(folder)
    result = subprocess.run(
        [sys.executable, __file__, str(csv), str(folder / "run"), str(starts), str(epochs), "leak" * leak], text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, capture_output=True)
    assert result.returncode == 0, result.stderr[-3000:]
    held = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert [line["step"] for line in held] == [STEPS_OF_AN_EPOCH * (n + 1) for n in range(starts * epochs)]
    return held


def growth(held: list[dict[str, int]], epochs: int) -> dict[str, int]:
    """By how much the last start's ends of epochs exceed the second start's, of each quantity, at their largest."""
    second, last = held[epochs:2 * epochs], held[-epochs:]
    return {name: max(line[name] for line in last) - max(line[name] for line in second) for name in QUANTITIES}


def beyond(grown: dict[str, int]) -> Iterator[str]:
    """Quantities that grew more than they may."""
    return (name for name in QUANTITIES if grown[name] > ALLOWED[name])


def test_two_thousand_steps_leave_nothing_behind(tmp_path):
    held = run(tmp_path, STARTS, EPOCHS_OF_A_START)
    assert len(held) * STEPS_OF_AN_EPOCH == 2000
    grown = growth(held, EPOCHS_OF_A_START)
    assert not list(beyond(grown)), grown


def test_leaks_are_found(tmp_path):
    """300 kB in each step; a file, a thread and a piece of shared memory in each tenth."""
    grown = growth(run(tmp_path, starts=3, epochs=1, leak=True), 1)
    assert {"memory_kb", "files", "threads", "shared_memory"} <= set(beyond(grown)), grown


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), bool(sys.argv[5]))
