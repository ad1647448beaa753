"""Kill a pretraining run at random moments, resume it each time, and compare its end with that of an uninterrupted run.

    python tests/robustness/kill_and_resume.py --kills 200
    python tests/robustness/kill_and_resume.py --kills 100 --processes 2

Every kill is a SIGKILL to all processes of the run, also in the middle of a step or of writing a checkpoint. At the end
weights, optimizer, queue, random states and log must be the same, bit for bit; the exit status is 1 if they are not. The run
is small (r3d10, 8 videos of 32 px, half of them with swapped backgrounds, a checkpoint every step), on the CPU.
"""
from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as `python tests/robustness/kill_and_resume.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch

from train import pretrain
from utils.checkpoint import checkpoint_path, read_checkpoint
from utils.cli import OneLineParser
from utils.pretraining_flags import parse_pretraining_flags
from utils.launch import launch

EPOCHS = 3
SMALL_RUN = ("--resume --net r3d10 --img_dim 32 --train_batch 2 --swap_background 0.5 --workers 1 --channel 8 --cluster 6 "
             "--queue 6 --queue_start 1 --split 2 --lr_decay 2 --log_every 1 --save_steps 1 --gpu none").split()
CLOCK_VALUES = ("samples_per_s", "data_wait")
LONGEST_LIFE = 0.6  # of what the whole run takes


def write_videos(folder: Path, num_videos: int = 8) -> Path:
    """A csv of small videos of 40 frames, 64x48 px, without labels."""
    draw = np.random.default_rng(0)
    for number in range(num_videos):
        (folder / f"v{number}").mkdir(parents=True)
        base = cv2.resize(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8), (64, 48))
        for index in range(40):
            cv2.imwrite(str(folder / f"v{number}" / f"image_{index + 1:05d}.jpg"), np.roll(base, index * number, axis=1))
    csv = folder / "videos.csv"
    csv.write_text("".join(f"v{number},40\n" for number in range(num_videos)))
    return csv


def start(csv: Path, out: Path, processes: int) -> list[int]:
    """Process ids of a run in `out`, begun or resumed; they are forked, so that torch is imported once."""
    port = random.randrange(20000, 30000)  # below the ports that connections are given by themselves
    pids = []
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            if processes > 1:
                os.environ |= {"TORCHELASTIC_RUN_ID": "torture", "RANK": str(rank), "LOCAL_RANK": str(rank),
                               "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            status = 1
            try:
                output = os.open(out.parent / f"{out.name}.{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(output, 1)
                os.dup2(output, 2)
                flags = parse_pretraining_flags([*SMALL_RUN, *(
                    f"--csv_file {csv} --out {out} --epoch {EPOCHS} --save_every 100 --dist_timeout 60".split())])
                status = launch(pretrain, flags, "train.py")
            finally:  # never into the code of the process that was forked
                os._exit(status)
        pids.append(pid)
    return pids


def wait_for_end(pids: list[int]) -> list[int]:
    """Exit statuses of the processes, in order; minus the signal for one that was killed."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def run_to_end(csv: Path, out: Path, processes: int) -> None:
    """Begin or resume, and wait until it is done."""
    statuses = wait_for_end(start(csv, out, processes))
    if any(statuses):
        raise SystemExit(f"the run ended with {statuses}:\n" + (out.parent / f"{out.name}.0.txt").read_text()[-2000:])


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) of everything inside a checkpoint."""
    if isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{prefix}/{key}")
    else:
        yield prefix, value


def differences(a: Path, b: Path, epochs: int = EPOCHS) -> list[str]:
    """Names of all in which two finished runs of `epochs` differ: entries of the last checkpoint, lines of the log."""
    states = []
    for out in (a, b):
        checkpoint = read_checkpoint(checkpoint_path(out / "checkpoints", epochs))
        del checkpoint["flags"]
        states.append(dict(leaves(checkpoint)))
    wrong = [name for name in states[0].keys() | states[1].keys()
             if not same(states[0].get(name), states[1].get(name))]
    logs = [[{name: value for name, value in json.loads(line).items() if name not in CLOCK_VALUES}
             for line in (out / "log.jsonl").read_text().splitlines()] for out in (a, b)]
    return wrong + [f"log line {i + 1}" for i, (left, right) in enumerate(zip(*logs)) if left != right] + (
        [f"{len(logs[0])} and {len(logs[1])} lines in the log"] if len(logs[0]) != len(logs[1]) else [])


def same(a: Any, b: Any) -> bool:
    """Whether two leaves are equal, bit for bit."""
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b


def torture(folder: Path, kills: int, processes: int, seed: int) -> int:
    """Exit status: 0 if the killed run ended as the one left alone. Prints what was met."""
    draw = random.Random(seed)
    csv = write_videos(folder / "videos")
    begin = time.monotonic()
    run_to_end(csv, folder / "alone", processes)
    longest_s = LONGEST_LIFE * (time.monotonic() - begin)
    out, while_writing, finished = folder / "killed", 0, 0
    for _ in range(kills):
        cut_off_before = cut_off(out)
        pids = start(csv, out, processes)
        time.sleep(draw.uniform(0, longest_s))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        statuses = wait_for_end(pids)
        assert set(statuses) <= {-signal.SIGKILL, 0}, statuses
        while_writing += bool(cut_off(out) - cut_off_before)
        if checkpoint_path(out / "checkpoints", EPOCHS).exists():  # done before all kills were spent: once more
            wrong = finish_and_compare(csv, folder, processes)
            if wrong:
                return report(wrong, finished)
            finished += 1
            shutil.rmtree(out)
    wrong = finish_and_compare(csv, folder, processes)
    print(f"{kills} kills of {processes} process(es), seed {seed}: {while_writing} while a checkpoint was being written, "
          f"{finished + 1} run(s) brought to their end")
    return report(wrong, finished)


def cut_off(out: Path) -> set[tuple[str, int]]:
    """(name, time of change) of each file that a kill left behind half written."""
    return {(path.name, path.stat().st_mtime_ns) for path in (out / "checkpoints").glob("*.partial")}


def finish_and_compare(csv: Path, folder: Path, processes: int) -> list[str]:
    """Bring the killed run to its end; returns in what it differs from the other."""
    run_to_end(csv, folder / "killed", processes)
    return differences(folder / "alone", folder / "killed")


def report(wrong: list[str], finished: int) -> int:
    """Say whether all is the same; returns the exit status."""
    print(f"DIFFERENT in run {finished + 1}: {len(wrong)} entries, such as {', '.join(sorted(wrong)[:5])}" if wrong else
          "the same, bit for bit: weights, optimizer, queue, random states, log")
    return 1 if wrong else 0


def main() -> int:
    """Exit status: 0 if the same, 1 if not."""
    parser = OneLineParser(prog="kill_and_resume.py", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="SIGKILLs in all")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes of the run, over gloo")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return torture(Path(folder), flags.kills, flags.processes, flags.seed)


if __name__ == "__main__":
    sys.exit(main())
