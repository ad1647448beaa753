"""Which addresses a run listens on, and that nothing of the environment is written down: real processes."""
from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.process_tree import send, tree

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("--net r3d10 --img_dim 32 --train_batch 2 --workers 1 --channel 8 --cluster 6 --queue 6 --queue_start 1 --split 1 "
         "--epoch 1000 --lr_decay 3 --log_every 1 --save_every 100 --save_steps 1").split()
SECRET = "a4f1-not-to-be-written-9c2e"
LISTENING = "0A"  # Linux, net/tcp_states.h: TCP_LISTEN


def listening(pid: int) -> set[tuple[str, int]]:
    """(address in hexadecimal as the kernel writes it, port) of every TCP socket that a process listens on."""
    try:
        names = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
    except OSError:  # it has ended, or closed a file, meanwhile
        return set()
    own = {name.removeprefix("socket:[").removesuffix("]") for name in names if name.startswith("socket:[")}
    found = set()
    for family in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{family}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and fields[9] in own:
                address, port = fields[1].split(":")
                found.add((address, int(port, 16)))
    return found


def loopback(address: str) -> bool:
    """Whether an IPv4 or IPv6 address of /proc/net is one that only this machine reaches."""
    return address in ("0100007F", "00000000000000000000000001000000")


@pytest.fixture(scope="module")
def run(videos_csv, tmp_path_factory):
    """(port of --dist-url, what the processes listen on, the run's folder) of a two-process run that was stopped again."""
    folder = tmp_path_factory.mktemp("two_processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "--csv_file", str(videos_csv), "--out", "run", *SMALL, "--dist-url",
         f"tcp://127.0.0.1:{port}", "--multiprocessing-distributed", "--nproc", "2"], cwd=folder, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "SECRET_TOKEN": SECRET},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        log, deadline = folder / "run/log.jsonl", time.monotonic() + 120
        while not log.exists() or len(log.read_text().splitlines()) < 2:
            assert time.monotonic() < deadline and process.poll() is None, process.communicate()
            time.sleep(0.1)
        sockets = set().union(*map(listening, tree(process.pid)))
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 75, output + errors
    finally:
        send(process.pid, signal.SIGKILL)
    (folder / "run" / "output.txt").write_text(output + errors)
    return port, sockets, folder / "run"


def test_processes_listen_where_the_url_says_and_nowhere_else(run):
    """torch's own store would listen on every interface, and gloo on the one that the machine's name leads to."""
    port, sockets, _ = run
    assert ("0100007F", port) in sockets
    assert len(sockets) >= 3 and all(loopback(address) for address, _ in sockets), sockets  # the store and gloo's


def test_the_check_sees_a_socket_on_every_interface():
    with socket.socket() as everywhere:
        everywhere.bind(("", 0))
        everywhere.listen()
        found = listening(os.getpid())
        assert ("00000000", everywhere.getsockname()[1]) in found and not all(loopback(address) for address, _ in found)


def test_no_secret_of_the_environment_is_written_down(run):
    """Neither in config.json and the log, nor in TensorBoard's events, checkpoints (uncompressed), or on the terminal."""
    files = [path for path in run[2].rglob("*") if path.is_file()]
    assert {"config.json", "log.jsonl", "output.txt"} <= {path.name for path in files} and len(files) >= 5
    assert not [path for path in files if SECRET.encode() in path.read_bytes() or b"SECRET_TOKEN" in path.read_bytes()]


def test_a_taken_port_is_a_one_line_error(videos_csv, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        result = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), "--csv_file", str(videos_csv), "--out", "run", *SMALL, "--dist-url",
             url, "--world-size", "2", "--rank", "0", "--gpu", "none"],
            cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert url in result.stderr and "Address already in use" in result.stderr
