from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from dataset.records import (PackedRecords, VideoRecord, read_packed_records, read_records, read_rows,
                             usable_for_pretraining, write_records)
from tests.encoded_videos import encode_video
from utils.errors import InputError


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "videos.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        "a,40\nb/c,7\n",
        "a,40\nb/c,7",
        "frame_dir,number_of_frames\na,40\nb/c,7\n",
        "\n\nframe_dir,number_of_frames,label\n\na,40,1\n\nb/c,7,0\n\n",
        "a,40,\nb/c,7,not a label\n",
        "a,40\r\nb/c,7\r\n",
        b"\xef\xbb\xbfa,40\nb/c,7\n",
        b"\xef\xbb\xbfpath,frames\r\na,40\r\nb/c,7\r\n",
        ' a , 40 \n"b/c","7"\n',
        "a,0040\nb/c,7\n , \n",
        "./a,40\nb//d/../c/,7\n",
    ],
)
def test_forms_of_a_pretraining_csv(tmp_path: Path, content: str | bytes) -> None:
    records = read_records(write(tmp_path, content), labelled=False)
    assert records == [VideoRecord(str(tmp_path / "a"), 40), VideoRecord(str(tmp_path / "b/c"), 7)]


@pytest.mark.parametrize("header", ["", "frame_dir,number_of_frames,label\n"])
def test_labelled_csv(tmp_path: Path, header: str) -> None:
    records = read_records(write(tmp_path, f'{header}/x/a,40,3\n"b, c",7,0\n'), labelled=True)
    assert records == [VideoRecord("/x/a", 40, 3), VideoRecord(str(tmp_path / "b, c"), 7, 0)]


@pytest.mark.parametrize(
    ("content", "labelled", "line", "says"),
    [
        ("a,40\nb\n", False, 2, "1 column"),
        ("a\nb,40\n", False, 1, "1 column"),
        ("a,40\n\n\nb,7,1,9\n", False, 4, "4 column"),
        ("a,40,1,2,3,4\nb,7\n", False, 1, "6 column"),
        ("a,40\nb,7,1,2,3,4\nc,x\n", False, 2, "6 column"),
        ('a,40\n"b"c,7\n', False, 2, "not a csv row"),
        ('"a"\n"\n",40,1\n"b',  False, 4, "not a csv row"),
        ("a,40\nb\0,7\n", False, 2, "NUL"),
        ('a,40\n"b\n",7,"\n",1\n', False, 2, "4 column"),
        ("a,1\nb,7\u2028,1,9\n", False, 2, "4 column"),
        (f'a,40\nb,7{",1" * 200}\nc,x\n', False, 2, "20"),
        ("h,frames\na,40\nb,frames\n", False, 3, "'frames'"),
        ("a,12x\nb,40\n", False, 1, "'12x'"),
        ("a,3.5\nb,40\n", False, 1, "'3.5'"),
        ("a,\nb,40\n", False, 1, "''"),
        ("a,40\nb,-7\n", False, 2, "'-7'"),
        ("a,40\r\nb,1_000\r\n", False, 2, "'1_000'"),
        ("a,40\nb,\u0663\n", False, 2, "number of frames"),
        ("a,40\n ,7\n", False, 2, "empty"),
        ("a,40,1\nb,7\n", True, 2, "2 column"),
        ("a,40,1\nb,7,-1\n", True, 2, "label"),
        ("a,40,1\nb,7,cat\n", True, 2, "'cat'"),
        ("a,40,1\nb,0,1\n", True, 2, "at least 1"),
        ('a,40\n"b,7\nc,8\n', False, 2, "not a csv row"),
        ('"a\n\nb",40\nc,7\n', False, 1, "one line"),
        ('a,40,"b\n\nc"\nd,x\n', False, 4, "'x'"),
        (b"a,40\nb,40\n\xff\xfe,7\n", False, 3, "UTF-8"),
    ],
)
def test_errors_name_file_and_line(
    tmp_path: Path, content: str | bytes, labelled: bool, line: int, says: str
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        read_records(path, labelled)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: ") and says in message and "\n" not in message


@pytest.mark.parametrize("content", ["", "\n\n", "frame_dir,number_of_frames\n"])
def test_a_csv_without_videos(tmp_path: Path, content: str) -> None:
    with pytest.raises(InputError, match="lists no video"):
        read_records(write(tmp_path, content), labelled=False)


def test_a_csv_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none.csv: cannot read the csv file: No such file"):
        read_records(tmp_path / "none.csv", labelled=False)
    with pytest.raises(InputError, match="cannot read the csv file: Is a directory"):
        read_records(tmp_path, labelled=False)


def test_wrong_lines_are_listed_apart(tmp_path: Path) -> None:
    path = write(tmp_path, "dir,frames\na,40,1\n\nb,x,2\nc.mp4,,0\nd,0,0\ne,7\n,7,1\nf,9,cat\n")
    records, bad_rows = read_rows(path)
    assert records == [VideoRecord(str(tmp_path / name), num, label)
                       for name, num, label in (("a", 40, 1), ("c.mp4", None, 0), ("d", 0, 0))]
    assert [record.line for record in records] == [2, 5, 6]
    assert [(row.line, row.path) for row in bad_rows] == [(4, "b"), (7, "e"), (8, ""), (9, "f")]
    for row, says in zip(bad_rows, ("'x'", "2 column(s)", "is empty", "'cat'")):
        assert says in row.reason
    assert [row.line for row in read_rows(path, labelled=False, allow_empty=False)[1]] == [4, 6, 8]
    assert all(record.label is None for record in read_rows(path, labelled=False)[0])


@pytest.mark.parametrize("labelled", [False, True])
def test_what_is_written_is_read_back(tmp_path: Path, labelled: bool) -> None:
    paths = [str(tmp_path / "new/b, c"), str(tmp_path / 'new/"q"'), str(tmp_path / "outside"), str(tmp_path / "new/v.mp4")]
    records = [VideoRecord(path, num, label if labelled else None)
               for path, num, label in zip(paths, (40, 7, 123456, None), (3, 0, 2, 1))]
    path = tmp_path / "new" / "videos.csv"
    write_records(path, records, labelled)
    assert read_rows(path, labelled) == (records, [])
    lines = path.read_text().splitlines()
    assert lines[0] == "frame_dir,number_of_frames" + ",label" * labelled
    assert lines[1] == '"b, c",40' + ",3" * labelled and lines[3].startswith(f"{tmp_path}/outside,123456")
    assert lines[4] == "v.mp4," + ",1" * labelled and [file.name for file in path.parent.iterdir()] == ["videos.csv"]


def test_a_csv_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/videos.csv: cannot write: "):
        write_records(tmp_path / "file" / "videos.csv", [], labelled=False)


def test_usable_means_more_frames_than_the_clips_take() -> None:
    records = PackedRecords(VideoRecord(str(num), num) for num in (31, 33, 32, 100, 0))
    usable, num_dropped = usable_for_pretraining(records, num_clips=2, clip_frames=16)
    assert [record.num_frames for record in usable] == [33, 100] and num_dropped == 3


def test_no_usable_video_says_how_many_were_dropped_and_why() -> None:
    records = PackedRecords([VideoRecord("a", 32), VideoRecord("b", 5)])
    with pytest.raises(InputError) as caught:
        usable_for_pretraining(records, num_clips=2, clip_frames=16, source="x.csv")
    message = str(caught.value)
    assert message.startswith("x.csv: ")
    assert (
        "all 2 dropped" in message and "more than 32 frames" in message and "longest video has 32" in message
    )


def test_labels_in_place_of_counts_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encode_video(tmp_path / "v.mp4", 50)
    (tmp_path / "f").mkdir()
    for number in range(1, 31):
        (tmp_path / f"f/image_{number:05d}.jpg").write_bytes(b"")
    path = tmp_path / "x.csv"
    for v, f in ((50, 30), (48, 27)):
        path.write_text(f"v.mp4,{v}\nf,{f}\nabsent,7\nv.mp4,\n")
        read_records(path, labelled=False)
        assert "wrong" not in capsys.readouterr().err
    path.write_text("v.mp4,7\nf,31\nabsent,7\n")
    read_records(path, labelled=False)
    assert capsys.readouterr().err == (
        f"{path}: wrong number of frames (second column) in 2 of 3 videos of a sample: line 1: {tmp_path}/v.mp4: 7, but 50 "
        f"can be read; line 2: {tmp_path}/f: 31, but 30 can be read; is it a label? scripts/check_data.py --decode checks "
        "every line\n")


def test_counts_of_another_process_are_taken_without_opening_a_video(tmp_path):
    (tmp_path / "videos.csv").write_text("a.mp4,\nb,7\n")
    records = read_packed_records(tmp_path / "videos.csv", labelled=False, counts=[40, 7])
    assert [record.num_frames for record in records] == [40, 7]


def test_packed_records_are_a_list_of_the_same_videos_in_less_memory(tmp_path):
    records = [VideoRecord("/x/\udcff é", None, None, 3), VideoRecord("", 0, 0), VideoRecord("b" * 300, 999999999, 5, 9)]
    packed = PackedRecords(records)
    assert list(packed) == records and packed[-1] == records[-1] and [record.line for record in packed] == [3, 0, 9]
    assert list(packed.select(np.array([2, 0]))) == [records[2], records[0]] and len(packed) == 3
    path = write(tmp_path, "".join(f"/x/{number:096d},{number}\n" for number in range(10_000)))
    read_records(path, labelled=False)  # imports pandas
    tracemalloc.start()
    packed = read_packed_records(path, labelled=False)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert packed[7].path == f"/x/{7:096d}" and held < 150 * len(packed)  # 99 of them are the path


@pytest.mark.parametrize("block_lines", [1, 2, 3])
def test_blocks_are_read_as_one_table(tmp_path, monkeypatch, block_lines):
    monkeypatch.setattr("dataset.records.BLOCK_LINES", block_lines)
    path = write(tmp_path, '\n\nframe_dir,frames\n"a\nb",40\n\n/x/c,7,1\n"d\n",x\n/x/e,8\n')
    records, bad_rows = read_rows(path)  # the third column of one line makes it a labelled csv
    assert [(record.path, record.label, record.line) for record in records] == [("/x/c", 1, 7)]
    assert [(row.line, row.reason) for row in bad_rows] == [
        (4, "2 column(s), expected frame_dir,number_of_frames,label"),
        (8, "2 column(s), expected frame_dir,number_of_frames,label"),
        (10, "2 column(s), expected frame_dir,number_of_frames,label")]
