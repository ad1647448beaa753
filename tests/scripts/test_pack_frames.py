from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dataset.decode import read_frames
from dataset.records import read_records
from scripts.pack_frames import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def frames_csv(tmp_path: Path, write_coded_video: Callable) -> Path:
    """A csv of five folders of three to seven frames with different namings, labels 0 to 4."""
    rows = ["frame_dir,number_of_frames,label"]
    patterns = ["image_{:05d}.jpg", "image_{:05d}.jpg", "{:03d}.png", "f{:d}.jpeg", "image_{:05d}.jpg"]
    for index, pattern in enumerate(patterns):
        write_coded_video(
            tmp_path / "frames" / f"class {index % 2}" / f"v{index}", 3 + index, pattern, index % 2
        )
        rows.append(f"class {index % 2}/v{index},{3 + index},{index}")
    path = tmp_path / "frames" / "train.csv"
    path.write_text("\n".join(rows))
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_the_packed_csv_gives_the_same_frames(
    frames_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "packed"
    assert run(frames_csv, out, "--per_shard", 2) == 0
    assert sorted(os.listdir(out)) == ["train.csv", "train_00000.tar", "train_00001.tar", "train_00002.tar"]
    assert "5 videos in 3 shards, 3 of them written now" in capsys.readouterr().out
    assert (out / "train.csv").read_text().splitlines()[2] == "train_00001.tar/class 0/v2,5,2"
    loose, packed = (read_records(path, labelled=True) for path in (frames_csv, out / "train.csv"))
    assert [(v.num_frames, v.label) for v in packed] == [(v.num_frames, v.label) for v in loose]
    for a, b in zip(loose, packed, strict=True):
        for indices, size in ((np.arange(a.num_frames), None), (np.array([2, 0, 2]), (40, 30))):
            assert np.array_equal(
                read_frames(b.path, indices, b.num_frames, size),
                read_frames(a.path, indices, a.num_frames, size),
            )


def test_tar_gives_the_folders_back(frames_csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    assert run(frames_csv, out, "--per_shard", 5) == 0
    subprocess.run(["tar", "xf", out / "train_00000.tar", "-C", out, "--exclude=frame_index.bin"], check=True)
    loose = {
        p.relative_to(frames_csv.parent): p.read_bytes()
        for p in frames_csv.parent.rglob("*.*")
        if p != frames_csv
    }
    assert {p.relative_to(out): p.read_bytes() for p in out.rglob("class*/*/*.*")} == loose and len(
        loose
    ) == 25


def test_a_second_start_writes_what_is_missing(
    frames_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "packed"
    assert run(frames_csv, out, "--per_shard", 2) == 0
    contents = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "train_00001.tar").unlink()
    (out / "train.csv").unlink()
    (out / "train_00002.tar.part").write_bytes(b"left by a kill")
    kept = (out / "train_00000.tar").stat().st_mtime_ns
    assert run(frames_csv, out, "--per_shard", 2, "--workers", 3) == 0
    assert "3 shards, 1 of them written now" in capsys.readouterr().out
    assert (out / "train_00000.tar").stat().st_mtime_ns == kept
    assert {name: (out / name).read_bytes() for name in contents} == contents


def test_an_interrupted_start_leaves_no_csv_and_no_half_shard(frames_csv: Path, tmp_path: Path) -> None:
    """The third folder is a frame short: the first shard stands, the second does not, and there is no csv."""
    (frames_csv.parent / "class 0" / "v2" / "004.png").unlink()
    out = tmp_path / "packed"
    with pytest.raises(SystemExit):
        run(frames_csv, out, "--per_shard", 2, "--workers", 1)
    assert "train_00000.tar" in os.listdir(out) and not {"train.csv", "train_00001.tar"} & set(
        os.listdir(out)
    )
    assert not [name for name in os.listdir(out) if name.endswith(".part")]


def break_count(csv: Path) -> None:
    csv.write_text(csv.read_text().replace("v2,5,2", "v2,6,2"))


def break_gap(csv: Path) -> None:
    (csv.parent / "class 0" / "v2" / "002.png").unlink()


def name_twice(csv: Path) -> None:
    csv.write_text(csv.read_text() + "\nclass 1/../class 0/v2,5,9\n")


def name_video_file(csv: Path) -> None:
    csv.write_text(csv.read_text() + "\nclip.mp4,,9\n")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (break_count, r"train.csv:4: .*/class 0/v2: 5 frames in it, the csv says 6"),
        (break_gap, r"train.csv:4: .*/v2: 4 frames in it and 1 are missing between them, the csv says 5"),
        (name_twice, r"train.csv:7: .*/class 0/v2 is named a second time, first at .*train.csv:4"),
        (name_video_file, r"train.csv:7: .*/clip.mp4 is no frame folder; only folders are packed"),
        (lambda csv: csv.write_text("a,x1"), r"train.csv:1: number of frames .* is 'x1'"),
        (lambda csv: csv.unlink(), r"train.csv: cannot read the csv file: No such file"),
    ],
)
def test_mistakes_are_one_line(
    frames_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable, says: str
) -> None:
    damage(frames_csv)
    with pytest.raises(SystemExit) as caught:
        run(frames_csv, tmp_path / "packed")
    assert caught.value.code == 2
    assert_line(capsys, says)


def assert_line(capsys: pytest.CaptureFixture[str], says: str) -> None:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("pack_frames.py: error: ")
    assert re.search(says, lines[0]), lines[0]


def test_an_out_that_does_not_fit(
    frames_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(frames_csv, frames_csv.parent)
    assert_line(capsys, "holds .*train.csv itself, expected another folder")
    with pytest.raises(SystemExit):
        run(frames_csv, frames_csv)
    assert_line(capsys, "train.csv: File exists")
    out = tmp_path / "packed"
    assert run(frames_csv, out, "--per_shard", 2) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(frames_csv, out, "--per_shard", 3)
    assert_line(
        capsys, r"train_00000.tar: is there with other videos than .*train.csv:2 and the 2 lines that follow"
    )
    with pytest.raises(SystemExit):
        run(frames_csv, out, "--per_shard", 0)
    assert_line(capsys, "--per_shard 0: must be at least 1")


def test_it_starts_from_any_folder(frames_csv: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "pack_frames.py", "frames/train.csv", "packed"], cwd=tmp_path
    )
    assert done.returncode == 0 and len(read_records(tmp_path / "packed" / "train.csv", labelled=True)) == 5
