"""Work of the main process that takes longer than --dist_timeout, such as counting the frames of video files."""
from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LONG = """
import datetime, sys, time
sys.path.insert(0, sys.argv.pop(1))
from utils.cli import OneLineParser, add_launch_flags
from utils.distributed import gather_objects, run_long_on_main
from utils.errors import InputError
from utils.launch import launch
try:
    from torch.distributed import set_timeout
except ImportError:  # torch 2.11 and before
    from torch.distributed.distributed_c10d import _set_pg_timeout as set_timeout

def count():
    time.sleep(1.5)
    return [40, 41]

def refuse():
    raise InputError("v.mp4: cannot be counted")

def work(context, flags):
    set_timeout(datetime.timedelta(seconds=1))  # less than --dist_timeout, which the processes need to start
    counts = run_long_on_main(context, count)
    set_timeout(datetime.timedelta(seconds=60))
    everywhere = gather_objects(counts)
    if context.is_main:
        print(everywhere, flush=True)
    run_long_on_main(context, refuse)

if __name__ == "__main__":
    parser = OneLineParser(prog="program")
    add_launch_flags(parser)
    sys.exit(launch(work, parser.parse_args(), "program"))
"""


def test_the_others_wait_for_the_main_process_beyond_the_timeout(tmp_path):
    script = tmp_path / "long.py"
    script.write_text(LONG)
    result = subprocess.run([sys.executable, str(script), str(ROOT), "--multiprocessing-distributed", "--nproc", "2",
                             "--gpu", "none", "--dist_timeout", "60"], capture_output=True, text=True, timeout=90,
                            env={"PYTHONPATH": str(ROOT), "PATH": ""})
    assert "[[40, 41], [40, 41]]" in result.stdout, result.stderr
    assert (result.returncode, result.stderr) == (2, "program: error: v.mp4: cannot be counted\n")


SPAWNED = """
import multiprocessing, os, signal, sys, time
sys.path.insert(0, sys.argv.pop(1))
from utils.cli import OneLineParser, add_launch_flags
from utils.launch import StopRequest, launch

def kill_launcher(context, flags):
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)

def stop_all(context, flags):
    stop = StopRequest()
    os.killpg(0, signal.SIGUSR1)
    time.sleep(0.3)
    multiprocessing.Lock()  # registered with Python's resource tracker, another process of the group
    return 0 if stop.requested else 1

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    work = globals()[sys.argv.pop(1)]
    parser = OneLineParser(prog="program")
    add_launch_flags(parser)
    sys.exit(launch(work, parser.parse_args(), "program"))
"""


def run_spawned(tmp_path, work):
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED)
    flags = "--multiprocessing-distributed --nproc 1 --gpu none".split()
    result = subprocess.run([sys.executable, str(script), str(ROOT), work, *flags], capture_output=True, text=True,
                            timeout=40, start_new_session=True)
    return result.returncode, result.stderr


def test_processes_end_with_a_launcher_that_is_killed(tmp_path):
    """Also where SIGINT is ignored, as after `nohup`; the pipe that they print to closes only once all have ended."""
    assert run_spawned(tmp_path, "kill_launcher")[0] == -signal.SIGKILL


def test_a_request_to_stop_may_reach_all_processes(tmp_path):
    assert run_spawned(tmp_path, "stop_all") == (0, "")
