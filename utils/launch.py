"""Launching processes, here or by another launcher, and how the job ends when one of them ends."""
from __future__ import annotations

import argparse
import datetime
import errno
import math
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from utils.cli import DEFAULT_URL, is_first_process, print_any_name
from utils.distributed import DistContext
from utils.errors import (FAULT, INTERRUPTED, LOST, STOPPED, UNREAD, AgreedError, InputError, PeerError,
                          describe_limit, output_is_closed, report)
from utils.rendezvous import TORCHRUN, Ranks, environment_store, find_ranks, open_store

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # as batch systems send them before they take a machine away
# What torch raises as a plain RuntimeError: gloo for a lost peer and for a silent one, the DataLoader for its workers.
GLOO_LOST = re.compile(r"gloo|pair closure|closed by peer|reset by peer|Broken pipe|Socket closed")
SILENT = re.compile(r"time(d )?out", re.IGNORECASE)
WORKER_LOST = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) ([^\n]*)")
WORKERS_SILENT = re.compile(r"DataLoader timed out after ([\d.]+) seconds")
# What a user can act on: no space, no permission, no such file.
FILE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOENT,
               errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EPIPE}
DRIVER = Path("/proc/driver/nvidia/version")
# (first torch, first cuDNN that are right again): before both, 3D convolutions are wrong or several times slower (pytorch
# issues 166122, 163539, 167024). requirements.txt excludes such a torch; an environment made otherwise may have it.
FIXED_CONV3D = (2, 10), 91500
GONE_GRACE_S = 6   # before a process reports a lost peer: the peer's own error should come first
FAIL_GRACE_S = 3   # after a failure, how long the other processes have to end by themselves
STOP_GRACE_S = 60  # after a stop on request, likewise

Worker = Callable[[DistContext, argparse.Namespace], "int | None"]


class StopRequest:
    """Whether this process has been asked to stop (STOP_SIGNALS) since this was made; the current step is finished."""

    def __init__(self) -> None:
        self.requested = False
        self.release(lambda *_: setattr(self, "requested", True))

    def release(self, handler: signal.Handlers | Callable = signal.SIG_DFL) -> None:
        """Lets further requests end the process at once; with SIG_IGN they are ignored."""
        for number in STOP_SIGNALS:
            signal.signal(number, handler)


def launch(worker: Worker, flags: argparse.Namespace, program: str) -> int:
    """Runs `worker(context, flags)` in every process of this machine; returns the exit status (see `utils.errors`).

    `flags` are those of `utils.cli.add_launch_flags`; `program` is the prefix of every error line. Under torchrun, or where
    RANK and WORLD_SIZE say so, this process is one of those that another launcher started. Otherwise
    `--multiprocessing-distributed` starts one process per GPU of `--gpu`, or `--nproc` CPU processes; without it there is
    this one. A process that fails ends the others. InputError for GPUs that are absent.
    """
    gpus = visible_gpus(flags.gpu)
    if flags.multiprocessing_distributed and gpus and flags.nproc > 1:
        raise InputError(f"--nproc {flags.nproc}: counts CPU processes, but there are GPUs; choose them by --gpu")
    ranks = find_ranks(flags)
    if ranks:
        if ranks.local_rank is None and len(gpus) > 1:
            raise InputError(f"WORLD_SIZE={ranks.world_size} in the environment, without LOCAL_RANK: which of {len(gpus)} "
                             "GPUs is this process's? Set LOCAL_RANK, or name one by --gpu")
        return run_and_report(partial(join, ranks.local_rank or 0, flags, gpus, ranks=ranks), worker, flags, program)
    if not flags.multiprocessing_distributed:
        return run_and_report(partial(join, 0, flags, gpus[:1]), worker, flags, program)

    processes = len(gpus) or flags.nproc
    if not gpus:
        print(f"no GPU here: --multiprocessing-distributed starts {processes} CPU process(es) over gloo", flush=True)
    # On one machine without --dist-url: a free port, held from here on, whose socket every process inherits.
    listening = socket.create_server(("127.0.0.1", 0)) if flags.num_nodes == 1 and not flags.dist_url else None
    arguments = (os.getpid(), worker, program, flags, gpus, processes, listening)
    # Batch systems send SIGUSR1 to all processes. Python's resource tracker would end by it; it inherits that it is blocked.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    context = mp.start_processes(run_spawned, args=arguments, nprocs=processes, join=False)
    if listening:
        listening.close()
    return wait_for_processes(context.processes, program)


def wait_for_processes(processes: Sequence[mp.Process], program: str) -> int:
    """Returns the exit status of the first process that failed, 0 if none did; no process outlives this call.

    Requests to stop are forwarded to all of them.
    """
    def forward(number: int, _frame: object) -> None:
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, number)

    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(number, forward)
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
                process.kill()  # also one that is stopped, or ignores SIGTERM inside a collective
            deadline = None
    return status


def visible_gpus(ids: str | None) -> list[int]:
    """Returns the GPUs to use here: those of `ids` ("0,1"; "none"), or all.

    InputError for one that is absent. On a machine without GPUs `ids` is ignored, which is reported.
    """
    present = 0 if ids == "none" else torch.cuda.device_count()
    if ids is None or not present:
        if ids not in (None, "none"):
            if DRIVER.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
                raise InputError(f"--gpu {ids}: torch {torch.__version__} sees no GPU here, though there is an NVIDIA "
                                 "driver: do they fit each other? --gpu none uses the CPU")
            if is_first_process():
                print(f"no GPU here: --gpu {ids} is not used", flush=True)
        return list(range(present))
    chosen = [int(part) for part in ids.split(",")]
    if max(chosen) >= present:
        raise InputError(f"--gpu {ids}: this machine has {present} GPU(s), numbered from 0")
    return chosen


def conv3d_warning(torch_version: str, cudnn: int | None) -> str:
    """Returns one line about bad 3D convolutions of a torch with a cuDNN (such as 91002; None: without), "" without any."""
    if cudnn is None:
        return f"torch {torch_version} has no cuDNN: 3D convolutions are several times slower; install a build with it"
    if tuple(map(int, torch_version.split(".")[:2])) >= FIXED_CONV3D[0] or cudnn >= FIXED_CONV3D[1]:
        return ""
    return (f"torch {torch_version} with cuDNN {cudnn // 10000}.{cudnn // 100 % 100}: 3D convolutions are several times "
            "slower or wrong (pytorch issue 166122); install torch 2.10 or newer, as in requirements.txt")


def run_spawned(local_rank: int, launcher: int, worker: Worker, program: str, flags: argparse.Namespace,
                *place: object) -> None:
    """Runs one of the processes that `launch`, in the process `launcher`, started; `place`: further arguments of `join`."""
    # The system ends this process if the launcher is killed; by torch's SIGINT it does not where that is ignored (`nohup`,
    # or `&` in a script).
    mp._prctl_pr_set_pdeathsig(signal.SIGKILL)
    if os.getppid() != launcher:  # killed meanwhile
        sys.exit(LOST)
    status = run_and_report(partial(join, local_rank, flags, *place), worker, flags, program)
    sys.stdout.flush()
    sys.exit(status)


def run_and_report(enter: Callable[[], DistContext], worker: Worker, flags: argparse.Namespace, program: str) -> int:
    """Returns the exit status of `worker` in the context that `enter` returns; errors a user can act on are one line.

    After a failure the process group still exists, since to destroy it may take for ever: others may be waiting in it. As
    gloo aborts some processes in which the interpreter destroys it, the exit then stops before that.
    """
    print_any_name()
    context = None
    try:
        context = enter()
        status = worker(context, flags) or 0
        sys.stdout.flush()
        if dist.is_initialized():
            dist.destroy_process_group()
        return status
    except InputError as error:
        status = error.exit_status
        if not isinstance(error, AgreedError) or context.is_main:
            report(error, program)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C may come a second time, forwarded
        if context is None or context.is_main:
            print(f"{program}: interrupted", file=sys.stderr)
        status = INTERRUPTED
    except Exception as error:
        status = report_failure(error, program, context, flags)
    if dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        Finalize(None, os._exit, (status,), exitpriority=-1)  # after those that end DataLoader workers
    return status


def report_failure(error: Exception, program: str, context: DistContext | None, flags: argparse.Namespace) -> int:
    """Returns the exit status after printing `error`: in one line, or with its traceback where no user can act on it."""
    if limit := describe_limit(error):
        sys.unraisablehook = lambda _: None  # a DataLoader of which only some workers started is freed with a traceback
        return report(InputError(limit), program)
    if isinstance(error, OSError) and error.errno in FILE_ERRORS:
        if isinstance(error, BrokenPipeError) and output_is_closed():
            return UNREAD
        return report(InputError(f"{error.filename or 'a file'}: {error.strerror}"), program)
    if isinstance(error, torch.OutOfMemoryError):
        return report(InputError(f"process {context.rank}: the GPU's memory is full: {str(error).partition('. ')[0]}; a "
                                 "smaller batch needs less, and so do --amp bf16 and, in pretraining, "
                                 "--checkpoint_activations"), program)
    if isinstance(error, RuntimeError) and (loss := describe_loss(error, getattr(flags, "dist_timeout", math.nan))):
        advice = "; --resume resumes from the newest checkpoint" if hasattr(flags, "resume") else ""
        return report(PeerError(f"process {context.rank} of {context.world_size}: {loss}{advice}"), program)
    traceback.print_exc()
    return FAULT


def describe_loss(error: RuntimeError, timeout_s: float) -> str | None:
    """Returns what happened to another process or a DataLoader worker, of which `error` is the consequence, or None."""
    text, first_line = str(error), str(error).partition("\n")[0]
    if lost := WORKER_LOST.search(text):  # raised wherever the training process is at that moment
        return (f"DataLoader worker {lost[1]} ended: {lost[2].strip(' .')} (by the system where memory runs out: fewer "
                "--workers need less)")
    if silent := WORKERS_SILENT.search(text):
        return (f"no batch came from the DataLoader workers for {float(silent[1]):g} s: reading hangs, or "
                "--dist_timeout is too short for it")
    if not dist.is_initialized() or not (isinstance(error, dist.DistError) or GLOO_LOST.search(text)):
        return None
    if SILENT.search(text):
        return f"another process was silent for longer than --dist_timeout {timeout_s:g} s ({first_line})"
    time.sleep(GONE_GRACE_S)  # what ended the other process is reported by itself, or by its launcher
    return f"another process is gone ({first_line})"


def join(local_rank: int, flags: argparse.Namespace, gpus: list[int], processes_per_node: int = 1,
         listening: socket.socket | None = None, ranks: Ranks | None = None) -> DistContext:
    """Returns the context of this process, in the process group where there is more than one.

    `listening`: the socket of rank 0's store, inherited from the launcher; None: the store is at `--dist-url`. `ranks`: what
    the environment says where another launcher started this process, and of the store too without `--dist-url`.
    """
    if gpus and local_rank >= len(gpus):
        raise InputError(f"local rank {local_rank}: only {len(gpus)} GPU(s) to use here; start fewer processes")
    device = torch.device("cuda", gpus[local_rank]) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
        warning = conv3d_warning(torch.__version__, torch.backends.cudnn.version())
        if warning and local_rank == 0:
            print(f"warning: {warning}", file=sys.stderr, flush=True)
    if not (ranks or flags.multiprocessing_distributed or flags.num_nodes > 1):
        return DistContext(0, 1, device)
    if not gpus:
        share = max(1, (os.cpu_count() or 1) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", processes_per_node))))
        torch.set_num_threads(min(torch.get_num_threads(), share))
    timeout, url = datetime.timedelta(seconds=flags.dist_timeout), flags.dist_url or DEFAULT_URL
    rank, world_size = flags.node_rank * processes_per_node + local_rank, flags.num_nodes * processes_per_node
    try:
        if ranks:
            rank, world_size = ranks.rank, ranks.world_size
        if ranks and (TORCHRUN in os.environ or not flags.dist_url):
            store = environment_store(rank, world_size, timeout)
        else:
            store = open_store(url, rank, world_size, timeout, listening)
        dist.init_process_group(flags.dist_backend if gpus else "gloo", timeout=timeout, store=store, rank=rank,
                                world_size=world_size)
        control = dist.new_group(backend="gloo", timeout=timeout) if gpus else None
    except (dist.DistError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        place = ("torchrun" if TORCHRUN in os.environ else f"WORLD_SIZE={world_size} of the environment, MASTER_ADDR and "
                 "MASTER_PORT" if ranks and not flags.dist_url else "this machine" if listening else f"--dist-url {url}")
        kind = InputError if isinstance(error, ValueError) else PeerError
        raise kind(f"{place}: no process group: {str(error).splitlines()[0]}") from error
    return DistContext(rank, world_size, device, control)
