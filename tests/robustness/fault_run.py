"""Run a pretraining under the faults that docs/operations.md lists, and compare its end with that of an undisturbed run.

    python tests/robustness/fault_run.py --minutes 30 --faults 100

The run (two CPU processes, 16 videos of 32 px, a checkpoint every step) is started again by the same command after every
exit status but 0, as a scheduler does. Faults of all kinds come in random order and at random moments, also while the run
starts. After each, the run must end in time, with a documented exit status, a line that says why and no traceback, and leave
no process behind. When it is done, weights, optimizer, queue, random states and log must be the same, bit for bit; then it
begins again, until both bounds are met. The exit status is 1 if any check failed. `--out` is on a small file system of its
own where one may be mounted; elsewhere a limit on the size of files stands for the full disk.
"""
from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as `python tests/robustness/fault_run.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import contextlib
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator

from tests.robustness.fault_kinds import EPOCHS, TRAINS, Failure, Fault, Start, faults
from tests.robustness.kill_and_resume import differences, write_videos
from utils.checkpoint import checkpoint_path
from utils.cli import OneLineParser

DISK_BYTES = 1300 * 10**6  # six checkpoints
LATEST_S = 6               # of a fault, after the start or after the line TRAINS
EARLY = 0.35               # share of faults while the run starts
LONGEST_S = 900            # of the whole run, undisturbed
MAX_FAILURES = 20


class Trial:
    """The restart loop, which starts the run again until it has ended with 0, and the faults that meet it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.out, self.draw = folder, folder / "disk/run", random.Random(seed)
        self.begin, self.runs, self.failures, self.enough = time.monotonic(), 0, 0, False
        self.faults, self.deck, self.met, self.kind = faults(), [], defaultdict(Counter), "no fault"

    def minutes(self) -> float:
        return (time.monotonic() - self.begin) / 60

    def count(self, kind: str, what: str) -> None:
        self.met[kind][what] += 1
        print(f"{self.minutes():5.1f} min  {kind}: {what}", flush=True)

    def fail(self, what: str) -> None:
        self.failures += 1
        print(f"{self.minutes():5.1f} min  FAILED: {what}", flush=True)
        if self.failures == MAX_FAILURES:
            raise SystemExit(self.report())

    def endure(self, minutes: float, num_faults: int) -> None:
        """Repeats the run until both bounds are reached, or SIGTERM asks for the end of it."""
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "enough", True))
        while not self.enough:
            status = None
            while status != 0:
                self.enough |= self.minutes() >= minutes and sum(map(Counter.total, self.met.values())) >= num_faults
                start = Start(self.folder, self.out)
                try:
                    status = self.live(start)
                except Failure as failure:
                    self.fail("\n".join([f"{self.kind}: {failure}", *(start.text() for start in Start.running)]))
                    for start in list(Start.running):
                        start.kill()
            self.runs += 1
            wrong = differences(self.folder / "alone", self.out, EPOCHS)
            if wrong:
                self.fail(f"{len(wrong)} entries differ, such as {', '.join(sorted(wrong)[:5])}")
            shutil.rmtree(self.out)

    def live(self, start: Start) -> int:
        """The exit status of a start, to which the next faults happen; Failure if it is not what the documents say."""
        while not self.enough:
            self.deck = self.deck or self.draw.sample(list(self.faults), len(self.faults))
            kind, fault = self.deck[-1], self.faults[self.deck[-1]]
            moment, early = self.draw.uniform(0, LATEST_S), fault.early is not None and self.draw.random() < EARLY
            if not (early or start.wait_until(lambda: TRAINS in start.text(), LONGEST_S)):
                break
            moment += time.monotonic()
            if not start.wait_until(lambda: time.monotonic() >= moment):
                break
            self.kind, early = self.deck.pop(), TRAINS not in start.text()
            following = fault.apply(start, self.draw)
            if fault.statuses:
                status = start.end()
                self.judge(kind, fault, status, start.text(), early)
                return status
            self.count(kind, "continued" if following is None else "resumed")
            start = following or start
        status = start.end(LONGEST_S)
        if status:
            raise Failure(f"ended with {status} without a fault\n{start.text()}")
        return status

    def judge(self, kind: str, fault: Fault, status: int, text: str, early: bool) -> None:
        """Counts what a fault led to. A run may also have been done before it met the fault; what it wrote is compared."""
        self.count(kind, f"{status} while starting" if early else str(status))
        done = status == 0 and checkpoint_path(self.out / "checkpoints", EPOCHS).exists()
        if not done and status not in (fault.early if early else fault.statuses):
            self.fail(f"{kind}: exit status {status}\n{text}")
        elif not (done or early or re.search(fault.line, text)):
            self.fail(f"{kind}: does not say why it ended\n{text}")
        elif ("Traceback" in text or "terminate called" in text) and not (early and kind == "Ctrl-C"):
            self.fail(f"{kind}: a traceback\n{text}")

    def report(self) -> int:
        """Prints the summary; returns the exit status."""
        for kind in self.faults:
            counts = self.met[kind]
            print(f"{kind}: {counts.total()} ({', '.join(f'{what}: {count}' for what, count in sorted(counts.items()))})")
        print(f"{sum(map(Counter.total, self.met.values()))} faults of {len(self.faults)} kinds, {Start.number - 1} starts, "
              f"{self.runs} run(s) brought to their end, {self.minutes():.0f} minutes, {self.failures} failed check(s)")
        if not self.failures:
            print("the same, bit for bit: weights, optimizer, queue, random states, log")
        return 1 if self.failures else 0


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """Makes `place` a file system of DISK_BYTES, if this may be mounted, to the end of a `with` statement."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "fault_run", str(place)]
    mounted = subprocess.run(mount, stderr=subprocess.DEVNULL).returncode == 0
    if not mounted:
        print("no file system may be mounted: a limit on the size of files stands for the full disk")
    try:
        yield
    finally:
        for start in list(Start.running):
            start.kill()
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


def main() -> int:
    """Exit status: 0 if every check held, 1 if not."""
    parser = OneLineParser(prog="fault_run.py", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, metavar="M", help="at least so long")
    parser.add_argument("--faults", type=int, default=100, metavar="N", help="at least so many")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order and the moments")
    flags = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the runs inherit that it is ignored, as after `nohup`
    with tempfile.TemporaryDirectory() as name, small_disk(Path(name) / "disk"):
        folder = Path(name)
        write_videos(folder / "videos", 16)
        alone = Start(folder, folder / "alone")
        if alone.end(LONGEST_S):
            raise SystemExit(f"the undisturbed run ended with {alone.process.returncode}:\n{alone.text()}")
        trial = Trial(folder, flags.seed)
        trial.endure(flags.minutes, flags.faults)
        return trial.report()


if __name__ == "__main__":
    sys.exit(main())
