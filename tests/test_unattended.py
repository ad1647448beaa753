"""Runs that are killed, asked to stop, or lose a process: real processes, real signals."""
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

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("--net r3d10 --img_dim 32 --train_batch 2 --workers 1 --channel 8 --cluster 6 --queue 6 --queue_start 1 "
         "--split 1 --epoch 40 --lr_decay 3 --log_every 1 --save_every 100").split()
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
SPAWN = ("--multiprocessing-distributed", "--nproc", "2")


def begin(cwd: Path, csv: Path, *flags: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    command = [sys.executable, *launcher, str(ROOT / "train.py"), "--csv_file", str(csv), "--out", "run", *SMALL, *flags]
    return subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            start_new_session=True)


def wait_for_steps(cwd: Path, process: subprocess.Popen, steps: int) -> None:
    log, deadline = cwd / "run/log.jsonl", time.monotonic() + 120
    while not log.exists() or len(log.read_text().splitlines()) < steps:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)


def finish(process: subprocess.Popen, timeout_s: float = 60) -> tuple[int, str, str]:
    """Exit status, stdout, stderr; nothing of the job may be left."""
    output, errors = process.communicate(timeout=timeout_s)
    return process.returncode, output, errors


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def training_processes(pid: int) -> list[int]:
    """The spawned ranks below a launcher, first rank first."""
    return [child for child in children(pid) if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def newest(cwd: Path) -> dict:
    path = max((cwd / "run/checkpoints").glob("*.pt"), key=lambda path: path.stat().st_mtime_ns)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("kills, processes", [(6, 1), (2, 2)])
def test_killed_at_random_moments_and_resumed_is_the_run_left_alone(kills, processes):
    result = subprocess.run([sys.executable, str(ROOT / "tests/robustness/kill_and_resume.py"), "--kills", str(kills),
                             "--processes", str(processes)], env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "the same, bit for bit" in result.stdout and f"{kills} kills of {processes} process(es)" in result.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_request_to_stop_ends_the_run_after_its_step_with_a_checkpoint(videos_csv, tmp_path, number):
    process = begin(tmp_path, videos_csv)
    wait_for_steps(tmp_path, process, 3)
    os.killpg(process.pid, number)  # to the DataLoader workers too, as batch systems do
    status, output, errors = finish(process)
    assert status == 75 and "stopped on request; --resume resumes" in output and not errors
    checkpoint = newest(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "step"]
    assert checkpoint["progress"]["total_steps"] == len(steps) == steps[-1] >= 3


@pytest.mark.parametrize("form", ["spawn", "torchrun"])
def test_all_processes_stop_at_the_same_step(videos_csv, tmp_path, form):
    """SIGTERM reaches the launcher alone, which passes it on; the processes need not be in the same step then."""
    process = begin(tmp_path, videos_csv, *SPAWN, "--dist-url", "tcp://127.0.0.1:10052") if form == "spawn" else begin(
        tmp_path, videos_csv, launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"))
    wait_for_steps(tmp_path, process, 3)
    process.send_signal(signal.SIGTERM)
    status, output, errors = finish(process)
    assert status == 75 if form == "spawn" else status != 0
    assert output.count("stopped on request") == 1
    assert len(newest(tmp_path)["processes"]) == 2
    assert form == "torchrun" or not errors


def test_interrupted_by_the_keyboard(videos_csv, tmp_path):
    process = begin(tmp_path, videos_csv)
    wait_for_steps(tmp_path, process, 2)
    os.killpg(process.pid, signal.SIGINT)
    status, _, errors = finish(process)
    assert status == 130 and errors == "train.py: interrupted\n"


@pytest.mark.parametrize("number, named", [(signal.SIGKILL, "ended by SIGKILL"), (signal.SIGSTOP, "was silent for longer")])
def test_a_lost_process_ends_the_job(videos_csv, tmp_path, number, named):
    process = begin(tmp_path, videos_csv, *SPAWN, "--dist-url", "tcp://127.0.0.1:10053", "--dist_timeout", "8")
    wait_for_steps(tmp_path, process, 2)
    ranks = training_processes(process.pid)
    assert len(ranks) == 2
    os.kill(ranks[1], number)
    began = time.monotonic()
    status, _, errors = finish(process)
    assert status == 3 and time.monotonic() - began < 60
    [line] = [line for line in errors.splitlines() if line.startswith("train.py")]
    assert named in line and "Traceback" not in errors, errors
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)


def test_a_lost_dataloader_worker_is_named(videos_csv, tmp_path):
    process = begin(tmp_path, videos_csv)
    wait_for_steps(tmp_path, process, 2)
    [worker] = [child for child in children(process.pid) if b"train.py" in Path(f"/proc/{child}/cmdline").read_bytes()]
    os.kill(worker, signal.SIGKILL)
    status, _, errors = finish(process)
    assert status == 3 and errors.count("\n") == 1 and f"DataLoader worker {worker}" in errors and "Killed" in errors


@pytest.mark.parametrize("launcher", [(), SPAWN])
def test_a_dataloader_that_hangs_ends_the_job(tmp_path, launcher):
    """Frames that never come, as from a file server that is gone: pipes into which nobody writes."""
    for video in range(8):
        (tmp_path / f"v{video}").mkdir()
        for frame in range(1, 41):
            os.mkfifo(tmp_path / f"v{video}" / f"image_{frame:05d}.jpg")
    (tmp_path / "hanging.csv").write_text("".join(f"v{video},40\n" for video in range(8)))
    process = begin(tmp_path, tmp_path / "hanging.csv", *launcher, "--dist-url", "tcp://127.0.0.1:10054", "--dist_timeout",
                    "5")
    status, _, errors = finish(process)
    assert status == 3 and "Traceback" not in errors, errors
    assert "no batch came from the DataLoader workers for 5 s" in errors


def test_processes_whose_launcher_is_killed_while_they_start_do_not_train(videos_csv, tmp_path):
    process = begin(tmp_path, videos_csv, *SPAWN, "--dist-url", "tcp://127.0.0.1:10055")
    deadline = time.monotonic() + 60
    while len(ranks := training_processes(process.pid)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()  # returns when the ranks, which hold its output too, are ending
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not (tmp_path / "run/log.jsonl").exists()


def test_a_second_start_in_a_run_directory_is_refused(videos_csv, tmp_path):
    first = begin(tmp_path, videos_csv)
    wait_for_steps(tmp_path, first, 1)
    status, output, errors = finish(begin(tmp_path, videos_csv, "--resume", "--dist_timeout", "4"))
    assert status == 2 and "waiting 2 s for its end" in output
    assert errors.count("\n") == 1 and "--out run: another process writes there" in errors
    first.terminate()
    assert finish(first)[0] == 75


def test_a_request_to_stop_in_the_last_step_keeps_the_last_monitor_run(videos_csv, tmp_path):
    rows = [f"{videos_csv.parent / row},{number % 2}\n" for number, row in enumerate(videos_csv.read_text().split())]
    for name, part in (("train", rows[:6]), ("test", rows[6:])):
        (tmp_path / f"{name}.csv").write_text("".join(part))
    process = begin(tmp_path, videos_csv, "--train_batch", "8", "--epoch", "1", "--split", "0", "--monitor_csv", "train.csv",
                    "test.csv")
    while not (tmp_path / "run/config.json").exists():  # the one step is still to come
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.terminate()
    status, output, errors = finish(process, 120)
    assert (status, errors) == (0, "") and "monitor: R@1" in output


def test_torchrun_starts_a_lost_rank_again(videos_csv, tmp_path):
    process = begin(tmp_path, videos_csv, "--resume", "--save_steps", "2", "--epoch", "3", launcher=(
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", "1"))
    wait_for_steps(tmp_path, process, 4)  # two steps, the epoch's line, and one of after its checkpoint
    ranks = [child for child in children(process.pid) if b"train.py" in Path(f"/proc/{child}/cmdline").read_bytes()]
    os.kill(ranks[1], signal.SIGKILL)
    status, output, errors = finish(process, 120)
    assert status == 0, errors[-2000:]
    assert "resumed from run/checkpoints/epoch_" in output and newest(tmp_path)["epochs_done"] == 3


def test_non_finite_steps_can_be_skipped(videos_csv, tmp_path):
    """With such a rate every second step is wrong: the bound on skips ends the run, nothing wrong is ever written."""
    process = begin(tmp_path, videos_csv, "--lr", "1e30", "--on_nonfinite", "skip", "--max_skips", "2")
    status, output, errors = finish(process)
    assert status == 4 and errors.count("\n") == 1 and "--max_skips 2 are used up" in errors
    assert output.count("this step is skipped") == 2
    dumps = sorted((tmp_path / "run/not_finite").iterdir())
    stored = json.loads(dumps[-1].read_text())["processes"][0]
    assert len(dumps) == 3 and stored["values"] and all(Path(path).is_dir() for path in stored["videos"])


def test_unreadable_videos_are_replaced_and_counted(videos_csv, tmp_path):
    csv = tmp_path / "with_gone.csv"
    csv.write_text("".join(f"{videos_csv.parent / row}\n" for row in videos_csv.read_text().split()) + "gone,40\n")
    process = begin(tmp_path, csv, "--max_bad_fraction", "0.2", "--epoch", "2", "--workers", "2")
    status, output, errors = finish(process)
    assert status == 0 and not errors and output.count("is replaced by another") == 1
    events = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines() if "bad_video" in line]
    assert [event["path"] for event in events] == [str(tmp_path / "gone")]
    assert newest(tmp_path)["progress"]["bad_videos"].keys() == {str(tmp_path / "gone")}


def test_a_full_disk_leaves_what_was_there(videos_csv, tmp_path):
    """A limit on the size of files, larger than the log and smaller than a checkpoint, stands for the full disk."""
    command = [sys.executable, str(ROOT / "train.py"), "--csv_file", str(videos_csv), "--out", "run", *SMALL, "--epoch", "1",
               "--split", "0"]
    limited = "import resource, os, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (10**7,) * 2); "
    limited += "os.execv(sys.argv[1], sys.argv[1:])"
    result = subprocess.run([sys.executable, "-c", limited, *command], cwd=tmp_path, env=ENVIRONMENT, capture_output=True,
                            text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert "the checkpoint could not be written: File too large; it needs about " in result.stderr
    assert not list((tmp_path / "run/checkpoints").iterdir())


def test_machines_with_different_videos_are_refused(videos_csv, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text(videos_csv.read_text().replace("v1", str(videos_csv.parent / "v1")).replace("v0,40\n", ""))
    url = ("--dist-url", "tcp://127.0.0.1:10054", "--world-size", "2")
    machines = [begin(tmp_path, csv, *url, "--rank", str(rank)) for rank, csv in enumerate((videos_csv, other))]
    results = [finish(machine) for machine in machines]
    assert results[0][0] == 2 and "--csv_file (SHA-256)" in results[0][2] and results[1][0] == 2
