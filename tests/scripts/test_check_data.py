"""A planted fault for each kind of finding, what --fix makes of it, and sound data in which nothing is found."""
from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dataset.prepare.checks import KINDS, NOTES
from dataset.frames import read_folder
from dataset.packed import write_shard
from dataset.records import read_records
from scripts.check_data import main
from tests.encoded_videos import encode_video, zero_half

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_data.py"
NUM_FRAMES = 12


class DataSet:
    """A sound data set in a folder: training groups 1 to 3 and test group 4 of two classes, 12 frames each."""

    def __init__(self, root: Path, write: Callable[..., str]) -> None:
        self.root, self.write = root, write
        for name in ("train", "test"):
            groups = (1, 2, 3) if name == "train" else (4,)
            self.set_rows(name, [[self.video(f"c{label}/v_c{label}_g{group:02d}_c01"), NUM_FRAMES, label]
                                 for label in (0, 1) for group in groups])
        (root / "classes.txt").write_text("c0\nc1\n")

    def video(self, name: str, frames: int = NUM_FRAMES, *more: object) -> str:
        """Writes a video; returns its csv path."""
        self.write(self.root / name, frames, *more)
        return name

    def csv(self, name: str) -> Path:
        return self.root / f"{name}.csv"

    def rows(self, name: str) -> list[list[str]]:
        with open(self.csv(name), newline="") as file:
            return list(csv.reader(file))[1:]

    def set_rows(self, name: str, rows: list[list]) -> None:
        with open(self.csv(name), "w", newline="") as file:
            csv.writer(file).writerows([["frame_dir", "number_of_frames", "label"], *rows])

    def add(self, *row: object, name: str = "train") -> None:
        self.set_rows(name, [*self.rows(name), list(row)])

    def frame(self, number: int) -> Path:
        """A frame of the first training video."""
        return self.root / "c0" / "v_c0_g01_c01" / f"image_{number:05d}.jpg"


@pytest.fixture
def data(tmp_path, write_coded_video) -> DataSet:
    return DataSet(tmp_path, write_coded_video)


@pytest.fixture
def decode_in_process(monkeypatch):
    """Decodes without worker processes, whose start takes seconds."""
    monkeypatch.setattr("dataset.prepare.checks.run_jobs", lambda work, jobs, workers: ((j, work(j)) for j in jobs))


def check(data: DataSet, *more: object) -> tuple[int, list[dict[str, str]]]:
    """(exit status, findings of the report) of the training and test set."""
    csv_files = [str(data.csv("train")), str(data.csv("test"))]
    status = main([*csv_files, "--report", str(data.root / "report.csv"), *map(str, more)])
    with open(data.root / "report.csv", newline="") as file:
        return status, list(csv.DictReader(file))


def plant_row(data):
    data.add("c0/v_c0_g01_c01", "12x", 0)


def plant_unreadable(data):
    data.add("c0/absent", NUM_FRAMES, 0)


def plant_no_frames(data):
    (data.root / "c0" / "empty").mkdir()
    data.add("c0/empty", NUM_FRAMES, 0)


def plant_gap(data):
    data.frame(5).unlink()


def plant_count(data):
    data.add(data.video("c0/longer", NUM_FRAMES + 1), NUM_FRAMES, 0)


def plant_short(data):
    data.add(data.video("c0/short", 8), 8, 0)


def plant_empty_file(data):
    data.frame(7).write_bytes(b"")


def plant_broken_image(data):
    data.frame(7).write_bytes(data.frame(7).read_bytes()[:-40])


def plant_image_sizes(data):
    shutil.copy(data.root / data.video("wide", 1, "image_{:05d}.jpg", 1, (128, 48)) / "image_00001.jpg", data.frame(3))


def plant_broken_video(data):
    whole = encode_video(data.root / "c0" / "torn.avi", 100).read_bytes()
    (data.root / "c0" / "torn.avi").write_bytes(whole[: len(whole) // 2])
    data.add("c0/torn.avi", "", 0)


def plant_cut_video(data):
    half = data.root / "c0" / "half.mp4"
    half.write_bytes(zero_half(encode_video(half, 60, options={"g": "5"}).read_bytes()))
    data.add("c0/half.mp4", "", 0)


def plant_duplicate(data):
    data.add("c0/../c0/v_c0_g01_c01", NUM_FRAMES, 0)


def plant_overlap(data):
    (data.root / "other_name").symlink_to(data.root / "c0" / "v_c0_g01_c01")
    data.add("other_name", NUM_FRAMES, 0, name="test")


def plant_group(data):
    data.add(data.video("c1/v_c1_g02_c07"), NUM_FRAMES, 1, name="test")


def plant_label(data):
    data.add(data.video("c0/third"), NUM_FRAMES, 2)


def plant_label_gap(data):
    (data.root / "classes.txt").write_text("c0\nc1\nc2\n")
    data.set_rows("test", [*data.rows("test"), [data.video("c2/v_c2_g01_c01"), NUM_FRAMES, 2]])


def plant_numbered_from_0(data):
    data.add(data.video("c0/from_zero", NUM_FRAMES, "image_{:05d}.jpg", 0), NUM_FRAMES, 0)


def plant_header(data):
    encode_video(data.root / "c0" / "file.mp4", 20)
    data.add("c0/file.mp4", 25, 0)


def plant_class_not_tested(data):
    data.set_rows("test", data.rows("test")[:1])


PLANTED = {
    "row": (plant_row, "number of frames (second column) is '12x'", 6),
    "unreadable": (plant_unreadable, "No such file or directory", 6),
    "no frames": (plant_no_frames, "no frames in it", 6),
    "gap": (plant_gap, "1 missing, image_00005.jpg first; 4 can be read, the csv has 12", 6),
    "count": (plant_count, "the csv has 12 frames, 13 can be read", 7),
    "short": (plant_short, "8 frames, more than 8 are needed", 6),
    "empty file": (plant_empty_file, "image_00007.jpg has 0 bytes", 5),
    "broken image": (plant_broken_image, "image_00007.jpg: not a readable image", 5),
    "image sizes": (plant_image_sizes, "image_00003.jpg is 128x48, the first 64x48", 5),
    "broken video": (plant_broken_video, "breaks on the way", 6),
    "cut video": (plant_cut_video, "of 60 is zeros: a partial download", 6),
    "duplicate": (plant_duplicate, "the same video as line 2", 6),
    "overlap": (plant_overlap, "is trained on: ", 6),
    "group": (plant_group, "v_c1_g02: 1 test video(s), trained on: ", 6),
    "label": (plant_label, "label 2, but 2 classes: 0 to 1", 6),
    "label gap": (plant_label_gap, "no video with label 2", 6),
    "numbered from 0": (plant_numbered_from_0, "the first frame is image_00000.jpg", 7),
    "header": (plant_header, "the csv has 25 frames, the file's header promises about 20", 7),
    "class not tested": (plant_class_not_tested, "no video with label 1", 6),
}
DECODED = {"empty file", "broken image", "image sizes", "broken video"}


def test_every_kind_is_planted():
    assert PLANTED.keys() == KINDS.keys()


def test_sound_data_has_no_findings(data, capsys):
    assert check(data, "--seq", 4) == (0, [])
    assert "8 lines, 8 videos inspected, 0 findings, 0 notes" in capsys.readouterr().out


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_fault_is_found_and_fixed(data, kind, capsys, decode_in_process):
    plant, says, kept = PLANTED[kind]
    plant(data)
    needs = (["--seq", 4] if kind == "short" else []) + (["--decode", "--workers", 1] if kind in DECODED else [])
    status, findings = check(data, *needs, "--fix", data.root / "clean")
    assert status == (0 if kind in NOTES else 1)
    mine = [finding for finding in findings if finding["kind"] == kind]
    assert len(mine) == 1 and says in mine[0]["detail"], findings
    assert {finding["kind"] for finding in findings} == {kind}
    assert f"  {kind}" in capsys.readouterr().out

    fixed = data.root / "clean" / "train.csv"
    records = read_records(fixed, labelled=True)
    assert len(records) == kept
    if kind not in ("label gap", "overlap", "group"):
        assert main(["--train", str(fixed), "--test", str(data.root / "clean" / "test.csv"),
                     "--classes", str(data.root / "classes.txt"), *map(str, needs)]) == 0
    for record in records:  # paths hold from the new folder, and every frame that is promised is there
        if os.path.isdir(record.path):
            assert len(list(read_folder(record.path, range(record.num_frames), record.num_frames))) == record.num_frames


def test_decoding_a_cut_video_finds_out_more(data, decode_in_process):
    plant_cut_video(data)
    [finding] = check(data, "--decode", "--workers", 1)[1]
    assert finding["kind"] == "broken video" and "frames)" in finding["detail"]


def test_lines_and_csv_files_are_named(data):
    plant_unreadable(data)
    plant_group(data)
    findings = {finding["kind"]: finding for finding in check(data)[1]}
    assert (findings["unreadable"]["csv"], findings["unreadable"]["line"]) == (str(data.csv("train")), "8")
    assert findings["unreadable"]["path"] == str(data.root / "c0" / "absent")
    assert (findings["group"]["csv"], findings["group"]["line"]) == (str(data.csv("test")), "4")
    assert findings["group"]["detail"].endswith(f"trained on: {data.csv('train')}:6")


def test_groups_of_video_files_and_shards(data):
    encode_video(data.root / "c1" / "v_c1_g02_c07.avi", 20)
    data.add("c1/v_c1_g02_c07.avi", 20, 1, name="test")
    [finding] = check(data)[1]
    assert finding["kind"] == "group" and finding["detail"].startswith("v_c1_g02: 1 test video(s)")


def test_videos_without_a_group_share_none(data):
    data.add(data.video("c0/one"), NUM_FRAMES, 0)
    for name in ("two", "three"):
        data.add(data.video(f"c0/{name}"), NUM_FRAMES, 0, name="test")
    assert check(data) == (0, [])


def test_labels_are_checked_where_the_first_line_lacks_its_own(data):
    data.set_rows("train", [data.rows("train")[0][:2], *data.rows("train")[1:], [data.video("c0/x"), NUM_FRAMES, 99]])
    findings = [(finding["kind"], finding["line"]) for finding in check(data)[1]]
    assert findings == [("row", "2"), ("label", "8")]


def test_zero_frames_are_corrected(data, capsys):
    data.set_rows("train", [[path, "0" if number == 0 else count, label]
                            for number, (path, count, label) in enumerate(data.rows("train"))])
    assert check(data, "--fix", data.root / "clean")[0] == 1
    records = read_records(data.root / "clean" / "train.csv", labelled=True)
    assert {record.num_frames for record in records} == {NUM_FRAMES}
    assert "6 of 6 readable lines" in capsys.readouterr().out


def test_damaged_images_that_opencv_decodes(data, decode_in_process):
    """libjpeg returns a full image for these, with a warning on stderr only."""
    whole = data.frame(1).read_bytes()
    middle = whole.rindex(b"\xff\xda") + 40
    data.frame(2).write_bytes(whole[:middle] + b"\xff\xd9")  # cut short, with an end put behind
    data.frame(4).write_bytes(whole[:-60] + bytes(58) + b"\xff\xd9")
    status, [finding] = check(data, "--decode", "--workers", 1)
    assert status == 1 and finding["kind"] == "broken image"
    assert finding["detail"].startswith("image_00002.jpg: not a readable image")
    assert "Corrupt JPEG data" in finding["detail"] and "2 such frames" in finding["detail"]


def test_video_files_and_shards(data, tmp_path):
    encode_video(tmp_path / "c0" / "a.mp4", 20)
    encode_video(tmp_path / "c0" / "b.avi", 21)
    (tmp_path / "c0" / "zero.mp4").write_bytes(b"")
    (tmp_path / "c0" / "text.mp4").write_text("no video")
    folder = str(tmp_path / "c0" / "v_c0_g02_c01")
    frames = [(os.path.basename(path), content)
              for path, content in read_folder(folder, range(NUM_FRAMES), NUM_FRAMES)]
    write_shard(str(tmp_path / "s.tar"), [("x/y", frames), ("bad", [*frames[:3], ("image_00004.jpg", b"")])])
    (tmp_path / "mixed.csv").write_text("c0/a.mp4,20\nc0/b.avi,\nc0/zero.mp4,\nc0/text.mp4,30\n"
                                        "s.tar/x/y,12\ns.tar/x/z,12\ns.tar/bad,5\nc0/a.mp4,20\n")
    report = tmp_path / "report.csv"

    def kinds(*more: str) -> list[tuple[str, int]]:
        assert main([str(tmp_path / "mixed.csv"), "--report", str(report), *more]) == 1
        with open(report, newline="") as file:
            return sorted((row["kind"], int(row["line"])) for row in csv.DictReader(file))

    quick = [("broken video", 4), ("count", 7), ("duplicate", 8), ("empty file", 3), ("unreadable", 6)]
    assert kinds() == quick
    found = kinds("--decode", "--workers", "1", "--fix", str(tmp_path / "clean.csv"))
    assert found == sorted([*quick, ("empty file", 7)])
    assert (tmp_path / "clean.csv").read_text().split() == [
        "frame_dir,number_of_frames", "c0/a.mp4,20", "c0/b.avi,21", "s.tar/x/y,12"]
    (tmp_path / "mixed.csv").write_text("c0/a.mp4,25\n")
    assert kinds("--decode", "--workers", "1") == [("count", 1)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=60)


def test_exit_statuses_and_one_line_errors(data, tmp_path):
    train, test = data.csv("train"), data.csv("test")
    assert run(train, test).returncode == 0
    data.frame(12).unlink()
    result = run("--train", train, "--test", test)
    assert (result.returncode, result.stderr) == (1, "")
    assert f"{train}:2: {data.frame(1).parent}: the csv has 12 frames, 11 can be read" in result.stdout
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "torn.csv").write_bytes(b'a,1\n"b,2\n')
    for arguments, says in (
        ([tmp_path / "absent.csv"], "absent.csv: cannot read the csv file"), ([], "no csv file given"),
        ([tmp_path / "empty.csv"], "empty.csv: lists no video"), ([tmp_path / "torn.csv"], "torn.csv:2: not a csv row"),
        ([train, test, train], "3 csv files: say which are which by --train and --test"),
        ([train, train], "given twice"), ([train, "--test", test], "name all csv files by --train and --test"),
        ([train, "--fix", train], "would replace"), ([train, test, "--fix", "x.csv"], "must be a folder"),
        ([train, "--seq", "0"], "--seq 0: must be at least 1"), ([train, "--sample", "2"], "--sample: does nothing"),
        ([train, "--classes", tmp_path / "no.txt"], "no.txt"),
        ([train, "--group_pattern", "("], "--group_pattern"),
    ):
        result = run(*arguments)
        assert result.returncode == 2 and result.stdout == "", result
        [line] = result.stderr.splitlines()
        assert says in line
