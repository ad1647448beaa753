from __future__ import annotations

import errno
import os
import resource
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from dataset import packed
from dataset.frames import locate_video
from dataset.packed import read_packed, write_shard
from utils.errors import InputError

LONG = "a folder/" + "x" * 120  # longer than a tar header holds
VIDEOS = {
    "v1": [b"\xff\xd8 first", b"", bytes(range(256)) * 4],
    "class/\u00fcml": [b"x" * 512],
    LONG: [b"y" * 511, b"z" * 513],
}


def members(videos: dict[str, list[bytes]]) -> list[tuple[str, list[tuple[str, bytes]]]]:
    return [
        (name, [(f"image_{i:05d}.jpg", data) for i, data in enumerate(frames, 1)])
        for name, frames in videos.items()
    ]


@pytest.fixture
def shard(tmp_path: Path) -> str:
    path = str(tmp_path / "s.tar")
    write_shard(path, members(VIDEOS))
    return path


def test_every_frame_comes_back_by_its_place(shard: str) -> None:
    for name, frames in VIDEOS.items():
        wanted = list(range(len(frames)))[::-1] * 2
        read = list(read_packed(shard, name, wanted, len(frames)))
        assert [data for _, data in read] == [frames[index] for index in wanted]
        assert read[0][0] == f"{shard}/{name}: frame {len(frames)}"


def test_tar_programs_read_a_shard(shard: str, tmp_path: Path) -> None:
    names = [f"{video}/{name}" for video, frames in members(VIDEOS) for name, _ in frames]
    listed = subprocess.run(
        ["tar", "tf", shard, "--quoting-style=literal"], capture_output=True, text=True, check=True
    )
    assert listed.stdout.splitlines() == [*names, "frame_index.bin"] and listed.stderr == ""
    with tarfile.open(shard) as tar:
        contents = [tar.extractfile(name).read() for name in names]
    assert contents == [data for frames in VIDEOS.values() for data in frames]


@pytest.mark.parametrize("num_frames", [0, 1, 29, 30, 31, 32, 61, 62, 63])
def test_the_index_fits_whatever_its_length(tmp_path: Path, num_frames: int) -> None:
    path = str(tmp_path / "s.tar")
    write_shard(path, members({"v": [bytes([index]) for index in range(num_frames)]}))
    assert os.path.getsize(path) % 512 == 0
    assert [data for _, data in read_packed(path, "v", range(num_frames), 0)] == [
        bytes([i]) for i in range(num_frames)
    ]


def test_paths_that_name_a_place_in_a_shard(tmp_path: Path) -> None:
    assert locate_video("/d/s_00001.tar/a/b") == ("packed", "/d/s_00001.tar", "a/b")
    assert locate_video("s.TAR/x.tar/b.avi") == ("packed", "s.TAR", "x.tar/b.avi")
    for other in ("/d/s.tar", "/d/s.tar/", "/d/frames/v", "/d/star/v"):
        assert locate_video(other) == ("folder", other, "")
    (tmp_path / "folder.tar").mkdir()
    assert locate_video(f"{tmp_path}/folder.tar/v").kind == "folder"
    assert locate_video(f"{tmp_path}/folder.tar/s.tar/v") == ("packed", f"{tmp_path}/folder.tar/s.tar", "v")


@pytest.mark.parametrize("left", [0, 10, 600, -1024, -512, -1])
def test_a_torn_shard_is_refused(shard: str, left: int) -> None:
    os.truncate(shard, left if left >= 0 else os.path.getsize(shard) + left)
    with pytest.raises(InputError) as caught:
        list(read_packed(shard, "v1", [0], 3))
    assert (
        str(caught.value) == f"{shard}: no complete shard: cut short, or not written by scripts/pack_frames.py"
    )


def test_any_changed_byte_of_the_index_is_found(shard: str, tmp_path: Path) -> None:
    """No byte of it can change so that frames are read that are not the video's, or that anything else is raised."""
    whole = Path(shard).read_bytes()
    with tarfile.open(shard) as tar:
        index = tar.getmember("frame_index.bin")
    refused = set()
    for at in range(index.offset_data, len(whole) - 1024):
        for value in (whole[at] ^ 1, 0xFF):
            if value != whole[at]:
                path = tmp_path / "changed.tar"
                path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
                packed.open_shard.cache_clear()
                for name, frames in VIDEOS.items():
                    try:
                        read = [data for _, data in read_packed(str(path), name, range(len(frames)), 0)]
                    except InputError as error:
                        refused.add(at)
                        assert str(error).startswith(f"{path}: ") and len(str(error).splitlines()) == 1
                    else:
                        assert read == frames
    fill = {at for at in range(index.offset_data, index.offset_data + index.size) if at not in refused}
    assert len(fill) == index.size - (6 * 16 + 3 * 32 + 88)


@pytest.mark.parametrize("part", ["rows", "entries", "footer", "all"])
def test_zeros_over_the_index(shard: str, part: str) -> None:
    with tarfile.open(shard) as tar:
        start = tar.getmember("frame_index.bin").offset_data
    end = os.path.getsize(shard) - 1024
    places = {"rows": (start, 96), "entries": (start + 96, 96), "footer": (end - 88, 88), "all": (start, end - start)}
    with open(shard, "r+b") as file:
        file.seek(places[part][0])
        file.write(bytes(places[part][1]))
    for name in VIDEOS:
        with pytest.raises(InputError, match=r"s.tar: (the shard's index is damaged: copy it again|no complete shard)"):
            packed.open_shard(shard).find(name)


def test_an_index_moved_by_some_bytes(shard: str) -> None:
    with tarfile.open(shard) as tar:
        start = tar.getmember("frame_index.bin").offset_data + 96
    whole = Path(shard).read_bytes()
    Path(shard).write_bytes(whole[:start] + b"1234" + whole[start : start + 92] + whole[start + 96 :])
    for name in VIDEOS:
        with pytest.raises(InputError, match=r"s.tar: the shard's index is damaged: copy it again, or remove it"):
            packed.open_shard(shard).find(name)


def test_a_disk_that_fails(shard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    opened = packed.open_shard(shard)
    monkeypatch.setattr(os, "pread", fail)
    for reading in (lambda: packed.Shard(shard), lambda: opened.find("v1"), lambda: opened.read(1, 0)):
        with pytest.raises(InputError, match=r"s.tar: cannot read the shard: Input/output error$"):
            reading()


def test_a_shard_that_is_cut_while_it_is_open(shard: str) -> None:
    opened = packed.open_shard(shard)
    os.truncate(shard, 1000)
    with pytest.raises(InputError, match=r"s.tar: no complete shard: cut short"):
        opened.find("v1")


def test_a_shard_is_known_again(tmp_path: Path) -> None:
    write_shard(str(tmp_path / "s.tar"), members(VIDEOS), bytes(range(32)))
    assert packed.Shard(str(tmp_path / "s.tar")).source == bytes(range(32))


@pytest.mark.parametrize("replacement", [b"", bytes(1024)])
def test_bytes_too_few_or_too_many_before_the_index(shard: str, replacement: bytes) -> None:
    whole = Path(shard).read_bytes()
    Path(shard).write_bytes(whole[:512] + replacement + whole[1024:])
    with pytest.raises(InputError, match=r"s.tar: no complete shard: cut short"):
        packed.Shard(shard)


def test_what_a_shard_does_not_hold(shard: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"s.tar: no video 'v9' in the shard, it has 3 others$"):
        list(read_packed(shard, "v9", [0], 3))
    with pytest.raises(
        InputError, match=r"s.tar/v1: frame 4 of the 9 given in the csv is missing, the shard has 3$"
    ):
        list(read_packed(shard, "v1", [0, 3], 9))
    with pytest.raises(InputError, match=r"none.tar: cannot read the shard: No such file or directory$"):
        list(read_packed(str(tmp_path / "none.tar"), "v1", [0], 3))
    (tmp_path / "plain.tar").write_bytes(bytes(10240))
    with pytest.raises(InputError, match="no complete shard"):
        list(read_packed(str(tmp_path / "plain.tar"), "v1", [0], 3))


def test_a_shard_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"

    def breaks():
        yield from members({"v": [b"1"]})
        assert not path.exists()
        raise InputError("no more")

    with pytest.raises(InputError, match="no more"):
        write_shard(str(path), breaks())
    assert list(tmp_path.iterdir()) == []


def count_open(folder: Path) -> int:
    links = (entry for entry in os.scandir("/proc/self/fd") if os.path.islink(entry))
    return sum(os.readlink(entry).startswith(str(folder)) for entry in links)


def test_few_files_stay_open(tmp_path: Path) -> None:
    most = packed.open_shard.cache_parameters()["maxsize"]
    assert 0 < most <= resource.getrlimit(resource.RLIMIT_NOFILE)[0] / 4 or most == 512
    packed.open_shard.cache_clear()
    write_shard(str(tmp_path / "0.tar"), members({"v": [b"1"]}))
    for number in range(most + 40):
        path = tmp_path / f"{number}.tar"
        if number:
            path.hardlink_to(tmp_path / "0.tar")
        assert [data for _, data in read_packed(str(path), "v", [0], 1)] == [b"1"]
    assert count_open(tmp_path) == most
    packed.open_shard.cache_clear()
    assert count_open(tmp_path) == 0


@pytest.mark.parametrize(("limit", "most"), [(64, 16), (1024, 256), (4096, 512), (resource.RLIM_INFINITY, 512)])
def test_the_open_files_follow_the_limit(monkeypatch: pytest.MonkeyPatch, limit: int, most: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit) if which == resource.RLIMIT_NOFILE else None)
    assert packed._max_open_shards() == most


def test_memory_and_work_hardly_grow_with_the_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a shard of 5,000 videos, opening reads the footer and 32 bytes a video; finding a video its rows alone."""
    names = [f"class {number % 7}/v{number}" for number in range(5000)]
    path = str(tmp_path / "s.tar")
    write_shard(path, [(name, [("1.jpg", name.encode())]) for name in names])
    sizes: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: sizes.append(size) or pread(file, size, offset))
    tracemalloc.start()
    opened = packed.Shard(path)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 5000 * 32 + 5000 and sum(sizes) == 5000 * 32 + 88
    for name in names[::97]:
        sizes.clear()
        [[offset, size]] = opened.find(name).tolist()
        assert sizes == [16]
        assert opened.read(size, offset) == name.encode()


def test_forked_processes_share_an_open_shard(tmp_path: Path) -> None:
    """Four children and their parent read at once, in different orders, through one descriptor."""
    path = str(tmp_path / "s.tar")
    frames = [bytes([index]) * 5000 for index in range(200)]
    write_shard(path, members({"v": frames}))
    next(read_packed(path, "v", [0], 200))

    def reads_right(seed: int) -> bool:
        order = np.random.default_rng(seed).permutation(200).tolist() * 3
        return all(
            data == frames[i] for i, (_, data) in zip(order, read_packed(path, "v", order, 200), strict=True)
        )

    children = []
    for seed in range(4):
        child = os.fork()
        if child == 0:
            os._exit(0 if reads_right(seed) else 1)
        children.append(child)
    assert reads_right(9)
    assert all(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 for child in children)
