"""Extraction from the command line: exit statuses, resuming, and the same tree however often it is killed."""
from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dataset.prepare.extraction import LOCK, REPORT, ExtractionResult, FrameSettings, extract_video, list_videos
from scripts.extract_frames import main
from tests.encoded_videos import encode_video
from utils.files import hold_lock

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "extract_frames.py"


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def run(*arguments: object, limit_kib: int | None = None) -> subprocess.CompletedProcess[str]:
    line = command(*arguments)
    if limit_kib:  # writing more to a file fails, as on a full disk
        line = ["bash", "-c", f'ulimit -f {limit_kib}; trap "" XFSZ; exec "$@"', "bash", *line]
    return subprocess.run(line, capture_output=True, text=True, timeout=60)


def one_error(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 2 and result.stdout == "", result
    [line] = result.stderr.splitlines()
    return line


def tree_hash(root: Path) -> dict[str, str]:
    """Path -> hash of every file, and every folder."""
    return {path.relative_to(root).as_posix(): path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*"))}


def files(root: Path, name_end: str) -> list[Path]:
    """Files below a folder in which another process renames folders meanwhile."""
    return [Path(folder, name) for folder, _, names in os.walk(root) for name in names if name.endswith(name_end)]


def report(destination: Path) -> dict[str, dict[str, str]]:
    with open(destination / REPORT, newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """A tree with the layouts of the data sets: class folders or flat, special characters in names, upper-case suffixes."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(4):
        encode_video(root / "Archery" / f"v_Archery_g01_c0{number}.avi", 40 + number)
    encode_video(root / "brush_hair" / "#1 A.J. [x]&(y)_brush_hair_u_nm_np1_ba_goo_0.avi", 33)
    for number in range(3):
        encode_video(root / "riding a bike" / f"-a_{number}_000000_000010.mp4", 50)
    encode_video(root / "a" / "b" / "deep.MKV", 20)
    for number in range(3):
        encode_video(root / f"flat_{number}_000000_000010.mp4", 25)
    (root / "Archery" / "._v_Archery_g01_c00.avi").write_bytes(b"left by another system")
    (root / "notes.txt").write_text("no video")
    return root


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory) -> Path:
    """The tree of one uninterrupted extraction."""
    destination = tmp_path_factory.mktemp("whole") / "frames"
    result = run(videos, destination, "--workers", 2)
    assert result.returncode == 0, result.stderr
    assert "12 videos: 12 extracted, 0 were there already, 0 broken; 444 frames in all" in result.stdout
    return destination


def test_the_tree_is_mirrored_and_reported(videos, whole):
    for name, row in report(whole).items():
        assert row["status"] == "ok" and row["reason"] == ""
        images = sorted((whole / name).with_suffix("").glob("*.jpg"))
        assert [p.name for p in images] == [f"image_{i:05d}.jpg" for i in range(1, int(row["frames"]) + 1)]
    assert len(report(whole)) == 12


def test_a_second_run_changes_nothing(videos, whole):
    before = tree_hash(whole), {path: path.stat().st_mtime_ns for path in whole.rglob("*.jpg")}
    result = run(videos, whole, "--workers", 2)
    assert result.returncode == 0 and "0 extracted, 12 were there already" in result.stdout
    assert (tree_hash(whole), {path: path.stat().st_mtime_ns for path in whole.rglob("*.jpg")}) == before


def test_killed_at_random_moments_it_ends_with_the_same_tree(videos, whole, tmp_path):
    """The main process alone is killed: its workers must exit by themselves, though the next run starts immediately."""
    draw = random.Random(11)
    destination = tmp_path / "frames"
    for start in range(3):
        goal = len(files(destination, ".jpg")) + draw.randrange(10, 80)
        process = subprocess.Popen(command(videos, destination, "--workers", 2), stderr=subprocess.DEVNULL)
        while len(files(destination, ".jpg")) < goal and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        finished = [path.parent for path in files(destination, ".frames.json") if ".partial" not in path.parent.name]
        assert start or len(finished) < 12, "killed too late to test anything"
        for folder in finished:  # every marked folder is finished
            assert tree_hash(folder) == tree_hash(whole / folder.relative_to(destination))
    (destination / f"{REPORT}.partial").write_text("path,sta")  # as if killed while that is written
    result = run(videos, destination, "--workers", 2)
    assert result.returncode == 0, result.stderr
    assert tree_hash(destination) == tree_hash(whole)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_reported_and_leaves_no_partial_video(videos, whole, tmp_path, sent):
    destination = tmp_path / "frames"
    process = subprocess.Popen(command(videos, destination, "--workers", 1), stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    while not files(destination, "image_00003.jpg") and process.poll() is None:
        time.sleep(0.002)
    os.killpg(process.pid, sent)  # as a terminal does: workers receive it too
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("interrupted with ") and "Traceback" not in errors
    assert not [path for path in destination.rglob(".*") if path.name not in (LOCK, ".frames.json")]
    assert {row["status"] for row in report(destination).values()} <= {"ok", "to do"}
    assert run(videos, destination).returncode == 0
    assert tree_hash(destination) == tree_hash(whole)


def waiting(videos: Path, destination: Path, *flags: object) -> subprocess.Popen[str]:
    """An extraction that waits for another one to end."""
    process = subprocess.Popen(command(videos, destination, *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    assert "another extraction is writing into it; waiting 10 s" in process.stdout.readline()
    return process


def test_an_interrupt_before_the_first_video_is_one_line(videos, tmp_path):
    with hold_lock(tmp_path / LOCK, "busy"):
        process = waiting(videos, tmp_path)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "extract_frames.py: interrupted\n")


def test_a_concurrent_extraction_is_not_undone(videos, tmp_path):
    """The second, of another quality, has waited for the first: its folders stay."""
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mkv").symlink_to(videos / "a" / "b" / "deep.MKV")
    (tmp_path / "f").mkdir()
    with hold_lock(tmp_path / "f" / LOCK, "busy"):
        second = waiting(tmp_path / "v", tmp_path / "f", "--quality", 50)
        [video] = list_videos(tmp_path / "v", tmp_path / "f", FrameSettings())
        assert extract_video(video) == ExtractionResult(20)
    output, errors = second.communicate(timeout=30)
    assert (second.returncode, output) == (2, "") and "f/a: was extracted with quality 90, not 50" in errors


def test_two_extractions_into_one_folder_are_refused(videos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dataset.prepare.extraction.WAIT_FOR_LOCK_S", 0.2)
    with hold_lock(tmp_path / LOCK, "busy"):
        assert main([str(videos), str(tmp_path)]) == 2
    assert "another extraction is writing into it\n" in capsys.readouterr().err


def test_a_file_system_without_locks_is_reported_and_used(videos, tmp_path, monkeypatch, capsys):
    def flock(descriptor: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    assert main([str(videos / "a"), str(tmp_path)]) == 0
    assert f"{tmp_path / LOCK}: cannot be locked (" in capsys.readouterr().err


def test_broken_videos_are_listed_and_retried(tmp_path):
    whole = encode_video(tmp_path / "v" / "torn.avi", 100).read_bytes()
    (tmp_path / "v" / "torn.avi").write_bytes(whole[: len(whole) // 2])
    encode_video(tmp_path / "v" / "good.avi", 12)
    (tmp_path / "v" / "text.mp4").write_text("<html>404</html>")
    result = run(tmp_path / "v", tmp_path / "f")
    assert result.returncode == 1
    rows = report(tmp_path / "f")
    assert {name: (row["status"], row["frames"]) for name, row in rows.items()} == {
        "good.avi": ("ok", "12"), "text.mp4": ("broken", "0"), "torn.avi": ("broken", "0")}
    assert all(rows[name]["reason"] for name in ("text.mp4", "torn.avi"))
    assert "broken: text.mp4: " in result.stdout
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == [LOCK, REPORT, "good"]
    encode_video(tmp_path / "v" / "torn.avi", 5)
    (tmp_path / "v" / "text.mp4").unlink()
    result = run(tmp_path / "v", tmp_path / "f")
    assert result.returncode == 0 and "1 extracted, 1 were there already" in result.stdout


def test_other_settings_and_another_source_need_redo(tmp_path):
    encode_video(tmp_path / "v" / "a.avi", 6)
    encode_video(tmp_path / "v" / "b.avi", 7)
    assert run(tmp_path / "v", tmp_path / "f").returncode == 0
    before = tree_hash(tmp_path / "f")
    error = one_error(run(tmp_path / "v", tmp_path / "f", "--size", "32x32", "--quality", 80))
    assert "f/a: was extracted with quality 90, not 80; size unset, not 32x32" in error and "--redo" in error
    encode_video(tmp_path / "v" / "b.avi", 9)
    error = one_error(run(tmp_path / "v", tmp_path / "f"))
    assert "f/b: was extracted from another file than" in error
    assert tree_hash(tmp_path / "f") == before
    (tmp_path / "f" / "b" / ".frames.json").unlink()
    assert "f/b: exists, but was not written by this script" in one_error(run(tmp_path / "v", tmp_path / "f"))
    result = run(tmp_path / "v", tmp_path / "f", "--redo")
    assert result.returncode == 0 and "1 extracted, 1 were there already" in result.stdout
    assert report(tmp_path / "f")["b.avi"]["frames"] == "9"


def test_conflicts_are_found_before_writing(tmp_path):
    encode_video(tmp_path / "v" / "x" / "a.avi", 2)
    encode_video(tmp_path / "v" / "x" / "a.mp4", 2)
    error = one_error(run(tmp_path / "v", tmp_path / "f"))
    assert "x/a.avi and x/a.mp4 would both become" in error
    (tmp_path / "v" / "x" / "a.mp4").unlink()
    encode_video(tmp_path / "v" / "x.avi", 2)
    assert "x.avi would become" in one_error(run(tmp_path / "v", tmp_path / "f"))
    assert not (tmp_path / "f").exists()


def test_a_full_disk_is_a_one_line_error_and_leaves_no_partial_video(tmp_path):
    encode_video(tmp_path / "v" / "small.avi", 30, size=(64, 48))
    encode_video(tmp_path / "v" / "wide.avi", 30, size=(640, 480))
    error = one_error(run(tmp_path / "v", tmp_path / "f", "--workers", 1, limit_kib=4))
    assert error.endswith("f: cannot write: File too large")
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == [LOCK, "small"]
    assert run(tmp_path / "v", tmp_path / "f").returncode == 0
    (tmp_path / "file").write_text("")
    assert "file: cannot write: File exists" in one_error(run(tmp_path / "v", tmp_path / "file"))


def test_wrong_input_is_a_one_line_error(videos, tmp_path):
    assert "absent: no such folder" in one_error(run(tmp_path / "absent", tmp_path / "f"))
    (tmp_path / "empty").mkdir()
    assert "no video file below it" in one_error(run(tmp_path / "empty", tmp_path / "f"))
    assert "--size 200" in one_error(run(videos, tmp_path / "f", "--size", "200"))
    assert "--size 66000x16" in one_error(run(videos, tmp_path / "f", "--size", "66000x16"))
    assert "--workers 0" in one_error(run(videos, tmp_path / "f", "--workers", "0"))
    assert not (tmp_path / "f").exists()


def test_links_are_followed_and_cycles_refused(videos, tmp_path):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "linked").symlink_to(videos / "a")
    assert run(tmp_path / "v", tmp_path / "f").returncode == 0
    assert (tmp_path / "f" / "linked" / "b" / "deep" / "image_00020.jpg").exists()
    (tmp_path / "v" / "circle").symlink_to(tmp_path / "v")
    assert "v/circle: a link to a folder above itself" in one_error(run(tmp_path / "v", tmp_path / "f"))


def test_the_longest_names(videos, tmp_path):
    for name in ("n" * 251, "m" * 246, "b"):  # a file's name may have 255 bytes
        (tmp_path / "v").mkdir(exist_ok=True)
        (tmp_path / "v" / f"{name}.mkv").symlink_to(videos / "a" / "b" / "deep.MKV")
    assert run(tmp_path / "v", tmp_path / "f").returncode == 0
    rows = report(tmp_path / "f")
    assert len(rows) == 3 and {row["status"] for row in rows.values()} == {"ok"}
    assert run(tmp_path / "v", tmp_path / "f", "--redo", "--quality", 50).returncode == 0
    assert json.loads((tmp_path / "f" / ("n" * 251) / ".frames.json").read_text())["settings"]["quality"] == 50


def test_a_colon_is_part_of_a_name(videos, tmp_path):
    (tmp_path / "run:1").symlink_to(videos / "a")
    result = subprocess.run(command("run:1", "f"), cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout


def test_a_plain_copy_of_the_videos_is_recognized(videos, tmp_path):
    assert run(videos / "a", tmp_path / "f").returncode == 0
    shutil.copytree(videos / "a", tmp_path / "copy", copy_function=shutil.copyfile)
    os.utime(tmp_path / "copy" / "b" / "deep.MKV", (1, 1))
    result = run(tmp_path / "copy", tmp_path / "f")
    assert result.returncode == 0 and "0 extracted, 1 were there already" in result.stdout
