"""Feed broken csv files, lists, checkpoints, images, videos and shards to what reads them, and report what is not handled.

    python tests/robustness/fuzz_inputs.py --number 500
    python tests/robustness/fuzz_inputs.py --kinds video --number 5000 --seed 1
    python tests/robustness/fuzz_inputs.py --kinds csv --only 123 --keep broken       leaves that one input in broken/

Each input is a valid one with a few random changes, drawn from (seed, kind, number); both are in
tests/robustness/fuzz_kinds.py. It must be read, or be refused by an InputError of one line: any other exception, a hang of
more than LIMIT_S seconds and an end of the interpreter are findings, of which one per cause is shown. Inputs are tried in
child processes. The exit status is 1 with findings.
"""
from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as `python tests/robustness/fuzz_inputs.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import json
import os
import resource
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch

from tests.robustness.fuzz_kinds import Kind, kinds
from utils.errors import InputError
from utils.cli import OneLineParser

ROOT = str(Path(__file__).resolve().parents[2])
LIMIT_S = 20
MEMORY_BYTES = 8 << 30  # address space that the reading of one input may add
BATCH = 100             # inputs of one child process


def broken_input(kind: Kind, name: str, seed: int, number: int) -> tuple[str, bytes]:
    """(file name, content) of a broken input."""
    rng = np.random.default_rng([seed, number, *name.encode()])
    inputs = kind.valid | kind.refused
    file_name = str(rng.choice(list(inputs)))
    return file_name, kind.change(inputs[file_name], rng)


def outcome(kind: Kind, path: Path) -> str:
    """"read", "refused", or what went wrong and where."""
    try:
        kind.read(path)
    except InputError as error:
        return "refused" if len(str(error).splitlines()) == 1 else f"not one line: {str(error)!r}"
    except (Exception, SystemExit) as error:  # the very thing that is looked for
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(ROOT)]
        where = [f"{os.path.relpath(frame.filename, ROOT)}:{frame.lineno}" for frame in frames
                 if "fuzz_" not in frame.filename]
        reason = str(error).splitlines() or [""]
        return f"{type(error).__name__} at {where[-1] if where else 'the use of the result'}: {reason[0][:200]}"
    return "read"


def try_in_child(kind: Kind, name: str, seed: int, numbers: list[int], folder: Path) -> Iterator[tuple[int, str]]:
    """(number, outcome) of each input, of which the last may have ended the child."""
    inputs = [(number, *broken_input(kind, name, seed, number)) for number in numbers]
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        torch.set_num_threads(1)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)
        quiet = os.open(os.devnull, os.O_WRONLY)  # libraries write warnings of their own
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        for number, file_name, data in inputs:
            path = folder / file_name
            path.write_bytes(data)
            signal.alarm(LIMIT_S)
            os.write(writer, json.dumps([number, outcome(kind, path)]).encode() + b"\n")
        os._exit(0)
    os.close(writer)
    done = 0
    with os.fdopen(reader) as lines:
        for line in lines:
            yield tuple(json.loads(line))
            done += 1
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if done < len(numbers):
        ended = "hang" if status == -signal.SIGALRM else f"the interpreter ended with {status}"
        yield numbers[done], ended


def fuzz(kind: Kind, name: str, seed: int, numbers: list[int], folder: Path) -> dict[int, str]:
    """Outcome of each input by its number."""
    outcomes: dict[int, str] = {}
    while len(outcomes) < len(numbers):
        outcomes |= try_in_child(kind, name, seed, numbers[len(outcomes):len(outcomes) + BATCH], folder)
    return outcomes


def main() -> int:
    """Exit status: 0 if all is handled, 1 if not."""
    names = ("csv", "list", "checkpoint", "foreign", "image", "video", "shard")
    parser = OneLineParser(prog="fuzz_inputs.py", description=__doc__)
    parser.add_argument("--number", type=int, default=500, metavar="N", help="broken inputs of each kind")
    parser.add_argument("--seed", type=int, default=0, help="seed of the changes")
    parser.add_argument("--kinds", nargs="+", choices=names, default=names, help="what to break")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="try this one input alone")
    parser.add_argument("--keep", metavar="DIR", help="leave the inputs of what is shown there")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    numbers = list(range(flags.number)) if flags.only is None else [flags.only]
    found = 0
    with tempfile.TemporaryDirectory() as scratch:
        every = kinds(Path(scratch))
        for name in flags.kinds:
            outcomes = fuzz(every[name], name, flags.seed, numbers, Path(scratch))
            causes: dict[str, list[int]] = {}
            for number, what in outcomes.items():
                causes.setdefault(what.partition(": ")[0], []).append(number)
            counts = Counter({cause: len(where) for cause, where in causes.items()})
            print(f"{name}, seed {flags.seed}: {len(outcomes)} inputs, {counts.pop('read', 0)} read, "
                  f"{counts.pop('refused', 0)} refused, {counts.total()} not handled")
            for cause, where in causes.items():
                if cause not in ("read", "refused") or flags.only is not None:
                    print(f"  {len(where)} x {outcomes[where[0]]} (--only {where[0]})")
                    if flags.keep:
                        file_name, data = broken_input(every[name], name, flags.seed, where[0])
                        Path(flags.keep).mkdir(parents=True, exist_ok=True)
                        (Path(flags.keep) / f"{name}_{where[0]}_{file_name}").write_bytes(data)
            found += counts.total()
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
