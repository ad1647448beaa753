"""Names that a csv cannot keep are refused where videos are searched, and only those of videos."""
from __future__ import annotations

import os

import pytest

from dataset.prepare.video_tree import find_videos
from utils.errors import InputError


@pytest.mark.parametrize(("name", "problem"), [
    (b"two\nlines.mp4", "has a line break"), (b"end\n.mp4", "has a line break"), ("\u2028.avi".encode(), "has a line break"),
    (b"my clip .mp4", "begins or ends with a blank"), (b" clip.mp4", "begins or ends with a blank"),
    (b"\xe9.mp4", "is not UTF-8 text"),
])
def test_names_that_a_csv_does_not_keep(tmp_path, name, problem):
    (tmp_path / "class").mkdir()
    path = os.path.join(os.fsencode(tmp_path), b"class", name)
    os.close(os.open(path, os.O_CREAT))
    with pytest.raises(InputError) as caught:
        find_videos(tmp_path)
    [line] = str(caught.value).splitlines()
    assert problem in line and line.isascii() and "/class/" in line


def test_names_of_folders(tmp_path):
    (tmp_path / "class " / "clip").mkdir(parents=True)
    (tmp_path / "class " / "clip" / "image_00001.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"'.*/class /clip': its name or that of a folder above it begins or ends"):
        find_videos(tmp_path)


def test_other_names_are_accepted(tmp_path):
    for name in ("two\nlines.txt", "notes .txt", " a b.pdf"):
        (tmp_path / name).write_text("")
    (tmp_path / "empty ").mkdir()
    (tmp_path / "#1 A.J. [x]&(y), \u00e9.mp4").write_text("")
    folders, [file] = find_videos(tmp_path)
    assert folders == [] and file.name == "#1 A.J. [x]&(y), \u00e9"


def write_tree(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_frame_folders_keep_a_video_files_suffix(tmp_path):
    write_tree(tmp_path, "c.d/v_A_g01_c01.AVI/img_1.jpg", "c.d/v_A_g01_c01.AVI/img_2.jpg")
    [folder], _ = find_videos(tmp_path)
    assert (folder.name, folder.path) == ("c.d/v_A_g01_c01", f"{tmp_path}/c.d/v_A_g01_c01.AVI")


def test_one_image_beside_videos_is_no_video(tmp_path):
    frames = [f"a/set/v{video}/img_{number}.jpg" for video in range(2) for number in (1, 2)]
    write_tree(tmp_path, "a/preview_1.jpg", "a/set/preview_1.jpg", "a/set/poster_7.png", "a/set/v1/thumb/thumb_1.jpg",
               "b/preview_1.jpg", "b/x.mp4", *frames)
    folders, [file] = find_videos(tmp_path)
    assert [video.name for video in folders] == ["a/set/v0", "a/set/v1"] and file.name == "b/x"
    assert [video.num_frames for video in folders] == [2, 2]


def test_frames_beside_a_video_file_are_both_found(tmp_path):
    write_tree(tmp_path, "a/v/img_1.jpg", "a/v/img_2.jpg", "a/v/v.mp4")
    [folder], [file] = find_videos(tmp_path)
    assert (folder.name, file.name) == ("a/v", "a/v/v")


def test_a_frame_folder_inside_another_is_refused(tmp_path):
    write_tree(tmp_path, *(f"a/v/{name}_{number}.jpg" for name in ("img", "flow/x") for number in (1, 2)))
    with pytest.raises(InputError, match="a/v: has numbered images and the frame folder .*/a/v/flow in it"):
        find_videos(tmp_path)


def test_a_series_of_several_is_chosen(tmp_path):
    write_tree(tmp_path, *(f"a/v/{name}_{number}.jpg" for name in ("img", "flow_x") for number in (1, 2, 3)),
               "a/v/._img_1.jpg", "a/w/img_1.jpg")
    with pytest.raises(InputError, match=r"a/v: several series of frames .*--series 'img_\*.jpg' chooses one"):
        find_videos(tmp_path)
    folders, _ = find_videos(tmp_path, "img_*.jpg")
    assert [(video.name, video.path, video.num_frames) for video in folders] == [
        ("a/v", f"{tmp_path}/a/v/img_*.jpg", 3), ("a/w", f"{tmp_path}/a/w/img_*.jpg", 1)]
