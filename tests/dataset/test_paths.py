"""What a path means is decided once, and links name the same video."""
from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from dataset.frames import (SeveralSeriesError, absolute_path, find_naming, find_series, locate_video, read_frames,
                            video_identity, video_name)
from dataset.packed import write_shard
from dataset.records import VideoRecord, read_records, shared_videos, write_records
from eval.splits import EvalSplit, class_folders, read_split
from utils.errors import InputError


def test_kinds_of_paths(tmp_path: Path) -> None:
    (tmp_path / "v.avi").mkdir()
    assert locate_video(f"{tmp_path}/v.avi") == ("folder", f"{tmp_path}/v.avi", "")
    assert locate_video(f"{tmp_path}/v.MP4") == ("file", f"{tmp_path}/v.MP4", "")
    assert locate_video(f"{tmp_path}/s.tar/a/v.avi") == ("packed", f"{tmp_path}/s.tar", "a/v.avi")
    assert locate_video(f"{tmp_path}/v/img_*.jpg") == ("folder", f"{tmp_path}/v", "img_*.jpg")
    (tmp_path / "five *").mkdir()
    assert locate_video(f"{tmp_path}/five *") == ("folder", f"{tmp_path}/five *", "")
    names = ["c/v_A_g01_c02", "c/v_A_g01_c02.AVI", "s.tar/c/v_A_g01_c02.avi", "c/v_A_g01_c02.avi/img_*.jpg"]
    assert {video_name(path) for path in names} == {"v_A_g01_c02"}
    assert video_name("a.5") == "a.5"


def test_a_packed_frame_folder_named_as_a_video_file(tmp_path: Path, write_coded_video, read_codes) -> None:
    folder = write_coded_video(tmp_path / "v.avi", 5)
    files = [(path.name, path.read_bytes()) for path in sorted(Path(folder).iterdir())]
    write_shard(str(tmp_path / "s.tar"), [("v.avi", files)])
    for path in (folder, f"{tmp_path}/s.tar/v.avi"):
        assert read_codes(read_frames(path, np.array([4, 0, 2]), 5)).tolist() == [4, 0, 2]


def test_a_series_of_several_is_chosen_and_hidden_files_are_none(tmp_path: Path, write_coded_video, read_codes) -> None:
    folder = write_coded_video(tmp_path / "v", 5, "img_{:05d}.jpg")
    for number in range(1, 5):
        cv2.imwrite(f"{folder}/flow_x_{number:05d}.jpg", np.zeros((48, 64), np.uint8))
        Path(folder, f"._img_{number:05d}.jpg").write_bytes(b"\0\5\x16\7")
    with pytest.raises(SeveralSeriesError, match=r"several series of frames \(flow_x_\*.jpg, img_\*.jpg\)"):
        find_naming(folder)
    path = f"{folder}/img_*.jpg"
    assert find_series(path).count == 5
    assert read_codes(read_frames(path, np.array([4, 0]), 5)).tolist() == [4, 0]
    with pytest.raises(InputError, match=r"no frames in it, expected files such as img_\*.png"):
        find_naming(f"{folder}/img_*.png")
    records = [VideoRecord(f"/x/{name}/v{number}{series}", 5, label) for label, name in enumerate("ab")
               for number in range(2) for series in ("", "/img_*.jpg")]
    assert class_folders(records) == {"a": 0, "b": 1}


def test_dots_behind_a_link_are_those_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "far/deep").mkdir(parents=True)
    (tmp_path / "near").mkdir()
    (tmp_path / "near/link").symlink_to(tmp_path / "far/deep")
    (tmp_path / "far/v.mp4").write_bytes(b"")
    assert absolute_path(f"{tmp_path}/near/link/../v.mp4") == f"{tmp_path.resolve()}/far/v.mp4"
    assert absolute_path(f"{tmp_path}/near/link/..") == f"{tmp_path.resolve()}/far"
    assert absolute_path(f"{tmp_path}/near/link/..//") == f"{tmp_path.resolve()}/far"
    assert absolute_path(f"{tmp_path}/near/./x/../link//v") == f"{tmp_path}/near/link/v"
    (tmp_path / "near/x.csv").write_text("link/../v.mp4,3\n../far/v.mp4,3\n")
    assert [os.path.samefile(record.path, tmp_path / "far/v.mp4") for record in
            read_records(tmp_path / "near/x.csv", labelled=False)] == [True, True]
    write_records(tmp_path / "near/link/../out.csv", [VideoRecord(f"{tmp_path}/near/link/../v.mp4", 3)], labelled=False)
    assert (tmp_path / "far/out.csv").read_text().splitlines()[1] == "v.mp4,3"


def test_a_training_video_is_recognized_by_any_name(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "other").symlink_to(tmp_path / "v")
    (tmp_path / "b.mp4").hardlink_to(tmp_path / "a.mp4")
    (tmp_path / "s.tar").write_bytes(b"")
    (tmp_path / "t.tar").symlink_to("s.tar")
    train, test = ([VideoRecord(f"{tmp_path}/{name}", 3) for name in names] for names in (
        ("v", "a.mp4", "s.tar/v"), ("other", "b.mp4", "t.tar/v", "t.tar/w", "absent")))
    assert shared_videos(train, test) == test[:3]
    assert video_identity("absent") == "absent"
    for name, videos in (("train", train), ("test", test[:3])):
        write_records(tmp_path / f"{name}.csv", [VideoRecord(video.path, 3, 0) for video in videos], labelled=True)
    with pytest.raises(InputError, match="3 video.s. are in .*: .*/other; .*/b.mp4; .*/t.tar/v: a test video"):
        read_split(EvalSplit(None, f"{tmp_path}/train.csv", f"{tmp_path}/test.csv"))
    write_records(tmp_path / "train.csv", [VideoRecord(video.path, 3, label) for label, video in
                                           enumerate((*train, *test[:3]))], labelled=True)
    with pytest.raises(InputError, match="names .*/other twice, with label 0 and with label 3; .*/b.mp4 .*; .*/t.tar/v "):
        read_split(EvalSplit(None, f"{tmp_path}/train.csv", f"{tmp_path}/test.csv"))
