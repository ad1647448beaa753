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
