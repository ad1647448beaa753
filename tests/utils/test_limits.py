"""Limits of the machine that a run meets are one line with the remedy, exit status 2; other errors keep their traceback."""
from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.errors import exit_status_of

ROOT = Path(__file__).resolve().parents[2]
# A worker that cannot pass its batch on, as with a full /dev/shm: torch's RuntimeError comes in the thread that sends.
WORKER = """
import os, sys
sys.path.insert(0, sys.argv[1])
import torch
from argparse import Namespace
from functools import partial
from dataset.videos import build_loader
from utils.distributed import DistContext
from utils.launch import run_and_report

class Unsendable:
    def __reduce__(self):
        raise RuntimeError(f"unable to write to file </torch_1>: {os.strerror(int(sys.argv[2]))} ({sys.argv[2]})")

def work(context, flags):
    list(build_loader([0, 1], [[0], [1]], 1, context.device, lambda samples: Unsendable(), timeout_s=30))

sys.exit(run_and_report(partial(DistContext, 0, 1, torch.device("cpu")), work, Namespace(dist_timeout=30), "program"))
"""


@pytest.mark.parametrize("error, named", [
    (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"), "/dev/shm"),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. "), "--shm-size"),
    (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "ulimit -n"),
    (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
    (RuntimeError("InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx"), "--compile"),
])
def test_a_limit_is_one_line_with_its_remedy(capsys, error, named):
    def work():
        raise error

    assert exit_status_of(work, "program") == 2
    message = capsys.readouterr().err
    assert message.startswith("program: error: ") and message.count("\n") == 1 and named in message


def test_other_errors_keep_their_traceback():
    def work():
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        exit_status_of(work, "program")


@pytest.mark.parametrize("number, status, named", [(errno.ENOSPC, 2, "/dev/shm"), (errno.EINVAL, 3, "DataLoader worker")])
def test_a_worker_that_cannot_pass_its_batch_on_ends_at_once(number, status, named):
    result = subprocess.run([sys.executable, "-c", WORKER, str(ROOT), str(number)], capture_output=True, text=True,
                            timeout=60)
    line = result.stderr.splitlines()[-1]
    assert (result.returncode, "Traceback" in result.stderr) == (status, False), result.stderr
    assert line.startswith("program: error: ") and named in line
