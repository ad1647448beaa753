"""The lock by which one extraction at a time writes into a folder."""
from __future__ import annotations

import errno
import os

import pytest

from dataset.prepare.extraction_plan import LOCK, sole_writer
from utils.errors import InputError


def test_two_extractions_into_one_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("dataset.prepare.extraction_plan._WAIT_FOR_LOCK_S", 0.2)
    with sole_writer(tmp_path / "f"):
        with pytest.raises(InputError, match="another extraction is writing into it"):
            with sole_writer(tmp_path / "f"):
                pass
    with sole_writer(tmp_path / "f"):
        pass


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, capsys):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("utils.files.fcntl.flock", flock)
    with sole_writer(tmp_path):
        pass
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / LOCK}: cannot be locked (No locks available)")
