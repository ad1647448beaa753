"""Two gloo ranks against one process: values, gradients, queue."""
from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist

from models.objective import Objective
from utils.distributed import DistContext, average, gather_objects, gather_rows, true_on_any_rank
from utils.errors import InputError
from utils.launch import conv3d_warning, visible_gpus

WORKER = Path(__file__).with_name("gather_worker.py")
spec = importlib.util.spec_from_file_location("gather_worker", WORKER)
gather_worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gather_worker)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(WORKER),
                    str(out)], check=True, capture_output=True, timeout=120)
    return [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one_process():
    objective = Objective(queue_rows=10, queue_start_epoch=0, graph_start_epoch=0, graph_threshold=0.1)
    for seed in (0, 1):
        _, leaves = gather_worker.make_output(2 * gather_worker.VIDEOS, seed)
        leaves = [x.requires_grad_() for x in leaves]
        loss = objective(gather_worker.assemble(leaves), 0, gather_rows, 0)
        loss.total.backward()
    return loss, [x.grad for x in leaves], objective.queue.rows


@pytest.mark.parametrize("mode", ["local", "all"])
def test_terms_averaged_over_ranks_are_those_of_one_process(two_ranks, one_process, mode):
    loss, _, queue = one_process
    for name, value in loss.terms.items():
        torch.testing.assert_close((two_ranks[0][mode]["terms"][name] + two_ranks[1][mode]["terms"][name]) / 2,
                                   value.detach(), rtol=1e-12, atol=0)
    for rank in two_ranks:
        assert torch.equal(rank[mode]["queue"], queue)


def test_all_gradients_averaged_over_ranks_are_those_of_one_process(two_ranks, one_process):
    for index, gradient in enumerate(one_process[1]):
        ranks = torch.cat([rank["all"]["gradients"][index] for rank in two_ranks]) / 2
        torch.testing.assert_close(ranks, gradient, rtol=1e-10, atol=1e-14)


def test_local_gradients_are_those_with_other_ranks_rows_held_fixed(two_ranks):
    for rank in (0, 1):
        own = slice(rank * gather_worker.VIDEOS, (rank + 1) * gather_worker.VIDEOS)
        objective = Objective(queue_rows=10, queue_start_epoch=0, graph_start_epoch=0, graph_threshold=0.1)
        for seed in (0, 1):
            _, whole = gather_worker.make_output(2 * gather_worker.VIDEOS, seed)
            leaves = [x[own].clone().requires_grad_() for x in whole]
            stacks = [torch.stack([*whole[:3], *whole[5:8]], dim=1), whole[11]]

            def gather(rows, stacks=iter(stacks)):
                fixed = next(stacks)
                return torch.cat([rows if r == rank else fixed[r * len(rows):(r + 1) * len(rows)] for r in (0, 1)])

            loss = objective(gather_worker.assemble(leaves), 0, gather, rank)
            loss.total.backward()
        torch.testing.assert_close(loss.total.detach(), two_ranks[rank]["local"]["total"], rtol=1e-12, atol=0)
        for mine, theirs in zip(leaves, two_ranks[rank]["local"]["gradients"]):
            torch.testing.assert_close(mine.grad, theirs, rtol=1e-10, atol=1e-14)


def test_gradient_modes_differ(two_ranks):
    assert not torch.allclose(two_ranks[0]["local"]["gradients"][2], two_ranks[0]["all"]["gradients"][2])


def test_average_and_objects(two_ranks):
    for rank in two_ranks:
        assert rank["average"].tolist() == [0.5, 1.0]
        assert rank["objects"] == [{"rank": 0}, {"rank": 1}]


def test_without_a_process_group():
    rows = torch.ones(2, 3, requires_grad=True)
    assert gather_rows(rows) is rows
    assert average(torch.tensor(3.0)) == 3 and gather_objects("a") == ["a"]


def test_absent_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert visible_gpus(None) == [0, 1] and visible_gpus("1") == [1]
    with pytest.raises(InputError, match="--gpu 0,2: this machine has 2"):
        visible_gpus("0,2")


def test_a_driver_without_a_gpu_is_no_machine_without_gpus(monkeypatch, tmp_path, capsys):
    """Days of training on the CPU are not what --gpu 0 asked for."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("utils.launch.DRIVER", tmp_path / "version")
    assert visible_gpus("0") == [] and "--gpu 0 is not used" in capsys.readouterr().out
    (tmp_path / "version").write_text("NVRM version")
    with pytest.raises(InputError, match="--gpu 0: torch .* sees no GPU here, though there is an NVIDIA driver"):
        visible_gpus("0")
    assert visible_gpus("none") == [] and visible_gpus(None) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus("0") == []


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 8])
def test_what_is_true_in_one_process_is_known_in_all(world_size, monkeypatch):
    """Threads in place of processes; with two processes, see below."""
    mail, here = defaultdict(Queue), threading.local()
    monkeypatch.setattr(dist, "isend", lambda tensor, to, group: mail[here.rank, to].put(tensor.clone()) or Mock())
    monkeypatch.setattr(dist, "recv", lambda tensor, source, group: tensor.copy_(mail[source, here.rank].get(timeout=10)))

    def exchange(rank: int, true_in: int) -> list[bool]:
        here.rank = rank
        return true_on_any_rank([rank == true_in, False, True], DistContext(rank, world_size, torch.device("cpu")))

    with ThreadPoolExecutor(world_size) as pool:
        for true_in in range(world_size):
            assert [*pool.map(exchange, range(world_size), [true_in] * world_size)] == [[True, False, True]] * world_size


def test_what_is_true_in_one_of_two_processes(two_ranks):
    assert [rank["any"] for rank in two_ranks] == [[True, True, False]] * 2


@pytest.mark.parametrize("version, cudnn, says", [
    ("2.9.1+cu128", 91002, "torch 2.9.1+cu128 with cuDNN 9.10: "), ("2.9.0", 91500, ""), ("2.10.0", 91002, ""),
    ("2.14.1+cu130", 92400, ""), ("2.11.0a0+git1", None, "no cuDNN")])
def test_slow_convolutions_are_warned_of(version, cudnn, says):
    warning = conv3d_warning(version, cudnn)
    assert bool(warning) == bool(says) and says in warning and len(warning.splitlines()) < 2


def test_a_failed_process_ends_before_its_group_is_destroyed():
    """gloo aborts some processes in which the interpreter destroys a group; what would run later at exit must not."""
    program = """
import sys
from argparse import Namespace
from multiprocessing.util import Finalize
import torch
import torch.distributed as dist
from utils.distributed import DistContext
from utils.errors import InputError
from utils.launch import run_and_report

def enter():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return DistContext(0, 1, torch.device("cpu"))

def work(context, flags):
    Finalize(None, print, ("too late",), exitpriority=-2)
    raise InputError("wrong")

sys.exit(run_and_report(enter, work, Namespace(dist_timeout=30), "program"))
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).resolve().parents[2], capture_output=True,
                            text=True)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "program: error: wrong\n")
