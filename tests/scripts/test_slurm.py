"""The SLURM scripts under bash, with replacements for srun, scontrol and scancel; ranks and signals are real."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.process_tree import arguments, send, tree

ROOT = Path(__file__).resolve().parents[2]
SLURM = ROOT / "scripts/slurm"
JOB = str(os.getpid())  # determines the port of the rendezvous
SMALL = ("--net r3d10 --img_dim 32 --train_batch 2 --workers 1 --channel 8 --cluster 6 --queue 6 --queue_start 1 --split 1 "
         "--lr_decay 3 --log_every 1 --save_every 100 --save_steps 1 --gpu none --dist_timeout 30").split()

# srun runs the command on this machine in its own session, as steps do, and writes its process id. scancel signals all
# processes below it, as slurmstepd does. scontrol records its arguments.
COMMANDS = {
    "srun": """
while [[ $1 == --* ]]; do shift; done
setsid "$@" &
echo $! > "$STEP"
wait $!
""",
    "scancel": f"""
echo "scancel $*" >> "$CALLS"
[[ $* == "--signal=USR1 {JOB}" ]] && {sys.executable} {ROOT}/tests/process_tree.py "$(cat "$STEP")" SIGUSR1
""",
    "scontrol": """
[[ $* == "show hostnames node[1]" ]] && echo localhost || echo "scontrol $*" >> "$CALLS"
""",
}
# For testing only the decisions: a step that ends on request, each rank with its own status, torchrun with $SRUN_STATUS.
QUICK_SRUN = """
[[ $WAIT ]] && until grep -qs scancel "$CALLS"; do sleep 0.05; done
for rank in ${STATUSES//,/ }; do echo "$rank" > "$RANK_STATUSES/$((count++))"; done
exit "$SRUN_STATUS"
"""
QUICK_SCANCEL = 'echo "scancel $*" >> "$CALLS"'


@pytest.fixture
def job(tmp_path):
    """Returns a function that starts the batch script as SLURM does, with the flags of train.py."""
    (tmp_path / "bin").mkdir()
    for name in ("scripts", "train.py", "dataset", "models", "utils"):
        (tmp_path / name).symlink_to(ROOT / name)

    started: list[subprocess.Popen] = []

    def begin(*flags: str, commands: dict[str, str] = COMMANDS, **settings: str) -> subprocess.Popen:
        for name, script in commands.items():
            (tmp_path / "bin" / name).write_text("#!/usr/bin/env bash\n" + script)
            (tmp_path / "bin" / name).chmod(0o755)
        environment = {
            **os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": sys.executable, "POLL_S": "1",
            "STEP": str(tmp_path / "step"), "CALLS": str(tmp_path / "calls"), "SLURM_JOB_ID": JOB,
            "SLURM_JOB_NODELIST": "node[1]", "SLURM_JOB_NUM_NODES": "1", "RANKS_PER_NODE": "2", "MAX_RESTARTS": "1",
            "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **settings}
        started.append(subprocess.Popen(["bash", str(SLURM / "pretrain.sbatch"), *flags], cwd=tmp_path, env=environment,
                                        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:  # after a failed test
            send(process.pid, signal.SIGKILL)
            process.communicate()


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def wait_for_steps(folder: Path, process: subprocess.Popen, steps: int) -> None:
    log, deadline = folder / "run/log.jsonl", time.monotonic() + 120
    while not log.exists() or len(log.read_text().splitlines()) < steps:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)


def ranks_below(pid: int) -> list[int]:
    """Process ids of the ranks below a batch shell, without their DataLoader workers."""
    ranks = [child for child in tree(pid) if arguments(child)[1:2] == ["train.py"]]
    return [rank for rank in ranks if not any(rank in list(tree(other))[1:] for other in ranks)]


@pytest.mark.parametrize("name", ["pretrain.sbatch", "node.sh", "rank.sh"])
def test_syntax(name):
    assert subprocess.run(["bash", "-n", str(SLURM / name)]).returncode == 0


def test_a_job_loses_a_rank_is_requeued_and_completes(job, videos_csv, tmp_path):
    flags = ("--csv_file", str(videos_csv), "--out", "run", *SMALL)
    process = job(*flags, "--epoch", "1000")
    wait_for_steps(tmp_path, process, 2)
    first = ranks_below(process.pid)
    assert len(first) == 2
    os.kill(first[1], signal.SIGKILL)
    while not (set(now := ranks_below(process.pid)) - set(first) and len(now) == 2):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)  # the new ranks do not handle it yet
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 75, output + errors
    assert output.count("stopped on request") == 1 and "resumed from run/checkpoints" in output
    assert calls(tmp_path)[-1] == f"scontrol requeue {JOB}"
    assert not any(Path(f"/proc/{pid}").exists() for pid in now)
    newest = max((tmp_path / "run/checkpoints").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    progress = torch.load(newest, weights_only=True)["progress"]
    steps = [line["step"] for line in map(json.loads, (tmp_path / "run/log.jsonl").read_text().splitlines())
             if line["kind"] == "step"]
    assert steps == list(range(1, progress["total_steps"] + 1))  # none lost, none twice

    (tmp_path / "calls").unlink()
    process = job(*flags, "--epoch", str(progress["epoch"] + 1))
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, output + errors
    assert f"resumed from run/checkpoints/{newest.name}" in output
    assert not calls(tmp_path) and not list(tmp_path.glob("*.ranks"))


def test_wrong_input_is_reported_once_and_not_requeued(job, tmp_path):
    process = job("--csv_file", "none.csv", "--out", "run", *SMALL, RANKS_PER_NODE="1")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and errors.count("train.py: error: none.csv") == 1, output + errors
    assert not calls(tmp_path)


@pytest.mark.parametrize("statuses, srun_status, stop, status, requeued", [
    ("0,0", 0, False, 0, False),
    ("0,0", 0, True, 0, False),    # the run was complete when it was stopped
    ("75,75", 0, True, 75, True),
    ("75,75", 0, False, 75, False),  # by `scancel`, which is deliberate
    ("2,3", 1, True, 2, False),
    ("4,4", 0, True, 4, False),
    ("3,137", 1, True, 1, False),  # --max-restarts are used up
    ("", 127, False, 127, False),  # torchrun did not start
])
def test_when_a_job_is_requeued(job, tmp_path, statuses, srun_status, stop, status, requeued):
    commands = {**COMMANDS, "srun": QUICK_SRUN, "scancel": QUICK_SCANCEL}
    process = job(commands=commands, STATUSES=statuses, SRUN_STATUS=str(srun_status), WAIT="yes" if stop else "")
    while stop and not list(tmp_path.glob("*.ranks")):  # until it handles the signal
        time.sleep(0.02)
    if stop:
        process.send_signal(signal.SIGTERM)  # which is for the step
        time.sleep(0.3)  # of two signals at one instant bash may lose one
        process.send_signal(signal.SIGUSR1)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == status and not errors, output + errors
    assert (f"scontrol requeue {JOB}" in calls(tmp_path)) == requeued


@pytest.mark.parametrize("status, returned", [(0, 0), (1, 1), (2, 0), (3, 3), (4, 0), (75, 0), (130, 130)])
def test_exit_status_of_a_rank_for_torchrun(tmp_path, status, returned):
    (tmp_path / "1").write_text("from an earlier run\n")
    result = subprocess.run(["bash", str(SLURM / "rank.sh"), "bash", "-c", f"[[ ! -e {tmp_path}/1 ]] && exit {status}"],
                            env={**os.environ, "RANK": "1", "RANK_STATUSES": str(tmp_path)})
    assert result.returncode == returned and (tmp_path / "1").read_text() == f"{status}\n"


@pytest.mark.parametrize("other, returned", [("2", 0), ("4", 0), ("137", 3), ("0", 3)])
def test_a_rank_lost_through_wrong_input_is_not_restarted(tmp_path, other, returned):
    (tmp_path / "0").write_text(f"{other}\n")
    result = subprocess.run(["bash", str(SLURM / "rank.sh"), "bash", "-c", "exit 3"],
                            env={**os.environ, "RANK": "1", "RANK_STATUSES": str(tmp_path)})
    assert result.returncode == returned


def test_the_command_of_a_node_ignores_signals_until_it_handles_them(tmp_path):
    """Signals before a rank has installed its handlers are ignored; its handlers work."""
    script = ("import os, signal as s; os.kill(os.getpid(), s.SIGUSR1); os.kill(os.getpid(), s.SIGTERM); "
              "s.signal(s.SIGUSR1, lambda *_: print('heard')); os.kill(os.getpid(), s.SIGUSR1)")
    result = subprocess.run(["bash", str(SLURM / "node.sh"), "bash", str(SLURM / "rank.sh"), sys.executable, "-c", script],
                            env={**os.environ, "RANK": "0", "RANK_STATUSES": str(tmp_path)}, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout == "heard\n"
