"""What a run measures and writes besides checkpoints: values of steps and epochs, log.jsonl, TensorBoard, config.json."""
from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy
import simplejpeg
import torch
import torchvision
from torch import Tensor
from tqdm import tqdm

from utils.distributed import average
from utils.files import file_sha256, write_atomically

LIBRARIES = (torch, torchvision, numpy, cv2, simplejpeg)


class StepValues:
    """The scalars of one step in one tensor, copied to the host asynchronously; with "gradient_norm", the global L2 norm."""

    def __init__(self, loss: Any, gradients: Sequence[Tensor]) -> None:
        """`loss`: has `total`, a scalar, and `terms` and `metrics`, scalars by name."""
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)).double())
        scalars = {"total": loss.total, **loss.terms, "gradient_norm": norm, **loss.metrics}
        self.names = list(scalars)
        self.num_checked = 2 + len(loss.terms)
        self.on_device = torch.stack([value.detach().double() for value in scalars.values()])
        self.on_host = self.on_device.to("cpu", non_blocking=True)
        self.arrived = torch.cuda.Event() if self.on_device.is_cuda else None
        if self.arrived:
            self.arrived.record()

    def to_dict(self) -> dict[str, float]:
        """Returns the values by name, once they have arrived."""
        if self.arrived:
            self.arrived.synchronize()
        return dict(zip(self.names, self.on_host.tolist()))

    def not_finite(self) -> dict[str, float]:
        """Returns the losses and the gradient norm that are NaN or infinite, once they have arrived."""
        values = self.to_dict()
        return {name: values[name] for name in self.names[:self.num_checked] if not math.isfinite(values[name])}


class EpochMeter:
    """Averages over the steps so far, throughput, and the fraction of time spent waiting for data."""

    def __init__(self, videos_per_step: int, device: torch.device) -> None:
        self.videos_per_step, self.device = videos_per_step, device
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.steps = self.steps_before = 0  # steps so far, and those of an earlier start among them
        self.waited_s, self.begin = 0.0, time.perf_counter()

    def time_waiting(self, batches: Iterable) -> Iterator:
        """Yields `batches`; the time until each arrives counts as waiting."""
        iterator = iter(batches)
        self.begin = time.perf_counter()
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            self.waited_s += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums so far as plain values, without the clocks."""
        return {"names": self.names, "sums": None if self.sums is None else self.sums.cpu(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the sums; throughput counts the steps from here on."""
        self.names, self.steps, self.steps_before = state["names"], state["steps"], state["steps"]
        self.sums = None if state["sums"] is None else state["sums"].to(self.device)

    def update(self, values: StepValues) -> None:
        self.names = values.names
        self.sums = values.on_device if self.sums is None else self.sums + values.on_device
        self.steps += 1

    def averages(self) -> dict[str, float]:
        """Returns the means over the epoch's steps (at least one) and all processes."""
        return dict(zip(self.names, (average(self.sums.clone()) / self.steps).tolist()))

    def speed(self) -> dict[str, float]:
        """Returns videos per second over all processes, and the fraction of time in which this one waited for data."""
        elapsed = max(time.perf_counter() - self.begin, 1e-9)
        videos = (self.steps - self.steps_before) * self.videos_per_step
        return {"samples_per_s": videos / elapsed, "data_wait": self.waited_s / elapsed}


class RunLog:
    """The log of a run directory, written by the main process alone; elsewhere every call does nothing.

    log.jsonl has one line per `--log_every` steps ("kind": "step"), per epoch ("epoch") and per run of the monitor
    ("monitor"), whose values TensorBoard has too, and one per event ("bad_video", "skipped_step"). Lines after
    `steps_done`, which a resumed run is about to repeat, are removed first.
    """

    def __init__(self, folder: Path | None, active: bool, steps_done: int) -> None:
        """`folder` None: nothing is written, only printed."""
        self.active, self.writes = active, active and folder is not None
        if not self.writes:
            return
        self.path, kept, num_broken = folder / "log.jsonl", [], 0
        self.monitored = set()
        text = self.path.read_text(errors="replace") if self.path.exists() else ""
        for line in text.splitlines(keepends=True):
            if not line.endswith("\n"):
                continue  # the last one, cut off by a kill
            try:
                values = json.loads(line)
                step, kind = int(values["step"]), values["kind"]
            except (ValueError, TypeError, KeyError):
                num_broken += 1
                continue
            if step <= steps_done:
                kept.append(line)
                self.monitored |= {step} if kind == "monitor" else set()
        write_atomically(self.path, "".join(kept))
        if num_broken:
            self.say(f"{self.path}: {num_broken} line(s) could not be read and are left out")
        from torch.utils.tensorboard import SummaryWriter  # imported where it is used, as it is slow to import
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=steps_done + 1)

    def has_monitored(self, step: int) -> bool:
        """Returns whether an earlier start has logged the monitor after `step` steps."""
        return self.writes and step in self.monitored

    def write(self, kind: str, epoch: int, step: int, values: dict[str, float]) -> None:
        """Logs `values` of `kind` in `epoch` (from 0) after `step` steps of the run."""
        if self.writes:
            self.append({"kind": kind, "epoch": epoch, "step": step, **values})
            for name, value in values.items():
                self.writer.add_scalar(f"{kind}/{name}", value, step)

    def note(self, kind: str, epoch: int, step: int, facts: dict[str, str], line: str) -> None:
        """Logs an event of `kind` with its `facts`, and prints `line`."""
        if self.writes:
            self.append({"kind": kind, "epoch": epoch, "step": step, **facts})
        self.say(line)

    def append(self, entry: dict[str, Any]) -> None:
        with naming(self.path), open(self.path, "a") as file:
            file.write(json.dumps(entry) + "\n")

    def sync(self) -> None:
        """Flushes the log to the disk, so that no checkpoint is newer than the log."""
        if self.writes:
            with naming(self.path), open(self.path, "a") as file:
                os.fsync(file.fileno())

    def say(self, line: str) -> None:
        """Prints a line on the terminal, above the progress bar if there is one."""
        if self.active:
            with naming("standard output"):
                tqdm.write(line)
                sys.stdout.flush()

    def progress(self, batches: Iterable, epoch: int, epochs: int) -> Iterator:
        """Returns `batches`, with a progress bar in the main process if it has a terminal."""
        return tqdm(batches, desc=f"epoch {epoch + 1}/{epochs}", leave=False, unit="step",
                    disable=None if self.active else True)

    def close(self) -> None:
        """Writes out what is still in memory."""
        if self.writes:
            self.writer.close()


@contextlib.contextmanager
def naming(place: str | Path) -> Iterator[None]:
    """Gives an OSError without a filename, as a failed write raises, the filename `place`."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(place)
        raise


def write_config(folder: Path, flags: dict[str, Any], facts: dict[str, Any]) -> None:
    """Writes config.json: flags, command line, versions, commit, hash of the csv file, and `facts` of this start.

    What earlier starts wrote is kept under "earlier_starts".
    """
    path, earlier = folder / "config.json", []
    if path.exists():
        try:
            last = json.loads(path.read_text())
            earlier = [*last.pop("earlier_starts", []), last]
        except (ValueError, TypeError, AttributeError):
            os.replace(path, path.with_suffix(".json.bad"))
            print(f"{path}: could not be read and is now {path.name}.bad", file=sys.stderr)
    config = {"flags": flags, "command": [sys.executable, *sys.argv], "csv_sha256": file_sha256(flags["csv_file"]),
              "git_commit": git_commit(), "versions": library_versions(), **facts, "earlier_starts": earlier}
    write_atomically(path, json.dumps(config, indent=2) + "\n")


def library_versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that results depend on."""
    return {"python": platform.python_version(), **{library.__name__: library.__version__ for library in LIBRARIES}}


def device_name(device: torch.device) -> str:
    """Returns the GPU's name, or "cpu" and its number of threads."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"


def git_commit() -> str | None:
    """Returns the commit of this checkout, "-dirty" with uncommitted changes; None outside one or without git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None
