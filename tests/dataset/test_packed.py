from __future__ import annotations

import os
import resource
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dataset import packed
from dataset.packed import read_packed, split_reference, write_shard
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
    assert split_reference("/d/s_00001.tar/a/b") == ("/d/s_00001.tar", "a/b")
    assert split_reference("s.tar/x.tar/b") == ("s.tar", "x.tar/b")
    for other in ("/d/s.tar", "/d/s.tar/", "/d/frames/v", "/d/star/v"):
        assert split_reference(other) is None
    (tmp_path / "folder.tar").mkdir()
    assert split_reference(f"{tmp_path}/folder.tar/v") is None


@pytest.mark.parametrize("left", [0, 10, 600, -1024, -512, -1])
def test_a_torn_shard_is_refused(shard: str, left: int) -> None:
    os.truncate(shard, left if left >= 0 else os.path.getsize(shard) + left)
    with pytest.raises(InputError) as caught:
        list(read_packed(shard, "v1", [0], 3))
    assert (
        str(caught.value) == f"{shard}: no whole shard: cut short, or not written by scripts/pack_frames.py"
    )


def test_what_a_shard_does_not_hold(shard: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"s.tar: no video 'v9' in the shard, it has 3 others$"):
        list(read_packed(shard, "v9", [0], 3))
    with pytest.raises(
        InputError, match=r"s.tar/v1: frame 4 of the 9 that the csv gives is asked for, the shard has 3$"
    ):
        list(read_packed(shard, "v1", [0, 3], 9))
    with pytest.raises(InputError, match=r"none.tar: cannot read the shard: No such file or directory$"):
        list(read_packed(str(tmp_path / "none.tar"), "v1", [0], 3))
    (tmp_path / "plain.tar").write_bytes(bytes(10240))
    with pytest.raises(InputError, match="no whole shard"):
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


def test_few_files_stay_open(tmp_path: Path) -> None:
    assert packed._MAX_OPEN_SHARDS < resource.getrlimit(resource.RLIMIT_NOFILE)[0] / 4
    packed.open_shard.cache_clear()

    def count_open() -> int:
        links = (entry for entry in os.scandir("/proc/self/fd") if os.path.islink(entry))
        return sum(os.readlink(entry).startswith(str(tmp_path)) for entry in links)

    for number in range(packed._MAX_OPEN_SHARDS + 40):
        path = str(tmp_path / f"{number}.tar")
        write_shard(path, members({"v": [b"%d" % number]}))
        assert [data for _, data in read_packed(path, "v", [0], 1)] == [b"%d" % number]
    assert count_open() == packed._MAX_OPEN_SHARDS
    packed.open_shard.cache_clear()
    assert count_open() == 0


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
