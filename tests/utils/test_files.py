"""Files written whole or not at all, locks between real processes, and progress without a terminal."""
from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.errors import InputError
from utils.files import file_sha256, hold_lock, read_lines, show_progress, write_atomically

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from utils.files import hold_lock
lock = hold_lock(sys.argv[1], "busy")
print("held", flush=True)
time.sleep(60)
"""


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, "é")
    assert path.read_bytes() == b"\xc3\xa9"
    assert file_sha256(path) == "4a99557e4033c3539de2eb65472017cad5f9557f7a0625a09f1c3f6e2ba69c4c"

    def fail(file) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError) as error:
        write_atomically(path, fail)
    assert error.value.filename == str(path)
    assert path.read_bytes() == b"\xc3\xa9" and [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"


def test_a_lock_keeps_other_processes_out_until_its_holder_ends(tmp_path, capsys):
    path = tmp_path / ".lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        begin = time.monotonic()
        with pytest.raises(InputError, match="^taken$"):
            hold_lock(path, "taken", wait_s=0.5, waiting="waiting 0.5 s")
        assert time.monotonic() - begin >= 0.5 and capsys.readouterr().out == "waiting 0.5 s\n"
    finally:
        holder.kill()
        holder.wait()
    with hold_lock(path, "taken"):
        pass
    hold_lock(path, "taken").lock.release()


def test_progress_without_a_terminal_is_plain_lines(monkeypatch, capsys):
    monkeypatch.setattr("utils.files.SECONDS_BETWEEN_LINES", 0)
    assert list(show_progress(iter("ab"), 2, "reading", "videos")) == ["a", "b"]
    assert capsys.readouterr().err.startswith("reading: 1 of 2 videos, ")


def test_a_line_of_a_list_is_one_line_on_the_terminal(tmp_path):
    (tmp_path / "list.txt").write_text("a\r\n\nb \nc\x0bd\n")
    with pytest.raises(InputError, match=r"list.txt:4: 'c\\x0bd', expected one line of text"):
        read_lines(tmp_path / "list.txt")
