"""Checkpoints: atomic writing, safe reading, pruning."""
from __future__ import annotations

import os
import pickle

import pytest
import torch

from utils.checkpoint import (checkpoint_path, list_checkpoints, prune_checkpoints, read_checkpoint, resume_source,
                              write_checkpoint)
from utils.errors import InputError


def test_round_trip_leaves_no_partial_file(tmp_path):
    write_checkpoint({"x": torch.arange(3), "n": 1}, tmp_path / "a.pt")
    loaded = read_checkpoint(tmp_path / "a.pt")
    assert loaded["n"] == 1 and loaded["x"].tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_failed_write_keeps_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    write_checkpoint({"n": 1}, path)
    before = path.read_bytes()

    def full_disk(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(InputError, match="No space left"):
        write_checkpoint({"n": 2}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


class Crafted:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_crafted_pickle_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Crafted()}, "bad.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Crafted()))
    for name in ("bad.pt", "bare.pt"):
        with pytest.raises(InputError, match=name) as error:
            read_checkpoint(name)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 torn"])
def test_unreadable_files_are_one_line(tmp_path, content):
    path = tmp_path / "torn.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="torn.pt") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


def test_torn_checkpoint_and_missing_file(tmp_path):
    write_checkpoint({"x": torch.zeros(1000)}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(InputError, match="a.pt"):
        read_checkpoint(tmp_path / "a.pt")
    with pytest.raises(InputError, match="none.pt: cannot read"):
        read_checkpoint(tmp_path / "none.pt")


def test_newest_and_every_nth_stay(tmp_path):
    for epoch in range(1, 8):
        write_checkpoint({"n": epoch}, checkpoint_path(tmp_path, epoch))
        prune_checkpoints(tmp_path, 3)
    assert [epoch for epoch, _ in list_checkpoints(tmp_path)] == [3, 6, 7]


def test_where_a_run_goes_on_from(tmp_path):
    assert resume_source(tmp_path, None) is None and resume_source(tmp_path, "auto") is None
    (tmp_path / "checkpoints").mkdir()
    write_checkpoint({"n": 1}, checkpoint_path(tmp_path / "checkpoints", 4))
    assert resume_source(tmp_path, "auto").name == "epoch_0004.pt"
    assert str(resume_source(tmp_path, "other.pt")) == "other.pt"
    with pytest.raises(InputError, match="4 epoch.s. already; add --resume"):
        resume_source(tmp_path, None)
