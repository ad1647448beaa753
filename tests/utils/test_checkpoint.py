"""Checkpoints: atomic writing, safe reading, pruning."""
from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.checkpoint import (checkpoint_path, find_checkpoint, list_checkpoints, prune_checkpoints,
                              read_checkpoint, write_checkpoint)
from utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_scalars_are_read_and_other_objects_are_named_in_one_sentence(tmp_path, zipped):
    path = tmp_path / "a.pth"
    scalars = {"float": np.float64(0.7), "half": np.float16(2), "int": np.int64(3), "bool": np.bool_(True),
               "text": np.str_("x")}
    torch.save({"x": torch.ones(1), **scalars}, path, _use_new_zipfile_serialization=zipped)
    loaded = read_checkpoint(path)
    assert {name: loaded[name] for name in scalars} == scalars and loaded["x"].item() == 1
    for value, name in ((argparse.Namespace(lr=0.1), "argparse.Namespace"),
                        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
                        (np.zeros(2), "numpy.ndarray"), (Path("x"), "pathlib")):
        torch.save({"x": value}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match=f"^{path}: holds an object of {name}") as error:
            read_checkpoint(path)
        assert str(error.value).isprintable() and str(error.value).endswith("save the weights alone, by "
                                                                            "torch.save(model.state_dict(), PATH)")


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
        prune_checkpoints(tmp_path, 3, checkpoint_path(tmp_path, epoch))
    assert [place for place, _ in list_checkpoints(tmp_path)] == [(3, 0), (6, 0), (7, 0)]


def test_inside_an_epoch_only_the_newest_stays(tmp_path):
    (tmp_path / "epoch_0009.pt.partial").write_bytes(b"cut off")
    for epoch, step in ((0, 2), (0, 4), (1, 0), (1, 2), (1, 4), (2, 0), (2, 10), (2, 100)):
        write_checkpoint({"n": step}, checkpoint_path(tmp_path, epoch, step))
        prune_checkpoints(tmp_path, 2, checkpoint_path(tmp_path, epoch, step))
        assert list_checkpoints(tmp_path)[-1][0] == (epoch, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch_0002.pt", "epoch_0002_step_000100.pt"]


def test_what_is_later_than_the_one_written_goes(tmp_path):
    """It is torn, or counts steps of a smaller batch: kept as the newest, it would cost the one just written."""
    for place in ((1, 0), (2, 0), (2, 7)):
        checkpoint_path(tmp_path, *place).write_bytes(b"torn")
    written = checkpoint_path(tmp_path, 2, 4)
    write_checkpoint({"n": 1}, written)
    prune_checkpoints(tmp_path, 1, written)
    assert [place for place, _ in list_checkpoints(tmp_path)] == [(1, 0), (2, 0), (2, 4)]


def test_where_a_run_resumes_from(tmp_path):
    assert find_checkpoint(tmp_path, None) == find_checkpoint(tmp_path, "auto") == (None, None, [])
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    write_checkpoint({"n": 1}, checkpoint_path(folder, 4))
    write_checkpoint({"n": 2}, checkpoint_path(folder, 4, 7))
    path, checkpoint, notes = find_checkpoint(tmp_path, "auto")
    assert path.name == "epoch_0004_step_000007.pt" and checkpoint["n"] == 2 and not notes
    assert find_checkpoint(tmp_path / "other", str(folder / "epoch_0004.pt"))[1]["n"] == 1
    assert find_checkpoint(tmp_path, str(path))[1]["n"] == 2
    with pytest.raises(InputError, match="holds epoch_0004_step_000007.pt already"):
        find_checkpoint(tmp_path, str(folder / "epoch_0004.pt"))
    with pytest.raises(InputError, match="epoch_0004_step_000007.pt.; add --resume"):
        find_checkpoint(tmp_path, None)


def test_a_torn_checkpoint_is_skipped(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for epoch in (1, 2):
        write_checkpoint({"x": torch.zeros(1000), "n": epoch}, checkpoint_path(folder, epoch))
    newest = checkpoint_path(folder, 2)
    newest.write_bytes(newest.read_bytes()[:1000])
    path, checkpoint, notes = find_checkpoint(tmp_path, "auto")
    assert path == checkpoint_path(folder, 1) and checkpoint["n"] == 1
    assert len(notes) == 1 and "skipped: " in notes[0] and str(newest) in notes[0]
    checkpoint_path(folder, 1).write_bytes(b"")
    with pytest.raises(InputError, match="no whole checkpoint"):  # rather than from epoch 0 without a word
        find_checkpoint(tmp_path, "auto")


def test_changed_weights_are_found_by_their_checksum(tmp_path):
    """What a disk loses in the middle of a file; torch.load takes the zeros for weights."""
    path = tmp_path / "a.pt"
    write_checkpoint({"x": torch.ones(4096), "n": 1}, path)
    data = bytearray(path.read_bytes())
    middle = data.index(torch.ones(4096).numpy().tobytes()) + 4096
    data[middle:middle + 4096] = bytes(4096)
    path.write_bytes(data)
    assert (torch.load(path, weights_only=True)["x"] == 0).sum() == 1024
    with pytest.raises(InputError, match="a.pt: not a whole checkpoint .*data/0 is damaged"):
        read_checkpoint(path)


def test_a_write_that_fails_says_what_is_needed(tmp_path):
    """A limit on the size of files stands for a full disk; it holds for a process of its own."""
    script = """
import resource, sys, torch
from pathlib import Path
from utils.checkpoint import write_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
write_checkpoint({"x": torch.zeros(10_000)}, Path(sys.argv[1]))
try:
    write_checkpoint({"x": torch.zeros(1_000_000)}, Path(sys.argv[1]))
except Exception as error:
    print(type(error).__name__, error)
"""
    path = tmp_path / "a.pt"
    result = subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.startswith(f"InputError {path}: the checkpoint could not be written: File too large; it needs "
                                    "about 4.0 MB, "), result.stdout + result.stderr
    assert len(read_checkpoint(path)["x"]) == 10_000
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
