"""What all commands share: the parser, the launch flags, and checks of values.

Standard library only, so that `--help` and a wrong flag answer before torch is imported.
"""
from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn, TextIO
from urllib.parse import urlsplit

from utils.errors import InputError, discard_output

TIME_POOL = "_time_pool"  # ends the names of R3Ds with the stem of 3D-ResNets-PyTorch, see models/r3d.py
NETS = ("r3d10", "r3d18", "r3d34", "r3d50", "r2plus1d18", "s3d", "resnet18",
        *(f"r3d{depth}{TIME_POOL}" for depth in (18, 34, 50)))
DEFAULT_URL = "tcp://localhost:10001"
MAX_TIMEOUT_S = 1e7
UTF8_MODE = ["-X", "utf8"]


def is_first_process() -> bool:
    """Returns whether this is the only process, or rank 0 of those that another launcher started: it prints warnings."""
    return os.environ.get("RANK", "0") == "0"


def print_any_name() -> None:
    """Lets a terminal that cannot show a name show escapes instead."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")


class OneLineParser(argparse.ArgumentParser):
    """Parser whose errors are one line, exit status 2, and which accepts no abbreviated flags."""

    def __init__(self, **settings: object) -> None:
        super().__init__(allow_abbrev=False, formatter_class=HelpWithDefaults, **settings)

    def parse_args(self, args: Sequence[str] | None = None, flags: argparse.Namespace | None = None) -> argparse.Namespace:
        """Returns the flags; a program (`args` None) starts again in UTF-8 mode where the locale has another encoding.

        Names, csv files and the command line then mean the same on every machine. `--resume 1` and `--resume 0`, as the
        official code has them, are `--resume` alone and none, in which case `--path` does not count.
        """
        if args is None and sys.getfilesystemencoding() != "utf-8" and sys.orig_argv[1:3] != UTF8_MODE:
            os.execv(sys.executable, [sys.executable, *UTF8_MODE, *sys.orig_argv[1:]])
        print_any_name()
        flags = super().parse_args(args, flags)
        if getattr(flags, "resume", None) == "1":
            flags.resume = "auto"
        elif getattr(flags, "resume", None) == "0":
            vars(flags).update(dict.fromkeys(vars(flags).keys() & {"resume", "path"}))
        return flags

    def print_help(self, file: TextIO | None = None) -> None:
        """Prints the help, or as much of it as is read: `| head` ends it quietly."""
        try:
            super().print_help(file)
            sys.stdout.flush()
        except BrokenPipeError:
            discard_output()

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


class HelpWithDefaults(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Formatter that shows every default, and descriptions as they are written."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is None or isinstance(action.default, bool):
            return action.help
        return super()._get_help_string(action)


def add_launch_flags(parser: argparse.ArgumentParser, published: argparse._ArgumentGroup | None = None,
                     other: argparse._ArgumentGroup | None = None) -> None:
    """Adds the flags of processes and machines, which `utils.launch.launch` reads: to a group of their own, or those that
    the official code has too to `published`, the rest to `other`."""
    if published is None:
        published = other = parser.add_argument_group("launch")
    flag = published.add_argument
    flag("--gpu", metavar="IDS", help="GPUs of this machine to use, such as 0,1,2,3; none: the CPU (default: all)")
    flag("--multiprocessing-distributed", action="store_true",
         help="start one process per GPU of this machine, or --nproc CPU processes if it has none")
    flag("--world-size", dest="num_nodes", type=int, default=1, metavar="N", help="number of machines")
    flag("--rank", dest="node_rank", type=int, default=0, metavar="R", help="rank of this machine, from 0")
    flag("--dist-url", metavar="URL",
         help=f"address of the rank-0 node (default: a free port on one machine, {DEFAULT_URL} on several)")
    flag("--dist-backend", choices=("nccl", "gloo"), default="nccl", help="CPU processes always use gloo")
    flag = other.add_argument
    flag("--nproc", type=int, default=1, metavar="N",
         help="CPU processes that --multiprocessing-distributed starts on a machine without GPUs")
    flag("--dist_timeout", type=float, default=600, metavar="S",
         help="end the run if another process or the DataLoader is silent for this many seconds")
    flag("--local-rank", "--local_rank", type=int, action=LocalRank, default=argparse.SUPPRESS, metavar="R",
         help="passed by torch.distributed.launch; LOCAL_RANK of the environment is used")


class LocalRank(argparse.Action):
    """The flag that torch.distributed.launch passes; LOCAL_RANK, which it sets too, says the same."""

    def __call__(self, parser: argparse.ArgumentParser, _flags: argparse.Namespace, value: int, *_: object) -> None:
        if os.environ.get("LOCAL_RANK") != str(value):
            parser.error(f"--local-rank {value}: needs LOCAL_RANK={value}, RANK and WORLD_SIZE in the environment, as "
                         "torchrun sets them")


def check_launch_flags(flags: argparse.Namespace) -> None:
    """Raises InputError for a value of `add_launch_flags` that cannot work."""
    check_values({"--nproc": (flags.nproc, 1), "--world-size": (flags.num_nodes, 1), "--rank": (flags.node_rank, 0)},
                 positive={"--dist_timeout": flags.dist_timeout})
    if flags.nproc > 1 and not flags.multiprocessing_distributed:
        raise InputError(f"--nproc {flags.nproc}: needs --multiprocessing-distributed, which starts the processes")
    if flags.dist_timeout > MAX_TIMEOUT_S:
        raise InputError(f"--dist_timeout {flags.dist_timeout:g}: must be at most {MAX_TIMEOUT_S:g}")
    if flags.node_rank >= flags.num_nodes:
        raise InputError(f"--rank {flags.node_rank}: must be below --world-size {flags.num_nodes}")
    if flags.gpu not in (None, "none"):
        ids = flags.gpu.split(",")
        if not all(part.isdecimal() for part in ids) or len(set(ids)) < len(ids):
            raise InputError(f"--gpu {flags.gpu}: must be none, or distinct numbers such as 0,1,2,3")
    if flags.dist_url:
        split_url(flags.dist_url)


def split_url(url: str) -> tuple[str, int]:
    """Returns (host, port) of tcp://HOST:PORT; InputError for anything else."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not (host and port) or parts.scheme != "tcp" or parts.path or parts.query:
        raise InputError(f"--dist-url {url}: must be tcp://HOST:PORT, with a port from 1 to 65535")
    return host, port


def parse_size(text: str, least_px: int) -> tuple[int, int]:
    """Returns (width, height) of the value of --size, WIDTHxHEIGHT in px; InputError for anything else."""
    if not re.fullmatch("[0-9]{1,5}x[0-9]{1,5}", text) or min(size := tuple(map(int, text.split("x")))) < least_px:
        raise InputError(f"--size {text}: expected WIDTHxHEIGHT in px, each at least {least_px}, such as 200x150")
    return size


def check_values(at_least: Mapping[str, tuple[float | None, float]] = {}, positive: Mapping[str, float | None] = {},
                 fraction: Mapping[str, float | None] = {}) -> None:
    """Raises InputError for the first value that is out of its range or not finite; a value of None is not checked.

    `at_least`: flag -> (value, smallest accepted value); `positive`: flag -> value above 0; `fraction`: flag -> value
    from 0 to 1.
    """
    for flag, (value, least) in at_least.items():
        if value is not None and not least <= value < math.inf:
            raise InputError(f"{flag} {value}: must be at least {least}")
    for flag, value in positive.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{flag} {value}: must be positive")
    for flag, value in fraction.items():
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"{flag} {value}: must be between 0 and 1")


def compile_group_pattern(flag: str, pattern: str) -> re.Pattern[str]:
    """Returns the regular expression of a flag, whose first (...) is the name of a video's group; else InputError."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{flag} {pattern}: not a regular expression: {error}") from error
    if not compiled.groups:
        raise InputError(f"{flag} {pattern}: needs a group in parentheses, the name of a video's group")
    return compiled
