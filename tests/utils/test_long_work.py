"""Work of the main process that takes longer than --dist_timeout, such as counting the frames of video files."""
from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LONG = """
import sys, time
sys.path.insert(0, sys.argv.pop(1))
from utils.cli import OneLineParser, add_launch_flags
from utils.distributed import gather_objects, run_long_on_main
from utils.errors import InputError
from utils.launch import launch

def count():
    time.sleep(6)
    return [40, 41]

def refuse():
    raise InputError("v.mp4: cannot be counted")

def work(context, flags):
    counts = run_long_on_main(context, count)
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
                             "--gpu", "none", "--dist_timeout", "5"], capture_output=True, text=True, timeout=90,
                            env={"PYTHONPATH": str(ROOT), "PATH": ""})
    assert "[[40, 41], [40, 41]]" in result.stdout, result.stderr
    assert (result.returncode, result.stderr) == (2, "program: error: v.mp4: cannot be counted\n")


LAUNCHER_KILLED = """
import os, signal, sys, time
sys.path.insert(0, sys.argv.pop(1))
from utils.cli import OneLineParser, add_launch_flags
from utils.launch import launch

def work(context, flags):
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parser = OneLineParser(prog="program")
    add_launch_flags(parser)
    launch(work, parser.parse_args(), "program")
"""


def test_processes_end_with_a_launcher_that_is_killed(tmp_path):
    """Also where SIGINT is ignored, as after `nohup`; the pipe that they print to closes only once all have ended."""
    script = tmp_path / "killed.py"
    script.write_text(LAUNCHER_KILLED)
    flags = "--multiprocessing-distributed --nproc 1 --gpu none".split()
    result = subprocess.run([sys.executable, str(script), str(ROOT), *flags], capture_output=True, timeout=40)
    assert result.returncode == -signal.SIGKILL
