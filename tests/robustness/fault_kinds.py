"""The faults of `fault_run.py`: one start of the run they happen to, and what docs/operations.md says of each."""
from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.process_tree import arguments
from tests.robustness.kill_and_resume import SMALL_RUN
from utils.checkpoint import list_checkpoints

ROOT = Path(__file__).resolve().parents[2]
EPOCHS, DIST_TIMEOUT_S = 8, 20
BOUND_S = 3 * DIST_TIMEOUT_S + 60  # from a fault to the end of the run, and for every other wait
TRAINS = " videos ("               # in the line that a run prints before its first step


class Failure(Exception):
    """What deviates from the documents."""


class Start:
    """One start of the run: its processes, what it prints, and what must be undone when it has ended."""

    number, running = 0, []

    def __init__(self, folder: Path, out: Path) -> None:
        Start.number += 1
        Start.running.append(self)
        self.folder, self.out, self.text_path = folder, out, folder / f"start_{Start.number}.txt"
        self.undo, self.meanwhile = contextlib.ExitStack(), lambda: None
        flags = [*SMALL_RUN, *f"--multiprocessing-distributed --nproc 2 --epoch {EPOCHS} --save_every 3".split(),
                 "--csv_file", str(folder / "videos/videos.csv"), "--out", str(out), "--max_bad_fraction", "0",
                 "--dist_timeout", str(DIST_TIMEOUT_S)]
        with open(self.text_path, "w") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "train.py"), *flags], stdout=output, stderr=output, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
        self.pid = self.process.pid

    def text(self) -> str:
        return self.text_path.read_text(errors="replace")

    def parents(self) -> dict[int, int]:
        """Process -> its parent, of all processes of this start that have not ended."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                state, parent, _, session = path.read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.pid and state != "Z":
                    found[int(path.parent.name)] = int(parent)
        return found

    def ranks(self) -> list[int]:
        return sorted(pid for pid, parent in self.parents().items()
                      if parent == self.pid and any("spawn_main" in part for part in arguments(pid)))

    def workers(self) -> list[int]:
        ranks = self.ranks()
        return sorted(pid for pid, parent in self.parents().items()
                      if parent in ranks and any("spawn_main" in part for part in arguments(pid)))

    def wait_until(self, condition: Callable[[], object], bound_s: float = BOUND_S) -> bool:
        """Whether `condition` was met before this start ended; Failure if neither happens within `bound_s`."""
        deadline = time.monotonic() + bound_s
        while not condition():
            self.meanwhile()
            if self.process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                raise Failure(f"hangs: processes {self.parents()}")
            time.sleep(0.05)
        return True

    def end(self, bound_s: float = BOUND_S) -> int:
        """The exit status, once all processes have ended; undoes what a fault has changed."""
        self.wait_until(lambda: False, bound_s)
        deadline = time.monotonic() + BOUND_S
        while self.parents() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.undo.close()
        if left := self.parents():
            raise Failure(f"ended with {self.process.returncode}, but leaves processes behind: {left}")
        Start.running.remove(self)
        return self.process.returncode

    def kill(self) -> None:
        """Kills what is left of it, and undoes what a fault has changed."""
        while left := self.parents():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self.process.wait()
        self.undo.close()
        Start.running.remove(self)


def signal_one(find: Callable[[Start], list[int]], number: int) -> Callable[[Start, random.Random], None]:
    """A fault: one of the processes that `find` returns gets a signal."""
    def apply(start: Start, draw: random.Random) -> None:
        found: list[int] = []
        if start.wait_until(lambda: found.extend(find(start)) or found):
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(draw.choice(found), number)
    return apply


def ask_to_stop(number: int) -> Callable[[Start, random.Random], None]:
    """A fault: the launcher, a rank or all processes get a signal."""
    def apply(start: Start, draw: random.Random) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice([start.pid, -start.pid, *start.ranks()]), number)
    return apply


def fill_disk(start: Start, draw: random.Random) -> None:
    """No space is left, or some for the log, until the run ends."""
    filler, spare = start.out.parent / "filler", draw.choice([0, 10**6])

    def fill() -> None:
        free = shutil.disk_usage(start.out.parent).free - spare
        with contextlib.suppress(OSError), open(filler, "ab") as file:  # the run may take the space first
            os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, max(1, free))

    if start.out.parent.is_mount():
        start.meanwhile = fill
        start.undo.callback(filler.unlink, missing_ok=True)
    else:
        for rank in start.ranks():
            resource.prlimit(rank, resource.RLIMIT_FSIZE, (10**6, 10**6))


def hide_frame(start: Start, draw: random.Random) -> Path:
    """A frame disappears until the run ends; returns its path."""
    frame = draw.choice(sorted((start.folder / "videos").glob("v*/image_*.jpg")))
    hidden = frame.rename(frame.with_name(f".{frame.name}"))
    start.undo.callback(hidden.rename, frame)
    return frame


def stall_frame(start: Start, draw: random.Random) -> None:
    """Reading a frame never returns, as from a file server that is gone: a pipe into which nobody writes."""
    frame = hide_frame(start, draw)
    os.mkfifo(frame)
    start.undo.callback(frame.unlink)


def kill_all(start: Start, draw: random.Random) -> None:
    os.killpg(start.pid, signal.SIGKILL)


def damage_checkpoint(start: Start, draw: random.Random) -> Start | None:
    """All is killed, and the newest checkpoint damaged; returns the next start, which resumes from the one before."""
    if not start.wait_until(lambda: list_checkpoints(start.out / "checkpoints")):
        return None
    start.kill()
    (_, newest), *others = reversed(list_checkpoints(start.out / "checkpoints"))
    if draw.random() < 0.5:
        os.truncate(newest, draw.randrange(newest.stat().st_size))
    else:
        with open(newest, "r+b") as file:
            file.seek(draw.randrange(newest.stat().st_size - 4096))
            file.write(draw.randbytes(4096))
    following = Start(start.folder, start.out)
    if following.wait_until(lambda: TRAINS in following.text()):
        following.wait_until(lambda: f"skipped: {newest}" in following.text(), 10)
        return following
    if others or following.end() != 2 or "remove them to start from scratch" not in following.text():
        raise Failure(f"does not resume beside a damaged checkpoint:\n{following.text()}")
    newest.unlink()
    return Start(start.folder, start.out)


def start_twice(start: Start, draw: random.Random) -> Start | None:
    """A second start in the same `--out` is refused, or takes over if the first ends while it waits; returns it then."""
    second = Start(start.folder, start.out)
    if not second.wait_until(lambda: "waiting" in second.text() or start.process.poll() is not None):
        raise Failure(f"the second start does not wait for the first:\n{second.text()}")
    if draw.random() < 0.5:
        start.kill()
        return second
    status = second.end()
    if start.process.poll() is None and (status != 2 or "error: --out" not in second.text()):
        raise Failure(f"the second start ended with {status}:\n{second.text()}")
    return None


class Fault(NamedTuple):
    """What happens to a run, and what docs/operations.md says of it."""

    apply: Callable[[Start, random.Random], object]
    statuses: set[int] = frozenset()  # with which the run ends; none: it continues, or the start that `apply` returns does
    line: str = ""                    # what it prints then
    early: set[int] | None = None     # statuses before the line TRAINS; None: not applied then


def faults() -> dict[str, Fault]:
    """Every kind of fault by its name."""
    at_once = {number: {-number, 3, 75} for number in (signal.SIGTERM, signal.SIGUSR1)}
    lost, silent = "ended by SIGKILL", "no batch came from the DataLoader workers|was silent for longer"
    return {
        "a rank killed": Fault(signal_one(Start.ranks, signal.SIGKILL), {3}, lost, {3}),
        "a DataLoader worker killed": Fault(signal_one(Start.workers, signal.SIGKILL), {3}, r"DataLoader worker \d+ ended"),
        "the launcher killed": Fault(signal_one(lambda start: [start.pid], signal.SIGKILL), {-9}, "", {-9}),
        "all processes killed": Fault(kill_all, {-9}, "", {-9}),
        "SIGTERM": Fault(ask_to_stop(signal.SIGTERM), {75}, "stopped on request", at_once[signal.SIGTERM]),
        "SIGUSR1": Fault(ask_to_stop(signal.SIGUSR1), {75}, "stopped on request", at_once[signal.SIGUSR1]),
        "Ctrl-C": Fault(lambda start, draw: os.killpg(start.pid, signal.SIGINT), {130}, "interrupted", {130, 1, -2, 3}),
        "a full disk": Fault(fill_disk, {2}, r"error: .*(No space left on device|File too large)", {2}),
        "a frame file gone": Fault(hide_frame, {2}, r"error: .*image_"),
        "a frame that cannot be read to its end": Fault(stall_frame, {3}, silent),
        "a DataLoader worker stopped": Fault(signal_one(Start.workers, signal.SIGSTOP), {3}, silent),
        "a rank stopped": Fault(signal_one(Start.ranks, signal.SIGSTOP), {3}, silent),
        "a damaged checkpoint": Fault(damage_checkpoint),
        "two starts in one --out": Fault(start_twice)}
