"""The written data set of action videos: files, csv, reuse, command line."""
from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from dataset.synthetic.write import ARROW_OF_TIME, CLASSES, main, render_video, write_dataset

TINY = "--train_per_class 2 --test_per_class 1 --frames 3 --size 48x36 --workers 2".split()


def settings(train_per_class: int, test_per_class: int, frames: int) -> dict[str, object]:
    return {"train_per_class": train_per_class, "test_per_class": test_per_class, "frames": frames, "size": "48x36",
            "seed": 0, "shared_looks": False}


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "parent" / "set"
    assert main([str(out), *TINY]) == 0
    return out


def read_rows(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name, per_class, columns", [("pretrain", 2, 2), ("train", 2, 3), ("test", 1, 3)])
def test_csv_rows_name_folders_of_decodable_frames(tiny_set: Path, name: str, per_class: int,
                                                   columns: int) -> None:
    header, *rows = read_rows(tiny_set / f"{name}.csv")
    assert header == ["frame_dir", "number_of_frames", "label"][:columns]
    assert len({row[0] for row in rows}) == len(rows) == per_class * len(CLASSES)
    for row in rows:
        assert len(row) == columns
        files = sorted((tiny_set / row[0]).iterdir())
        assert [file.name for file in files] == [f"image_{index + 1:05d}.jpg" for index in range(int(row[1]))]
        assert {cv2.imread(str(file)).shape for file in files} == {(36, 48, 3)}


def test_labels_are_line_numbers_of_classes_txt(tiny_set: Path) -> None:
    names = (tiny_set / "classes.txt").read_text(encoding="utf-8").splitlines()
    assert tuple(names) == CLASSES
    for split in ("train", "test"):
        for folder, _, label in read_rows(tiny_set / f"{split}.csv")[1:]:
            assert Path(folder).parts[:3] == ("frames", split, names[int(label)])


def test_videos_with_an_arrow_of_time_have_lists_of_their_own(tiny_set: Path) -> None:
    for split, per_class in (("train", 2), ("test", 1)):
        rows = read_rows(tiny_set / f"arrow_{split}.csv")[1:]
        assert rows == [row[:2] for row in read_rows(tiny_set / f"{split}.csv")[1:]
                        if Path(row[0]).parent.name in ARROW_OF_TIME]
        assert len(rows) == per_class * len(ARROW_OF_TIME)


def test_pretraining_uses_only_the_training_videos(tiny_set: Path) -> None:
    assert read_rows(tiny_set / "pretrain.csv") == [row[:2] for row in read_rows(tiny_set / "train.csv")]


def test_frames_match_the_rendered_video(tiny_set: Path) -> None:
    label = CLASSES.index("orbit")
    video = render_video("orbit", (0, 1, label, 0), 3, (48, 36))
    for index in range(3):
        image = cv2.imread(str(tiny_set / f"frames/test/orbit/orbit_000/image_{index + 1:05d}.jpg"))
        error, swapped = (np.abs(pixels.astype(int) - video[index]).mean()
                          for pixels in (image[..., ::-1], image))
        assert 2 * error < swapped and error < 10  # loss of JPEG against red and blue swapped


def test_same_settings_give_the_same_bytes_with_any_number_of_workers(tiny_set: Path, tmp_path: Path) -> None:
    assert write_dataset(tmp_path / "again", settings(2, 1, 3), workers=1)
    assert contents(tmp_path / "again") == contents(tiny_set)


def test_a_second_run_reuses_the_finished_set(tiny_set: Path, capsys: pytest.CaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_set.rglob("*")}
    assert main([str(tiny_set), *TINY]) == 0
    assert "reused" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tiny_set.rglob("*")} == before


def test_a_failed_write_leaves_nothing_and_the_next_run_succeeds(tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(path: Path, target: Path) -> None:
        raise OSError(f"no space left for {target}")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(Path, "rename", full_disk)
        write_dataset(tmp_path / "set", settings(1, 1, 2))
    assert list(tmp_path.iterdir()) == []
    assert write_dataset(tmp_path / "set", settings(1, 1, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("flags, named", [
    (["--train_per_class", "0"], "--train_per_class 0"),
    (["--test_per_class", "-1"], "--test_per_class -1"),
    (["--frames", "1"], "--frames 1"),
    (["--frames", "many"], "--frames"),
    (["--seed", "-3"], "--seed -3"),
    (["--size", "200"], "--size 200"),
    (["--size", "200x8"], "--size 200x8"),
    (["--workers", "0"], "--workers 0"),
    (["--sede", "1"], "--sede"),
])
def test_a_wrong_flag_is_a_one_line_error(flags: list[str], named: str, tmp_path: Path,
                                      capsys: pytest.CaptureFixture) -> None:
    try:
        status = main([str(tmp_path / "set"), *flags])
    except SystemExit as exit_:  # of the parser
        status = exit_.code
    captured = capsys.readouterr()
    assert status == 2 and named in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["empty folder", "file", "other settings"])
def test_anything_else_at_out_is_refused_and_unchanged(kind: str, tiny_set: Path, tmp_path: Path,
                                                        capsys: pytest.CaptureFixture) -> None:
    out, flags = tmp_path / "set", TINY
    if kind == "empty folder":
        out.mkdir()
    elif kind == "file":
        out.write_text("mine")
    else:
        out, flags = tiny_set, [*TINY, "--shared_looks"]
    before = contents(tiny_set)
    assert main([str(out), *flags]) == 2
    error = capsys.readouterr().err
    assert str(out) in error and error.count("\n") == 1
    assert out.exists() and contents(tiny_set) == before
