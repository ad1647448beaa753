from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path

import pytest

from dataset import frame_counts
from dataset.records import VideoRecord, read_records
from tests.encoded_videos import encode_video
from utils.errors import InputError


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were opened to count their frames, in any order."""
    names: list[str] = []
    count = frame_counts.count_frames
    monkeypatch.setattr(
        frame_counts, "count_frames", lambda path: names.append(Path(path).name) or count(path)
    )
    return names


def write_csv(folder: Path, text: str) -> Path:
    path = folder / "videos.csv"
    path.write_text(text)
    return path


def test_empty_counts_are_read_from_the_files_and_given_ones_are_not(
    tmp_path: Path, counted: list[str]
) -> None:
    for name, num_frames in (("a.mp4", 9), ("b/c.AVI", 12), ("d.mkv", 5)):
        encode_video(tmp_path / name, num_frames)
    path = write_csv(
        tmp_path,
        f"video,number_of_frames,label\na.mp4,,1\nfolder,7,0\nb/c.AVI, ,2\nd.mkv,99,3\n{tmp_path}/d.mkv,,0\n",
    )
    records = read_records(path, labelled=True)
    at = lambda name: str(tmp_path / name)
    assert records == [
        VideoRecord(at("a.mp4"), 9, 1),
        VideoRecord(at("folder"), 7, 0),
        VideoRecord(at("b/c.AVI"), 12, 2),
        VideoRecord(at("d.mkv"), 99, 3),
        VideoRecord(at("d.mkv"), 5, 0),
    ]
    assert sorted(counted) == ["a.mp4", "c.AVI", "d.mkv"]
    assert [record.num_frames for record in read_records(path, labelled=False)] == [9, 7, 12, 99, 5]


def test_counts_are_kept_until_the_file_changes(tmp_path: Path, counted: list[str]) -> None:
    encode_video(tmp_path / "a.mp4", 9)
    encode_video(tmp_path / "b.mp4", 4)
    path = write_csv(tmp_path, "a.mp4,\nb.mp4,\n")
    read_records(path, labelled=False)
    stored = json.loads((tmp_path / "videos.csv.frame_counts.json").read_text())
    assert {key: entry[2] for key, entry in stored.items()} == {"a.mp4": 9, "b.mp4": 4}
    counted.clear()
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)  # the csv, its videos and its counts go together
    read_records(moved / "videos.csv", labelled=False)
    assert counted == []
    encode_video(moved / "b.mp4", 6)
    assert [record.num_frames for record in read_records(moved / "videos.csv", labelled=False)] == [9, 6]
    assert counted == ["b.mp4"]
    os.utime(moved / "a.mp4", ns=(1, 1))
    read_records(moved / "videos.csv", labelled=False)
    assert counted == ["b.mp4", "a.mp4"]
    moved.rename(tmp_path)


def test_an_error_names_the_csv_line_and_what_was_counted_is_kept(tmp_path: Path, counted: list[str]) -> None:
    for name in ("a.mp4", "b.mp4"):
        encode_video(tmp_path / name, 3)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    path = write_csv(tmp_path, "x,frames\na.mp4,\nb.mp4,\nbroken.mp4,\nmissing.mp4,\n")
    with pytest.raises(InputError) as caught:
        read_records(path, labelled=False)
    assert str(caught.value).startswith(
        f"{path}:4: {tmp_path}/broken.mp4: cannot open the video file: Invalid"
    )
    assert "; 1 more video file(s) cannot be counted either (scripts/check_data.py" in str(caught.value)
    counted.clear()
    (tmp_path / "broken.mp4").unlink()
    with pytest.raises(
        InputError, match=r"videos.csv:4: .*/broken.mp4: cannot open the video file: No such file"
    ):
        read_records(path, labelled=False)
    assert counted == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a,", "is '', expected"),
        ("a.mp4/,", "is '', expected"),
        ("a.mp4,x1", "is 'x1', expected"),
        ("a.mp4", "1 column"),
    ],
)
def test_only_a_video_file_may_leave_its_count_empty(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(InputError, match=r"videos.csv:1: .*" + says):
        read_records(write_csv(tmp_path, f"{line}\n"), labelled=False)


def test_a_folder_that_cannot_be_written_to_is_said(
    tmp_path: Path, counted: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_video(tmp_path / "a.mp4", 3)
    path = write_csv(tmp_path, "a.mp4,\n")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(frame_counts.os, "replace", refuse)  # root may write anywhere
    for _ in range(2):
        assert read_records(path, labelled=False)[0].num_frames == 3
        assert (
            "frame_counts.json: frame counts not kept, the next start counts again: Permission"
            in capsys.readouterr().err
        )
    assert counted == ["a.mp4", "a.mp4"]


def test_kept_counts_that_are_no_json(tmp_path: Path) -> None:
    encode_video(tmp_path / "a.mp4", 3)
    path = write_csv(tmp_path, "a.mp4,\n")
    Path(f"{path}.frame_counts.json").write_text("{")
    with pytest.raises(
        InputError, match=r"frame_counts.json: cannot read the kept frame counts .*: remove the file$"
    ):
        read_records(path, labelled=False)


def test_of_processes_that_start_together_one_counts(tmp_path: Path, counted: list[str]) -> None:
    """While another holds the csv's lock, this one waits, and then finds what the other has kept."""
    encode_video(tmp_path / "a.mp4", 3)
    path = write_csv(tmp_path, "a.mp4,\n")
    records = []
    with open(path) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        thread = threading.Thread(target=lambda: records.extend(read_records(path, labelled=False)))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive() and counted == []
        status = os.stat(tmp_path / "a.mp4")
        kept = {"a.mp4": [status.st_size, status.st_mtime_ns, 77]}
        Path(f"{path}.frame_counts.json").write_text(json.dumps(kept))
    thread.join(10)
    assert [record.num_frames for record in records] == [77] and counted == []
