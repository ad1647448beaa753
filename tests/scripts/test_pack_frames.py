"""Packing from the command line: the same frames as from folders, restarts, and conflicts."""
from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dataset.frames import read_frames
from dataset.prepare.packing import LOCK
from dataset.records import read_records
from scripts.check_data import main as check
from scripts.pack_frames import main
from utils.files import hold_lock

ROOT = Path(__file__).resolve().parents[2]
SHARDS = ["shard_00000.tar", "shard_00001.tar", "shard_00002.tar"]


@pytest.fixture
def frames_csv(tmp_path: Path, write_coded_video: Callable) -> Path:
    """A csv of five folders of three to seven frames, named differently, with labels 0 to 4."""
    rows = ["frame_dir,number_of_frames,label"]
    patterns = ["image_{:05d}.jpg", "image_{:05d}.jpg", "{:03d}.png", "f{:d}.jpeg", "image_{:05d}.jpg"]
    for index, pattern in enumerate(patterns):
        write_coded_video(tmp_path / "frames" / f"class {index % 2}" / f"v{index}", 3 + index, pattern, index % 2)
        rows.append(f"class {index % 2}/v{index},{3 + index},{index}")
    path = tmp_path / "frames" / "train.csv"
    path.write_text("\n".join(rows))
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_the_packed_csv_gives_the_same_frames(frames_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "packed"
    assert run(frames_csv, out, "--per_shard", 2) == 0
    assert sorted(os.listdir(out)) == [".packing.lock", *SHARDS, "train.csv"]
    assert "5 videos; shards: 3 written, 0 were there already; train.csv\n" in capsys.readouterr().out
    assert (out / "train.csv").read_text().splitlines()[3] == "shard_00001.tar/class 0/v2,5,2"
    loose, packed = (read_records(path, labelled=True) for path in (frames_csv, out / "train.csv"))
    assert [(v.num_frames, v.label) for v in packed] == [(v.num_frames, v.label) for v in loose]
    for a, b in zip(loose, packed, strict=True):
        for indices, size in ((np.arange(a.num_frames), None), (np.array([2, 0, 2]), (40, 30))):
            assert np.array_equal(read_frames(b.path, indices, b.num_frames, size),
                                  read_frames(a.path, indices, a.num_frames, size))


def test_tar_restores_the_folders(frames_csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    assert run(frames_csv, out, "--per_shard", 5) == 0
    subprocess.run(["tar", "xf", out / "shard_00000.tar", "-C", out, "--exclude=frame_index.bin"], check=True)
    loose = {p.relative_to(frames_csv.parent): p.read_bytes() for p in frames_csv.parent.rglob("*.*") if p != frames_csv}
    assert {p.relative_to(out): p.read_bytes() for p in out.rglob("class*/*/*.*")} == loose and len(loose) == 25


def test_a_second_run_writes_what_is_missing(frames_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "packed"
    assert run(frames_csv, out, "--per_shard", 2) == 0
    contents = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "shard_00001.tar").unlink()
    (out / "train.csv").unlink()
    (out / "shard_00002.tar.partial").write_bytes(b"left by a killed run")
    kept = (out / "shard_00000.tar").stat().st_mtime_ns
    assert run(frames_csv, out, "--per_shard", 2, "--workers", 3) == 0
    assert "shards: 1 written, 2 were there already" in capsys.readouterr().out
    assert (out / "shard_00000.tar").stat().st_mtime_ns == kept
    assert {name: (out / name).read_bytes() for name in contents} == contents


def test_a_failed_run_leaves_no_csv_and_no_partial_shard(frames_csv: Path, tmp_path: Path) -> None:
    """The third folder lacks a frame: the first shard is there, the second and the csv are not."""
    (frames_csv.parent / "class 0" / "v2" / "004.png").unlink()
    out = tmp_path / "packed"
    assert run(frames_csv, out, "--per_shard", 2, "--workers", 1) == 2
    assert "shard_00000.tar" in os.listdir(out) and not {"train.csv", "shard_00001.tar"} & set(os.listdir(out))
    assert not [name for name in os.listdir(out) if name.endswith(".partial")]


def test_csv_files_share_the_shards(frames_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three overlapping csv files, one in another folder, with another header and fewer frames of a video."""
    test = frames_csv.with_name("test.csv")
    test.write_text("class 1/v3,6,0\nclass 0/v0,3,1\n")
    pretrain = tmp_path / "lists" / "pretrain.csv"
    pretrain.parent.mkdir()
    pretrain.write_text("folder,frames\n../frames/class 0/v2,4\n../frames/class 1/v1,4\n")
    out = tmp_path / "packed"
    assert run(pretrain, test, frames_csv, out, "--per_shard", 3) == 0
    said = "5 videos; shards: 2 written, 0 were there already; pretrain.csv, test.csv, train.csv\n"
    assert said in capsys.readouterr().out
    header = "frame_dir,number_of_frames"
    assert (out / "pretrain.csv").read_text() == (
        f"{header}\nshard_00000.tar/class 0/v2,4\nshard_00000.tar/class 1/v1,4\n")
    assert (out / "test.csv").read_text() == (
        f"{header},label\nshard_00000.tar/class 1/v3,6,0\nshard_00001.tar/class 0/v0,3,1\n")
    listed = [subprocess.run(["tar", "tf", out / name], capture_output=True, text=True).stdout for name in SHARDS[:2]]
    assert sum(text.count("/v2/") for text in listed) == 5 and sum(text.count("/v0/") for text in listed) == 3
    for path in (pretrain, test, frames_csv):
        labelled = path != pretrain
        for a, b in zip(read_records(path, labelled), read_records(out / path.name, labelled), strict=True):
            assert (a.num_frames, a.label) == (b.num_frames, b.label)
            every = np.arange(a.num_frames)
            assert np.array_equal(read_frames(a.path, every, a.num_frames), read_frames(b.path, every, b.num_frames))


def test_a_third_column_without_labels_is_dropped(frames_csv: Path, tmp_path: Path) -> None:
    frames_csv.write_text("class 0/v2,5,unknown\nclass 0/v0,3,\n")
    assert run(frames_csv, tmp_path / "packed") == 0
    lines = (tmp_path / "packed" / "train.csv").read_text().splitlines()
    assert lines == ["frame_dir,number_of_frames", "shard_00000.tar/v2,5", "shard_00000.tar/v0,3"]


def test_two_csv_files_of_one_name(frames_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "train.csv"
    other.write_text("frames/class 0/v0,3")
    for second in (frames_csv, other):
        assert run(frames_csv, second, tmp_path / "packed") == 2
        assert_line(capsys, r"train.csv: the csv file, or another of the same name, is given twice")
    assert not (tmp_path / "packed").exists()


def test_the_frames_before_a_gap_are_packed(frames_csv: Path, tmp_path: Path) -> None:
    """As in the csv that check_data.py --fix writes."""
    break_gap(frames_csv)
    out, fixed = tmp_path / "packed", tmp_path / "clean" / "train.csv"
    assert check([str(frames_csv), "--fix", str(fixed)]) == 1
    assert run(fixed, out, "--per_shard", 5) == 0
    assert "shard_00000.tar/class 0/v2,2,2" in (out / "train.csv").read_text().splitlines()
    listed = subprocess.run(["tar", "tf", out / "shard_00000.tar"], capture_output=True, text=True).stdout
    assert [line for line in listed.splitlines() if "/v2/" in line] == ["class 0/v2/000.png", "class 0/v2/001.png"]


@pytest.mark.parametrize("how", ["in place", "new folder", "another frame"])
def test_shards_of_changed_folders_are_rewritten(
    frames_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    out, folder = tmp_path / "packed", frames_csv.parent / "class 0" / "v2"
    assert run(frames_csv, out, "--per_shard", 2) == 0
    old = {name: (out / name).read_bytes() for name in SHARDS}
    others = sorted(folder.parent.glob("v0/*"))
    if how == "new folder":
        folder.rename(tmp_path / "old")
        folder.mkdir()
    names = ["003.png"] if how == "another frame" else [f"{number:03d}.png" for number in range(5)]
    for name in names:
        if how == "another frame":
            (folder / name).unlink()
        (folder / name).write_bytes(others[0].read_bytes())
    capsys.readouterr()
    for said in ("shards: 1 written, 2 were there already; train.csv\n  1 of them rewritten: their frame folders have "
                 "changed since they were packed\n", "shards: 0 written, 3 were there already; train.csv\n"):
        assert run(frames_csv, out, "--per_shard", 2) == 0
        assert capsys.readouterr().out.endswith(said)
    assert [name for name in SHARDS if (out / name).read_bytes() != old[name]] == ["shard_00001.tar"]
    assert others[0].read_bytes() in (out / "shard_00001.tar").read_bytes()


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_it_quickly(
    frames_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    signal_number: int,
) -> None:
    def read_slowly(folder: str, *_: object) -> Iterator[tuple[str, bytes]]:
        for number in range(1000):
            time.sleep(0.01)
            if number == 5 and folder.endswith("v0"):
                os.kill(os.getpid(), signal_number)
            yield f"{number}.jpg", b""

    out = tmp_path / "packed"
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("dataset.prepare.packing.read_folder", read_slowly)
    start = time.monotonic()
    assert run(frames_csv, out, "--per_shard", 2, "--workers", 2) == 130
    signal.signal(signal.SIGTERM, before)
    assert time.monotonic() - start < 5
    assert capsys.readouterr().err == "pack_frames.py: interrupted\n"
    assert os.listdir(out) == [".packing.lock"]
    monkeypatch.undo()
    assert run(frames_csv, out, "--per_shard", 2) == 0


def test_one_run_at_a_time(frames_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "packed"
    out.mkdir()
    with hold_lock(out / LOCK, "busy"):
        assert run(frames_csv, out) == 2
    assert_line(capsys, r"packed: another pack_frames.py is writing into it$")
    assert os.listdir(out) == [".packing.lock"]
    assert run(frames_csv, out) == 0


def break_count(csv: Path) -> None:
    csv.write_text(csv.read_text().replace("v2,5,2", "v2,6,2"))


def break_gap(csv: Path) -> None:
    (csv.parent / "class 0" / "v2" / "002.png").unlink()


def name_twice(csv: Path) -> None:
    csv.write_text(csv.read_text() + "\nclass 1/../class 0/v2,5,9\n")


def name_video_file(csv: Path) -> None:
    csv.write_text(csv.read_text() + "\nclip.mp4,,9\n")


@pytest.mark.parametrize(("damage", "says"), [
    (break_count, r"train.csv:4: .*/class 0/v2: has 5 frames, the csv says 6"),
    (break_gap, r"train.csv:4: .*/v2: has 4 frames with 1 missing between them, the csv says 5"),
    (name_twice, r"train.csv:7: .*/class 0/v2 is listed a second time, first at .*train.csv:4"),
    (name_video_file, r"train.csv:7: .*/clip.mp4: expected a frame folder and its number of frames"),
    (lambda csv: csv.write_text("a,x1"), r"train.csv:1: number of frames .* is 'x1'"),
    (lambda csv: csv.unlink(), r"train.csv: cannot read the csv file: No such file"),
])
def test_wrong_input_is_a_one_line_error(
    frames_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable, says: str
) -> None:
    damage(frames_csv)
    assert run(frames_csv, tmp_path / "packed") == 2
    assert_line(capsys, says)


def assert_line(capsys: pytest.CaptureFixture[str], says: str) -> None:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("pack_frames.py: error: ")
    assert re.search(says, lines[0]), lines[0]


def test_an_unsuitable_out(frames_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(frames_csv, frames_csv.parent) == 2
    assert_line(capsys, "contains .*train.csv itself, expected another folder")
    assert run(frames_csv, frames_csv) == 2
    assert_line(capsys, "train.csv: is a file, expected the folder for the shards as the last path")
    out = tmp_path / "packed"
    assert run(frames_csv, out, "--per_shard", 2) == 0
    capsys.readouterr()
    assert run(frames_csv, out, "--per_shard", 3) == 2
    assert_line(capsys, r"shard_00000.tar: exists with other videos than .*train.csv:2 and the 2 that follow")
    assert run(frames_csv, out, "--per_shard", 0) == 2
    assert_line(capsys, "--per_shard 0: must be at least 1")


def test_it_runs_from_any_folder(frames_csv: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "pack_frames.py", "frames/train.csv", "packed"], cwd=tmp_path)
    assert done.returncode == 0 and len(read_records(tmp_path / "packed" / "train.csv", labelled=True)) == 5
