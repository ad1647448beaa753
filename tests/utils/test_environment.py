"""What launchers other than torchrun say in the environment: joined, or refused in one line; two real processes."""
from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from utils.cli import OneLineParser, add_launch_flags
from utils.errors import InputError
from utils.rendezvous import FOREIGN, TORCHRUN, find_ranks, require_single_process

ROOT = Path(__file__).resolve().parents[2]
ALL = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
JOIN = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from utils.cli import OneLineParser, add_launch_flags
from utils.distributed import gather_objects
from utils.launch import launch

def work(context, flags):
    print(context.rank, context.world_size, gather_objects(context.rank))

parser = OneLineParser(prog="join")
add_launch_flags(parser)
sys.exit(launch(work, parser.parse_args(), "join"))
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in (*ALL, "LOCAL_RANK", TORCHRUN, *FOREIGN):
        monkeypatch.delenv(name, raising=False)


def parse(*arguments: str) -> argparse.Namespace:
    parser = OneLineParser(prog="test")
    add_launch_flags(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize("environment, arguments, expected", [
    ({}, (), None),
    ({"RANK": "0", "WORLD_SIZE": "1"}, (), None),
    (ALL, (), (1, 2, None)),
    ({**ALL, "LOCAL_RANK": "0"}, ("--local-rank=0",), (1, 2, 0)),
    ({**ALL, "LOCAL_RANK": "0"}, ("--local_rank", "0"), (1, 2, 0)),
    ({"RANK": "1", "WORLD_SIZE": "2"}, ("--dist-url", "tcp://localhost:1"), (1, 2, None)),
    (ALL, ("--multiprocessing-distributed", "--world-size", "2", "--rank", "1"), None),  # they count machines
    ({TORCHRUN: "x", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, (), (0, 1, 0)),
    ({"SLURM_STEP_NUM_TASKS": "1"}, (), None),
    ({"SLURM_STEP_NUM_TASKS": "2"}, ("--world-size", "2", "--rank", "1"), None),
    ({"OMPI_COMM_WORLD_SIZE": "2", **ALL}, (), (1, 2, None)),
])
def test_ranks_of_the_environment(monkeypatch, environment, arguments, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert find_ranks(parse(*arguments)) == expected


@pytest.mark.parametrize("environment, arguments, named", [
    ({"RANK": "1"}, (), "must both be set"),
    ({"WORLD_SIZE": "2"}, (), "must both be set"),
    ({**ALL, "RANK": "2"}, (), "must both be set, RANK below WORLD_SIZE"),
    ({**ALL, "RANK": "one"}, (), "RANK=one"),
    ({**ALL, "MASTER_PORT": ""}, (), "MASTER_PORT"),
    ({**ALL, "MASTER_PORT": "port"}, (), "MASTER_PORT=port"),
    (ALL, ("--multiprocessing-distributed",), "leave --multiprocessing-distributed"),
    (ALL, ("--world-size", "2", "--rank", "0"), "leave --multiprocessing-distributed"),
    *(({name: "4"}, (), f"{name}=4: 4 processes") for name in FOREIGN),
    ({"SLURM_STEP_NUM_TASKS": "4"}, ("--world-size", "2", "--rank", "1"), "SLURM_STEP_NUM_TASKS=4"),
])
def test_what_would_run_several_times_alone_is_refused(monkeypatch, environment, arguments, named):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=named):
        find_ranks(parse(*arguments))


@pytest.mark.parametrize("name", ["WORLD_SIZE", *FOREIGN])
def test_a_program_of_one_process_is_not_started_several_times(monkeypatch, name):
    require_single_process()
    monkeypatch.setenv(name, "2")
    if name == "WORLD_SIZE":
        monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match=f"{name} 2: this runs in a single process"):
        require_single_process()


def test_a_local_rank_without_its_variables_names_torchrun(capsys):
    with pytest.raises(SystemExit) as end:
        parse("--local-rank", "1")
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and "torchrun" in error


@pytest.mark.parametrize("with_url", [False, True])
def test_processes_started_by_an_operator_join(with_url):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    flags = ("--gpu", "none", "--dist_timeout", "60", *(("--dist-url", f"tcp://127.0.0.1:{port}") if with_url else ()))
    place = {} if with_url else {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [subprocess.Popen([sys.executable, "-c", JOIN, str(ROOT), *flags], text=True, stdout=subprocess.PIPE,
                                  env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", **place}) for rank in range(2)]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["0 2 [0, 1]\n", "1 2 [0, 1]\n"]
    assert [process.returncode for process in processes] == [0, 0]
