"""csv files from trees that mirror the official layouts, and what is reported of missing videos."""
from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from dataset.prepare.annotations import OFFICIAL_COUNTS
from dataset.frames import FRAME_MARKER
from dataset.prepare.video_tree import FrameMarker
from dataset.records import read_records
from dataset.prepare.video_tree import find_videos
from scripts.make_csv import main
from tests.encoded_videos import encode_video, zero_half

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_csv.py"
CLASSES = ["ApplyEyeMakeup", "Archery", "BabyCrawling"]


def extracted(folder: Path, frames: int) -> None:
    """Creates a frame folder as extraction does, with its marker but without images."""
    folder.mkdir(parents=True)
    (folder / FRAME_MARKER).write_text(json.dumps(asdict(FrameMarker(f"{folder.name}.avi", frames, {}, 1, 1))))


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=60)


def rows(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def ucf(tmp_path) -> Path:
    """Three classes, five groups of two clips; groups 1 and 2 are the test set. Frames are 100 * group + clip."""
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("".join(f"{n} {name}\r\n" for n, name in enumerate(CLASSES, start=1)))
    train, test = [], []
    for number, name in enumerate(CLASSES, start=1):
        for group in range(1, 6):
            for clip in (1, 2):
                video = f"{name}/v_{name}_g{group:02d}_c{clip:02d}"
                extracted(tmp_path / "frames" / video, 100 * group + clip)
                (test if group < 3 else train).append(f"{video}.avi" + ("" if group < 3 else f" {number}"))
    (lists / "trainlist01.txt").write_text("\r\n".join(train))
    (lists / "testlist01.txt").write_text("\r\n".join(test))
    return tmp_path


def ucf_arguments(root: Path, *more: str) -> list[str]:
    return ["ucf101", str(root / "frames"), "--annotations", str(root / "ucfTrainTestlist"), "--out", str(root), *more]


def test_ucf101(ucf, capsys):
    assert main(ucf_arguments(ucf, "--allow_missing")) == 0
    assert rows(ucf / "train_1.csv")[:3] == [["frame_dir", "number_of_frames", "label"],
                                             ["frames/ApplyEyeMakeup/v_ApplyEyeMakeup_g03_c01", "301", "0"],
                                             ["frames/ApplyEyeMakeup/v_ApplyEyeMakeup_g03_c02", "302", "0"]]
    train, test = (read_records(ucf / f"{name}_1.csv", labelled=True) for name in ("train", "test"))
    assert (len(train), len(test)) == (18, 12)
    for record in train + test:
        path = Path(record.path)
        assert path.is_dir()  # relative paths are found from the csv's folder
        assert CLASSES[record.label] == path.parent.name
        assert record.num_frames == json.loads((path / FRAME_MARKER).read_text())["frames"]
    assert {Path(r.path).name.split("_")[2] for r in test} == {"g01", "g02"}
    pretrain = read_records(ucf / "pretrain.csv", labelled=False)
    assert [(r.path, r.num_frames) for r in pretrain] == [(r.path, r.num_frames) for r in train]
    assert len(rows(ucf / "pretrain.csv")[0]) == 2
    assert (ucf / "classes.txt").read_text().split() == CLASSES
    assert rows(ucf / "differences.csv") == [["kind", "set", "video", "reason"]]
    before = {path.name: path.read_bytes() for path in ucf.glob("*.*")}
    assert main(ucf_arguments(ucf, "--allow_missing")) == 0
    assert {path.name: path.read_bytes() for path in ucf.glob("*.*")} == before
    assert "the list has 18 videos, the official one 9,537" in capsys.readouterr().out


def test_missing_unusable_and_extra_videos(ucf, capsys):
    frames = ucf / "frames"
    (frames / "Archery" / "v_Archery_g01_c02" / FRAME_MARKER).unlink()
    (frames / "Archery" / "v_Archery_g01_c02").rmdir()
    (frames / "Archery" / "v_Archery_g03_c01" / FRAME_MARKER).unlink()
    for number in (1, 2, 4):
        (frames / "Archery" / "v_Archery_g03_c01" / f"image_{number:05d}.jpg").write_bytes(b"x")
    extracted(frames / "Archery" / "v_Archery_g09_c01", 5)
    extracted(frames / "copy" / "v_Archery_g04_c01", 5)
    result = run(*ucf_arguments(ucf))
    assert result.returncode == 1 and result.stderr == ""
    assert "missing: 1: Archery/v_Archery_g01_c02" in result.stdout
    assert sorted(rows(ucf / "differences.csv")[1:]) == [
        ["duplicate", "", "copy/v_Archery_g04_c01", "another of this name is taken"],
        ["extra", "", "Archery/v_Archery_g09_c01", ""],
        ["missing", "test_1", "Archery/v_Archery_g01_c02", ""],
        ["unusable", "train_1", "Archery/v_Archery_g03_c01",
         f"{frames}/Archery/v_Archery_g03_c01: 1 frame(s) missing, image_00003.jpg first"]]
    paths = [row[0] for name in ("train_1", "test_1") for row in rows(ucf / f"{name}.csv")[1:]]
    assert len(paths) == 28 and not [path for path in paths if "copy" in path or "g09" in path]
    assert main(ucf_arguments(ucf, "--allow_missing")) == 0


@pytest.mark.parametrize("layout", ["flat", "class", "split/class", "split", "class_underscored"])
@pytest.mark.parametrize("kind", ["frames", "files"])
def test_kinetics400_in_any_layout(tmp_path, layout, kind):
    videos = {"train": [("riding a bike", "abc", 0, 10), ("yoga", "-x_1", 7, 17)], "val": [("yoga", "zzz", 120, 130)]}
    lists = tmp_path / "lists"
    lists.mkdir()
    for split, members in videos.items():
        (lists / f"{split}.csv").write_text("label,youtube_id,time_start,time_end,split\n" + "".join(
            f"{label},{name},{start},{end},{split}\n" for label, name, start, end in members))
        for label, name, start, end in members:
            parent = {"flat": "", "class": label, "split/class": f"{split}/{label}", "split": split,
                      "class_underscored": label.replace(" ", "_")}[layout]
            video = tmp_path / "k400" / parent / f"{name}_{start:06d}_{end:06d}"
            if kind == "frames":
                extracted(video, 250)
            else:
                video.parent.mkdir(parents=True, exist_ok=True)
                video.with_name(f"{video.name}.mp4").write_bytes(b"not opened")
    out = ["--out", str(tmp_path / "csv")]
    assert main(["kinetics400", str(tmp_path / "k400"), "--annotations", str(lists), *out]) == 0
    train, val = (rows(tmp_path / "csv" / f"{name}.csv")[1:] for name in ("train", "val"))
    assert [(Path(path).name.removesuffix(".mp4"), count, label) for path, count, label in train + val] == [
        (name, "250" if kind == "frames" else "", label) for name, label in
        (("abc_000000_000010", "0"), ("-x_1_000007_000017", "1"), ("zzz_000120_000130", "1"))]
    # not below the csv's folder
    assert all(Path(row[0]).is_absolute() and Path(row[0]).exists() for row in train + val)
    assert (tmp_path / "csv" / "classes.txt").read_text() == "riding a bike\nyoga\n"


def test_hmdb51_from_video_files_and_their_counts(tmp_path, capsys):
    lists = tmp_path / "testTrainMulti_7030_splits"
    lists.mkdir()
    names = {"brush_hair": ["#1 A.J. [x]&(y)_brush_hair_0", "plain_brush_hair_1"], "wave": ["a_wave_0", "b_wave_1"]}
    for class_name, (train, test) in names.items():
        for split in (1, 2):
            (lists / f"{class_name}_test_split{split}.txt").write_text(
                f"{train}.avi {split} \n{test}.avi {3 - split} \nspare_{class_name}.avi 0 \n")
        encode_video(tmp_path / "hmdb51_org" / class_name / f"{train}.avi", 20)
        encode_video(tmp_path / "hmdb51_org" / class_name / f"{test}.avi", 31)
        (tmp_path / "hmdb51_org" / class_name / f"spare_{class_name}.avi").write_bytes(b"unused")
    arguments = ["hmdb51", str(tmp_path / "hmdb51_org"), "--annotations", str(lists), "--out", str(tmp_path / "csv"),
                 "--split", "1", "2", "--allow_missing"]
    assert main([*arguments, "--count", "--workers", "1"]) == 0
    train, test = (rows(tmp_path / "csv" / f"{name}_1.csv")[1:] for name in ("train", "test"))
    assert [(Path(p).stem, count, label) for p, count, label in train] == [
        ("#1 A.J. [x]&(y)_brush_hair_0", "20", "0"), ("a_wave_0", "20", "1")]
    assert [count for _, count, _ in test] == ["31", "31"]
    assert rows(tmp_path / "csv" / "train_2.csv")[1:] == test
    assert rows(tmp_path / "csv" / "pretrain.csv")[1:] == [row[:2] for row in train]
    assert rows(tmp_path / "csv" / "differences.csv")[1:] == []  # spare videos are known

    (tmp_path / "hmdb51_org" / "wave" / "a_wave_0.avi").write_bytes(b"broken")
    assert main([*arguments, "--count", "--workers", "1"]) == 0
    assert len(rows(tmp_path / "csv" / "train_1.csv")[1:]) == 1
    assert "unusable: 2: wave/a_wave_0 (" in capsys.readouterr().out  # once for each split
    assert main(arguments) == 0
    assert {count for _, count, _ in rows(tmp_path / "csv" / "test_1.csv")[1:]} == {""}


def test_ssv2_and_diving48(tmp_path, capsys):
    lists = tmp_path / "lists"
    lists.mkdir()
    entries = [{"id": str(number), "label": "x", "template": f"Moving [something] {'up' if number % 2 else 'down'}",
                "placeholders": ["cup"]} for number in range(6)]
    for name, content in (("labels", {"Moving something up": "0", "Moving something down": "1"}), ("train", entries[:4]),
                          ("validation", entries[4:]), ("test", [{"id": "6"}])):
        (lists / f"something-something-v2-{name}.json").write_text(json.dumps(content))
    for number in (0, 1, 2, 4, 5, 6, 7):
        extracted(tmp_path / "ssv2" / str(number), 30 + number)
    assert main(["ssv2", str(tmp_path / "ssv2"), "--annotations", str(lists), "--out", str(tmp_path)]) == 1
    assert rows(tmp_path / "train.csv")[1:] == [["ssv2/0", "30", "1"], ["ssv2/1", "31", "0"], ["ssv2/2", "32", "1"]]
    assert rows(tmp_path / "val.csv")[1:] == [["ssv2/4", "34", "1"], ["ssv2/5", "35", "0"]]
    assert rows(tmp_path / "differences.csv")[1:] == [["missing", "train", "Moving something up/3", ""],
                                                      ["extra", "", "7", ""]]
    assert "the list has 2 videos, the official one 24,777" in capsys.readouterr().out

    (lists / "Diving48_vocab.json").write_text('[["Back", "FREE"], ["Reverse", "PIKE"]]')
    for name, label in (("train", 1), ("test", 0)):
        (lists / f"Diving48_V2_{name}.json").write_text(
            json.dumps([{"vid_name": f"{name}_00001", "label": label, "start_frame": 0, "end_frame": 90}]))
        (tmp_path / "rgb").mkdir(exist_ok=True)
        (tmp_path / "rgb" / f"{name}_00001.mp4").write_bytes(b"not opened")
    arguments = ["diving48", str(tmp_path / "rgb"), "--annotations", str(lists), "--out", str(tmp_path)]
    assert main([*arguments, "--allow_missing"]) == 0
    assert rows(tmp_path / "train.csv")[1:] == [["rgb/train_00001.mp4", "", "1"]]
    assert rows(tmp_path / "test.csv")[1:] == [["rgb/test_00001.mp4", "", "0"]]
    assert (tmp_path / "classes.txt").read_text() == "Back FREE\nReverse PIKE\n"
    assert "15,027" in capsys.readouterr().out


def test_a_sound_copy_is_taken_and_no_other_class_s_video(tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    encode_video(tmp_path / "k" / "train" / "abc_000000_000010.mp4", 20)
    whole = (tmp_path / "k" / "train" / "abc_000000_000010.mp4").read_bytes()
    (tmp_path / "k" / "replacement").mkdir()
    (tmp_path / "k" / "replacement" / "abc_000000_000010.mp4").write_bytes(whole)
    (tmp_path / "k" / "train" / "abc_000000_000010.mp4").write_bytes(whole[:100])
    for name in ("train", "validate"):  # as one archive of the lists has it
        (lists / f"{name}.csv").write_text("label,youtube_id,time_start,time_end,split\nyoga,abc,0,10,x\n")
    arguments = ["kinetics400", str(tmp_path / "k"), "--annotations", str(lists), "--out", str(tmp_path / "csv")]
    assert main([*arguments, "--count", "--workers", "1"]) == 0
    assert [row[0] for row in rows(tmp_path / "csv" / "val.csv")[1:]] == [
        str(tmp_path / "k" / "replacement" / "abc_000000_000010.mp4")]

    for class_name in ("kick", "wave"):
        (lists / f"{class_name}_test_split1.txt").write_text("same.avi 1\n" + f"{class_name}.avi 2\n")
        extracted(tmp_path / "h" / class_name / class_name, 20)
    extracted(tmp_path / "h" / "kick" / "same", 20)
    assert main(["hmdb51", str(tmp_path / "h"), "--annotations", str(lists), "--out", str(tmp_path / "csv")]) == 1
    assert [row[1:] for row in rows(tmp_path / "csv" / "train_1.csv")[1:]] == [["20", "0"]]
    assert ["missing", "train_1", "wave/same", ""] in rows(tmp_path / "csv" / "differences.csv")


def test_folder_splits_by_group(tmp_path, capsys):
    for name in CLASSES:
        for group in range(1, 11):
            for clip in (1, 2):
                extracted(tmp_path / "mine" / name / f"v_{name}_g{group:02d}_c{clip:02d}", 40)
    extracted(tmp_path / "mine" / "single" / "one", 40)

    def make(*more: str) -> tuple[list[list[str]], list[list[str]]]:
        assert main(["folder", str(tmp_path / "mine"), "--out", str(tmp_path), "--test_fraction", "0.3", *more]) == 0
        return rows(tmp_path / "train.csv")[1:], rows(tmp_path / "test.csv")[1:]

    train, test = make()
    for label in ("0", "1", "2"):
        assert sum(row[2] == label for row in test) == 6 and sum(row[2] == label for row in train) == 14
    assert not {row[0][:-4] for row in train} & {row[0][:-4] for row in test}  # groups on one side
    assert [row for row in train if row[2] == "3"] == [["mine/single/one", "40", "3"]]
    assert not [row for row in test if row[2] == "3"]
    assert (tmp_path / "classes.txt").read_text().split() == [*CLASSES, "single"]
    assert "test: 1 of 4 classes have no video" in capsys.readouterr().out
    assert make() == (train, test)
    assert make("--seed", "1")[1] != test
    across = make("--group_pattern", r".*_(g\d+)_.*")[1]  # a group of this pattern has videos of three classes
    groups = {row[0].split("_")[2] for row in across}
    assert len(groups) == 3 and len(across) == 18


def test_folder_without_a_test_set(tmp_path):
    extracted(tmp_path / "mine" / "b" / "x" / "v1", 7)
    extracted(tmp_path / "mine" / "a" / "v2", 9)
    assert main(["folder", str(tmp_path / "mine"), "--out", str(tmp_path)]) == 0
    assert rows(tmp_path / "train.csv")[1:] == [["mine/a/v2", "9", "0"], ["mine/b/x/v1", "7", "1"]]
    assert not (tmp_path / "test.csv").exists()


def test_trees_are_read_alike_with_and_without_markers(tmp_path, write_coded_video):
    extracted(tmp_path / "t" / "a" / "marked", 12)
    write_coded_video(tmp_path / "t" / "a" / "counted", 5)
    write_coded_video(tmp_path / "t" / "b" / "from_zero", 4, "{:03d}.png", 0)
    (tmp_path / "t" / "cover.jpg").write_bytes(b"")
    (tmp_path / "t" / "a" / "cover.jpg").write_bytes(b"")
    (tmp_path / "t" / "a" / ".half.partial").mkdir()
    folders, files = find_videos(tmp_path / "t")
    assert [(video.name, video.num_frames, video.problem) for video in folders] == [
        ("a/counted", 5, ""), ("a/marked", 12, ""), ("b/from_zero", 4, "")]
    assert files == []


def test_users_mistakes_are_one_line(ucf, tmp_path):
    def error(*arguments: object) -> str:
        result = run(*arguments)
        assert result.returncode == 2, result
        [line] = result.stderr.splitlines()
        return line

    lists = ucf / "ucfTrainTestlist"
    assert "absent: no such folder" in error("ucf101", ucf / "absent", "--annotations", lists, "--out", ucf)
    assert "--annotations" in error("ucf101", ucf / "frames", "--out", ucf)
    assert "trainlist02.txt: cannot read" in error(*ucf_arguments(ucf, "--split", "2"))
    (ucf / "other" / "c" / "v").mkdir(parents=True)
    assert "no video below it" in error("folder", ucf / "other", "--out", ucf)
    (ucf / "other" / "c" / "x.avi").write_bytes(b"")
    says = error("ucf101", ucf / "other", "--annotations", lists, "--out", ucf)
    assert "none of the listed videos was found: the lists have, for example, v_ApplyEyeMakeup_g03_c01" in says
    assert "the tree has 1 videos such as c/x" in says
    extracted(ucf / "other" / "c" / "y", 3)
    extracted(ucf / "sets" / "train" / "c" / "v", 3)
    extracted(ucf / "sets" / "val" / "c" / "v", 3)
    assert "class folders are named train, val, as sets are" in error("folder", ucf / "sets", "--out", ucf)
    assert "choose by --source" in error("folder", ucf / "other", "--out", ucf)
    assert "--test_fraction 1.0" in error("folder", ucf / "frames", "--out", ucf, "--test_fraction", "1")


def test_official_lists_are_not_written_over(tmp_path, capsys):
    for split in ("train", "val"):
        header = "label,youtube_id,time_start,time_end,split"
        (tmp_path / f"{split}.csv").write_text(f"{header}\nyoga,{split},0,10,{split}\n")
        extracted(tmp_path / "k" / f"{split}_000000_000010", 9)
    before = (tmp_path / "train.csv").read_bytes()
    assert main(["kinetics400", str(tmp_path / "k"), "--annotations", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "is an official list, which would be lost" in capsys.readouterr().err
    assert (tmp_path / "train.csv").read_bytes() == before


def test_a_whole_ucf101_agrees_with_the_official_counts(tmp_path):
    """The official sizes, in 101 classes, as names alone; every video is there, so the exit status is 0."""
    split = 2
    num_train, num_test = (OFFICIAL_COUNTS["ucf101"][f"{role}_{split}"] for role in ("train", "test"))
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "classInd.txt").write_text("".join(f"{n + 1} C{n:03d}\n" for n in range(101)))
    names = [f"C{n % 101:03d}/v_C{n % 101:03d}_g{n // 1000:02d}_c{n:05d}" for n in range(num_train + num_test)]
    (lists / f"trainlist{split:02d}.txt").write_text("".join(f"{n}.avi {int(n[1:4]) + 1}\n" for n in names[:num_train]))
    (lists / f"testlist{split:02d}.txt").write_text("".join(f"{n}.avi\n" for n in names[num_train:]))
    for number in range(101):
        (tmp_path / "videos" / f"C{number:03d}").mkdir(parents=True)
    for name in names:
        (tmp_path / "videos" / f"{name}.avi").touch()
    arguments = ["ucf101", str(tmp_path / "videos"), "--annotations", str(lists), "--out", str(tmp_path),
                 "--split", str(split)]
    assert main(arguments) == 0
    assert len(rows(tmp_path / f"train_{split}.csv")) == num_train + 1
    assert len(rows(tmp_path / f"test_{split}.csv")) == num_test + 1
    (tmp_path / "videos" / f"{names[5]}.avi").unlink()
    assert main(arguments) == 1


def test_one_video_in_two_classes_is_reported(tmp_path, capsys):
    for name in ("tree/a/x/img_1.jpg", "tree/a/y.d/img_1.jpg", "tree/b/z/img_1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "tree/b/link").symlink_to(tmp_path / "tree/a/x")
    assert main(["folder", str(tmp_path / "tree"), "--out", str(tmp_path)]) == 0
    assert "two classes: 1: " in capsys.readouterr().out
    assert rows(tmp_path / "differences.csv")[1:] == [
        ["two classes", "train", f"{tmp_path}/tree/b/link", f"b; {tmp_path}/tree/a/x: a"]]


def test_links_to_one_video_stay_on_one_side_and_are_reported(tmp_path):
    for number in range(6):
        (tmp_path / f"tree/a/v{number}").mkdir(parents=True)
        (tmp_path / f"tree/a/v{number}/img_1.jpg").touch()
        (tmp_path / f"tree/a/z{number}").symlink_to(f"v{number}")
    assert main(["folder", str(tmp_path / "tree"), "--out", str(tmp_path), "--test_fraction", "0.34"]) == 0
    sides = [{row[0][-1] for row in rows(tmp_path / f"{name}.csv")[1:]} for name in ("train", "test")]
    assert [len(side) for side in sides] == [4, 2] and not sides[0] & sides[1]
    reported = {(kind, video[-2:], reason[-2:]) for kind, _, video, reason in rows(tmp_path / "differences.csv")[1:]}
    assert reported == {("duplicate", f"z{number}", f"v{number}") for number in range(6)}


def test_the_whole_copy_is_taken_and_count_decodes(tmp_path):
    """Half of the data zero behind a whole index (mp4), and a copy that ends early and still decodes (avi)."""
    lists = tmp_path / "lists"
    lists.mkdir()
    for part in ("train", "val"):
        (lists / f"{part}.csv").write_text("label,youtube_id,time_start,time_end\n"
                                           + "".join(f"yoga,{name},0,10\n" for name in ("a", "b")))
    for name, suffix in (("a_000000_000010", ".mp4"), ("b_000000_000010", ".avi")):
        whole = encode_video(tmp_path / f"k/replacement/{name}{suffix}", 60, options={"g": "5"})
        data, broken = whole.read_bytes(), tmp_path / f"k/train/{name}{suffix}"
        broken.parent.mkdir(exist_ok=True)
        broken.write_bytes(zero_half(data) if suffix == ".mp4" else data[:len(data) // 2])
    flags = ["kinetics400", str(tmp_path / "k"), "--annotations", str(lists), "--out", str(tmp_path), "--workers", "1"]
    for more, count in (([], ""), (["--count"], "60")):  # both show without decoding
        assert main([*flags, *more]) == 0
        assert rows(tmp_path / "train.csv")[1:] == [["k/replacement/a_000000_000010.mp4", count, "0"],
                                                    ["k/replacement/b_000000_000010.avi", count, "0"]]
