"""What all commands share: the parser, the flags of processes and machines, and checks of values.

Standard library only, so that `--help` and a wrong flag answer before torch is imported.
"""
from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import NoReturn

from utils.errors import InputError

NETS = ("r3d10", "r3d18", "r3d34", "r3d50", "r2plus1d18", "s3d", "resnet18")

MAX_TIMEOUT_S = 1e7


class OneLineParser(argparse.ArgumentParser):
    """Parser whose errors are one line, exit status 2, and which takes no abbreviated flags."""

    def __init__(self, **settings: object) -> None:
        super().__init__(allow_abbrev=False, formatter_class=HelpWithDefaults, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


class HelpWithDefaults(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Shows every default, and descriptions as they are written."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is None or isinstance(action.default, bool):
            return action.help
        return super()._get_help_string(action)


def add_launch_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of processes and machines, which `utils.launch.launch` reads."""
    launch = parser.add_argument_group("launch")
    launch.add_argument("--gpu", metavar="IDS",
                        help="GPUs of this machine to use, such as 0,1,2,3; none: the CPU (default: all)")
    launch.add_argument("--multiprocessing-distributed", action="store_true",
                        help="start one process for each GPU here, or --nproc CPU processes where there is none")
    launch.add_argument("--nproc", type=int, default=1, metavar="N",
                        help="CPU processes that --multiprocessing-distributed starts on a machine without GPUs")
    launch.add_argument("--world-size", dest="num_nodes", type=int, default=1, metavar="N", help="number of machines")
    launch.add_argument("--rank", dest="node_rank", type=int, default=0, metavar="R", help="number of this machine, from 0")
    launch.add_argument("--dist-url", default="tcp://localhost:10001", metavar="URL", help="where machine 0 is met")
    launch.add_argument("--dist-backend", choices=("nccl", "gloo"), default="nccl", help="gloo is taken without GPUs")
    launch.add_argument("--dist_timeout", type=float, default=600, metavar="S",
                        help="seconds after which a silent process ends the run")


def check_launch_flags(flags: argparse.Namespace) -> None:
    """Raises InputError for a value of `add_launch_flags` that cannot work."""
    problem = find_launch_problem(flags)
    if problem:
        raise InputError(problem)


def find_launch_problem(flags: argparse.Namespace) -> str | None:
    """What cannot work among the flags of `add_launch_flags`, as a line, or None."""
    problem = (find_too_small({"--nproc": (flags.nproc, 1), "--world-size": (flags.num_nodes, 1),
                               "--rank": (flags.node_rank, 0)})
               or find_not_positive({"--dist_timeout": flags.dist_timeout}))
    if problem:
        return problem
    if flags.nproc > 1 and not flags.multiprocessing_distributed:
        return f"--nproc {flags.nproc}: for --multiprocessing-distributed, which starts them"
    if flags.dist_timeout > MAX_TIMEOUT_S:
        return f"--dist_timeout {flags.dist_timeout:g}: must be at most {MAX_TIMEOUT_S:g}"
    if flags.node_rank >= flags.num_nodes:
        return f"--rank {flags.node_rank}: must be below --world-size {flags.num_nodes}"
    if flags.gpu not in (None, "none"):
        ids = flags.gpu.split(",")
        if not all(part.isdecimal() for part in ids) or len(set(ids)) < len(ids):
            return f"--gpu {flags.gpu}: must be none, or distinct numbers such as 0,1,2,3"
    return None


def check_values(at_least: Mapping[str, tuple[float | None, float]] = {}, positive: Mapping[str, float | None] = {},
                 fraction: Mapping[str, float | None] = {}) -> None:
    """Raises InputError for the first value that is out of its range or not finite; a value of None is not checked.

    `at_least`: flag -> (value, smallest accepted value); `positive`: flag -> value above 0; `fraction`: flag -> value
    from 0 to 1.
    """
    for flag, (value, least) in at_least.items():
        if value is not None and not (value >= least and math.isfinite(value)):
            raise InputError(f"{flag} {value}: must be at least {least}")
    for flag, value in positive.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise InputError(f"{flag} {value}: must be positive")
    for flag, value in fraction.items():
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"{flag} {value}: must be between 0 and 1")


def find_too_small(values: dict[str, tuple[float | None, float]]) -> str | None:
    """A line on the first flag -> (value, least value) that is smaller or not finite, or None; a value of None may be."""
    for name, (value, least) in values.items():
        if value is not None and not (value >= least and math.isfinite(value)):
            return f"{name} {value}: must be at least {least}"
    return None


def find_not_positive(values: dict[str, float]) -> str | None:
    """A line on the first flag -> value that is not a positive finite number, or None."""
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            return f"{name} {value}: must be positive"
    return None
