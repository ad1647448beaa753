"""Starting processes, here and under torchrun, and what becomes of the job when one of them ends."""
from __future__ import annotations

import argparse
import datetime
import errno
import os
import re
import signal
import sys
import time
import traceback
from multiprocessing.connection import wait
from pathlib import Path
from typing import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from utils.distributed import DistContext
from utils.errors import FAULT, INTERRUPTED, LOST, STOPPED, AgreedError, InputError, PeerError, report
from utils.rendezvous import open_store, torchrun_store
from utils.signals import STOP_SIGNALS

# What gloo, NCCL and the process group say when a peer is gone, and when it is silent.
GONE = re.compile(r"Connection (closed|reset)|Broken pipe|Socket closed|NCCL", re.IGNORECASE)
SILENT = re.compile(r"Timed? ?out", re.IGNORECASE)
LOADER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) ([^\n]*)")
SILENT_LOADER = re.compile(r"DataLoader timed out after ([\d.]+) seconds")
# What a user can mend: no room, no right, no such file.
FILE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOENT,
               errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EPIPE}
DRIVER = Path("/proc/driver/nvidia/version")
GONE_GRACE_S = 6   # a process that misses a peer waits so long before it says so: the peer's own error comes first
FAIL_GRACE_S = 3   # after a failure, how long the other processes have to end by themselves
STOP_GRACE_S = 60  # after a stop on request, likewise

Worker = Callable[[DistContext, argparse.Namespace], "int | None"]


def launch(worker: Worker, flags: argparse.Namespace, program: str) -> int:
    """Run `worker(process, flags)` in every process of this machine; returns the exit status, `worker`'s if it has one.

    `flags` has those of `utils.cli.add_launch_flags`; `program` begins every line that tells an error.

    Under torchrun (its environment variables tell) this process is one of those that it started. Otherwise
    `--multiprocessing-distributed` starts one process for each GPU of `--gpu`, or `--nproc` CPU processes; without it
    there is one process here. `--world-size` machines, each started by hand with its `--rank`, meet at `--dist-url`.
    A process that fails takes the others down; its error is what is shown. Exit statuses: see `utils.errors`.
    """
    print_any_name()
    try:
        gpus = visible_gpus(flags.gpu)
    except InputError as error:
        return report(error, program)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return run_worker(int(os.environ["LOCAL_RANK"]), worker, flags, program, gpus, 1)
    if not flags.multiprocessing_distributed:
        return run_worker(0, worker, flags, program, gpus[:1], 1)

    processes = len(gpus) or flags.nproc
    if not gpus:
        print(f"no GPU here: --multiprocessing-distributed starts {processes} CPU process(es) over gloo", flush=True)
    elif flags.nproc > 1:
        return report(InputError(f"--nproc {flags.nproc}: counts CPU processes, but there are GPUs; choose them by --gpu"),
                      program)
    arguments = (os.getpid(), worker, flags, program, gpus, processes)
    context = mp.start_processes(spawned, args=arguments, nprocs=processes, join=False)
    return supervise(context.processes, program)


def print_any_name() -> None:
    """Let a terminal that cannot show a file's name show its codes instead."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")


def supervise(processes: list, program: str) -> int:
    """Exit status of the first process that did not end well, 0 if all did; none of them outlives this call.

    Requests to stop are passed on to all of them.
    """
    def pass_on(number: int, _frame: object) -> None:
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, number)

    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(number, pass_on)
    status, running, deadline = 0, list(processes), None
    while running:
        wait([process.sentinel for process in running],
             None if deadline is None else max(0, deadline - time.monotonic()))
        for process in [process for process in running if not process.is_alive()]:
            running.remove(process)
            if process.exitcode and not status:
                status = process.exitcode if process.exitcode > 0 else LOST
                deadline = time.monotonic() + (STOP_GRACE_S if status == STOPPED else FAIL_GRACE_S)
                if process.exitcode < 0:
                    print(f"{program}: error: process {processes.index(process)} of this machine was ended by "
                          f"{signal.Signals(-process.exitcode).name}", file=sys.stderr, flush=True)
        if deadline is not None and time.monotonic() >= deadline:
            for process in running:
                process.kill()  # also one that is stopped, or deaf to SIGTERM inside a collective
            deadline = None
    return status


def visible_gpus(ids: str | None) -> list[int]:
    """GPUs to use here: those of `ids` ("0,1"; "none"), or all that there are.

    InputError for one that is absent. A machine that has none does without.
    """
    present = 0 if ids == "none" else torch.cuda.device_count()
    if ids is None or not present:
        if ids not in (None, "none"):
            if DRIVER.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
                raise InputError(f"--gpu {ids}: torch {torch.__version__} sees no GPU here, though there is an NVIDIA "
                                 "driver: do they fit each other? --gpu none uses the CPU")
            print(f"no GPU here: --gpu {ids} is not used", flush=True)
        return list(range(present))
    chosen = [int(part) for part in ids.split(",")]
    if max(chosen) >= present:
        raise InputError(f"--gpu {ids}: this machine has {present} GPU(s), numbered from 0")
    return chosen


def spawned(local_rank: int, launcher: int, *arguments: object) -> None:
    """Entry of a process that `launch`, in the process `launcher`, started."""
    if os.getppid() != launcher:  # it was killed meanwhile; from here on the system tells of its end
        sys.exit(LOST)
    print_any_name()
    try:
        status = run_worker(local_rank, *arguments)
    except Exception:  # told here, as the one that waits for this process sees its exit status alone
        traceback.print_exc()
        status = FAULT
    sys.stdout.flush()
    sys.exit(status)


def run_worker(local_rank: int, worker: Worker, flags: argparse.Namespace, program: str, gpus: list[int],
               processes_per_node: int) -> int:
    """Join the process group, where there is one, and work; returns the exit status, what it means told in one line."""
    return run_told(lambda: join(local_rank, flags, gpus, processes_per_node), worker, flags, program)


def run_told(enter: Callable[[], DistContext], worker: Worker, flags: argparse.Namespace, program: str) -> int:
    """Exit status of `worker` in the process that `enter` gives; what ends it early is told in one line."""
    process = None
    try:
        process = enter()
        status = worker(process, flags) or 0
    except AgreedError as error:
        return report(error, program) if process.is_main else error.exit_status
    except InputError as error:
        return report(error, program)  # without leaving the group in order: other processes may be waiting in it for ever
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C may come a second time, passed on
        if process is None or process.is_main:
            print(f"{program}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.errno not in FILE_ERRORS:
            raise
        if error.errno == errno.EPIPE:  # who read the output is gone: nothing more can be told there, at the end neither
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return report(InputError(f"{error.filename or 'a file'}: {error.strerror}"), program)
    except torch.OutOfMemoryError as error:
        return report(InputError(f"process {process.rank}: the GPU's memory is full: {str(error).partition('. ')[0]}; a "
                                 "smaller batch needs less, and so do --amp bf16 and, in pretraining, "
                                 "--checkpoint_activations"), program)
    except RuntimeError as error:
        loss = describe_loss(str(error), getattr(flags, "dist_timeout", 600))
        if loss is None:
            raise
        advice = "; --resume goes on from the newest checkpoint" if hasattr(flags, "resume") else ""
        print(f"{program}: error: process {process.rank} of {process.world_size}: {loss}{advice}", file=sys.stderr,
              flush=True)
        return LOST
    if dist.is_initialized():
        dist.destroy_process_group()
    return status


def describe_loss(error: str, timeout_s: float) -> str | None:
    """What a RuntimeError's text says of another process that is gone or silent; None for any other error."""
    loader = LOADER.search(error)
    if loader:  # raised wherever the training process is when its loader's process ends
        return (f"loader process {loader[1]} ended: {loader[2].strip(' .')} (by the system where memory runs out: fewer "
                "--workers need less)")
    silent = SILENT_LOADER.search(error)
    if silent:
        return (f"no batch came from the loader's processes for {float(silent[1]):g} s: reading hangs, --dist_timeout is "
                "too short for it, or /dev/shm is full, which they say above")
    if not dist.is_initialized():
        return None
    if SILENT.search(error):
        return f"another process was silent for longer than --dist_timeout {timeout_s:g} s ({error.splitlines()[0]})"
    if GONE.search(error):
        time.sleep(GONE_GRACE_S)  # what ended the other one is told by itself, or by who started it
        return f"another process is gone ({error.splitlines()[0]})"
    return None


def join(local_rank: int, flags: argparse.Namespace, gpus: list[int], processes_per_node: int) -> DistContext:
    """This process, a member of the process group where more than one was asked for."""
    if gpus and local_rank >= len(gpus):
        raise InputError(f"local rank {local_rank}: only {len(gpus)} GPU(s) to use here; start fewer processes")
    device = torch.device("cuda", gpus[local_rank]) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if not (torchrun or flags.multiprocessing_distributed or flags.num_nodes > 1):
        return DistContext(0, 1, device)
    if not gpus:
        share = max(1, (os.cpu_count() or 1) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", processes_per_node))))
        torch.set_num_threads(min(torch.get_num_threads(), share))
    timeout = datetime.timedelta(seconds=flags.dist_timeout)
    try:
        if torchrun:
            rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            store = torchrun_store(rank, world_size, timeout)
        else:
            rank, world_size = flags.node_rank * processes_per_node + local_rank, flags.num_nodes * processes_per_node
            store = open_store(flags.dist_url, rank, world_size, timeout)
        dist.init_process_group(flags.dist_backend if gpus else "gloo", timeout=timeout, store=store, rank=rank,
                                world_size=world_size)
    except InputError:
        raise
    except (dist.DistError, OSError, ValueError) as error:
        place = "torchrun" if torchrun else f"--dist-url {flags.dist_url}"
        kind = InputError if isinstance(error, ValueError) else PeerError
        raise kind(f"{place}: no process group: {str(error).splitlines()[0]}") from error
    control = dist.new_group(backend="gloo", timeout=timeout) if gpus else None
    return DistContext(dist.get_rank(), dist.get_world_size(), device, control)
