"""What fuzz_inputs.py breaks: valid csv files, checkpoints, images, videos and shards, their changes, and their readers."""
from __future__ import annotations

import argparse
import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from torch import Tensor, nn

import models.multilevel
from dataset.prepare.checks import decode_video, inspect_video
from dataset.frames import read_frames
from dataset.packed import open_shard, write_shard
from dataset.records import read_packed_records, read_records, usable_for_pretraining
from dataset.sampling import uniform_clips
from dataset.transforms import TestCrops
from dataset.video_file import count_frames, iterate_frames, promised_frames, read_video
from dataset.videos import PretrainVideos, TestVideos
from eval.features.backbone import load_backbone
from dataset.transforms import IMAGENET
from models.cluster import ScoreQueue
from models.levels import LevelFeatures
from models.multilevel import MultiLevelModel
from utils.checkpoint import Progress, pretraining_state, read_checkpoint, restore_pretraining
from utils.distributed import DistContext
from utils.errors import InputError
from utils.pretraining_flags import parse_pretraining_flags
from utils.training_log import EpochMeter

CSV_TOKENS = [b'"', b",", b"\n", b"\r", b"\0", b"-1", b"1e5", b"9" * 30, b"\xe9", b"\xef\xbb\xbf", b"../",
              b"a" * 5000, b" ", b"v0,40,0\n", b",,", b"clip.mp4", b".tar/", "²".encode(), b"40", b"0", b"\t",
              b"'", b"\x1b[31m", b"x.avi,,1\n"]
NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
PACKED = {"v0": 20, "class/v1": 1, "class/v2": 7}  # videos of the shard and their numbers of frames
ALONE = DistContext(0, 1, torch.device("cpu"))


class SmallBackbone(nn.Module):
    """A backbone with few weights, so that changes to a checkpoint hit everything that is around them."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = {"low": 16, "mid": 16, "high": 16}
        self.stem = nn.Sequential(nn.Conv3d(3, 16, 1), nn.BatchNorm3d(16))

    def forward(self, clips: Tensor) -> LevelFeatures:
        """[M, 3, T, H, W] -> LevelFeatures."""
        return LevelFeatures(*[self.stem(clips)] * 3)


@dataclass(frozen=True)
class Kind:
    """Inputs of one sort: valid ones by file name, how one is changed, and what reads the file that results."""

    valid: dict[str, bytes]
    change: Callable[[bytes, np.random.Generator], bytes]
    read: Callable[[Path], object]


def choose(items: Sequence, rng: np.random.Generator) -> Any:
    """One of `items`."""
    return items[int(rng.integers(len(items)))]


def change_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """`data` with one to four random changes of bytes."""
    result = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        # Headers and directories stand at the two ends of a file, and are worth half of all changes.
        head, tail = min(256, len(result)), max(0, len(result) - 512)
        low, high = choose([(0, len(result)), (0, len(result)), (0, head), (tail, len(result))], rng)
        at = int(rng.integers(low, high + 1)) if high > low else 0
        length = int(rng.choice([1, 2, 4, 8, 64, 1024]))
        match rng.integers(7):
            case 0:
                result[at:at + 1] = bytes([int(rng.integers(256))])
            case 1:
                if at < len(result):
                    result[at] ^= 1 << int(rng.integers(8))
            case 2:
                size = int(rng.choice([1, 2, 4, 8]))
                number = int(rng.choice(NUMBERS)) & (1 << 8 * size) - 1
                result[at:at + size] = number.to_bytes(size, str(rng.choice(["big", "little"])))
            case 3:
                del result[at:at + length]
            case 4:
                result[at:at] = result[at:at + length]
            case 5:
                result[at:at] = rng.bytes(length)
            case 6:
                if rng.random() < 0.5:
                    del result[at:]
    return bytes(result)


def change_csv(data: bytes, rng: np.random.Generator) -> bytes:
    """`data` with random changes of bytes, of what a csv is made of, or of both."""
    result = change_bytes(data, rng) if rng.random() < 0.3 else data
    for _ in range(rng.integers(0, 4)):
        at = int(rng.integers(len(result) + 1))
        result = result[:at] + choose(CSV_TOKENS, rng) + result[at + int(rng.integers(3)):]
    return result


def change_checkpoint(data: bytes, rng: np.random.Generator) -> bytes:
    """`data` with random changes of bytes, or the checkpoint in it without one to three entries, as of another program."""
    if rng.random() < 0.7:
        return change_bytes(data, rng)
    checkpoint = torch.load(io.BytesIO(data), weights_only=True)
    for key in rng.permutation(list(checkpoint))[:rng.integers(1, 4)].tolist():
        del checkpoint[key]
    written = io.BytesIO()
    torch.save(checkpoint, written)
    return written.getvalue()


def change_shard(data: bytes, rng: np.random.Generator) -> bytes:
    """`data` with random changes of bytes, three of four times in its index alone."""
    index = data.rindex(b"frame_index.bin") if rng.random() < 0.75 else 0
    return data[:index] + change_bytes(data[index:-1024], rng) + data[-1024:]


def look_at_all(looks: Sequence[Callable[[], object]]) -> None:
    """Take every look, also after one that is refused; then the last refusal is raised."""
    refusal = None
    for look in looks:
        try:
            look()
        except InputError as error:
            assert len(str(error).splitlines()) == 1, f"not one line: {str(error)!r}"
            refusal = error
    if refusal:
        raise refusal


def read_csv(path: Path) -> None:
    """What pretraining and evaluation do with a csv, up to the first videos' samples."""
    def pretraining() -> None:
        records, _ = usable_for_pretraining(read_packed_records(path, False), 2, 16, path)
        videos = PretrainVideos(list(records)[:3], 2, 16, 3.0, 32, 0)
        for index in range(len(videos)):
            videos[0, index]

    def evaluation() -> None:
        records = read_records(path, True)[:3]
        videos = TestVideos(records, lambda num_frames: uniform_clips(num_frames, 16, 1, 2), TestCrops(32, 1))
        look_at_all([lambda index=index: videos[index] for index in range(len(videos))])

    look_at_all([pretraining, evaluation])


def read_pretraining(path: Path) -> None:
    """What resuming and evaluation do with a checkpoint, up to the next update of the weights."""
    look_at_all([lambda: load_backbone(str(path), None, 0), lambda: resume(path)])


def resume(path: Path) -> None:
    """What train.py does with a checkpoint."""
    model, optimizer, queue, flags = small_run()
    checkpoint = read_checkpoint(path)
    progress, sums, _ = restore_pretraining(checkpoint, path, model, optimizer, queue, 2, "0" * 64, flags, ALONE)
    meter = EpochMeter(2, ALONE.device)
    if sums:
        meter.load_state_dict(sums)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    queue.extend(torch.zeros(2, 2, 6))
    meter.sums = torch.zeros(3, dtype=torch.float64) if meter.sums is None else meter.sums + torch.zeros(3)
    pretraining_state(model, optimizer, queue, progress, meter.state_dict(), 2, "0" * 64, flags, IMAGENET, ALONE)


def read_image(path: Path) -> None:
    """A folder of the frame beside a whole one."""
    folder = path.parent / "frames"
    folder.mkdir(exist_ok=True)
    suffix = path.suffix
    for old in folder.iterdir():
        old.unlink()
    (folder / f"image_00001{suffix}").write_bytes(path.read_bytes())
    (folder / f"image_00002{suffix}").write_bytes(cv2.imencode(suffix, picture())[1].tobytes())
    frames = read_frames(str(folder), np.array([0, 1]), 2, (40, 30))
    assert frames.shape == (2, 30, 40, 3) and frames.dtype == np.uint8


def read_video_file(path: Path) -> None:
    """All ways to look at a video file, each on its own."""
    def all_frames() -> None:
        times = [time for time, frame in iterate_frames(str(path)) if frame.dtype == np.uint8]
        assert all(later > earlier for earlier, later in itertools.pairwise(times)), times

    look_at_all([all_frames, lambda: count_frames(str(path)), lambda: promised_frames(str(path)),
                 lambda: list(read_video(str(path), [0, 7, 15], 16)),
                 lambda: read_frames(str(path), np.array([3, 3, 9]), 16, (40, 30))])


def read_shard(path: Path) -> None:
    """What checks and reading do with each video of a shard. Where the quick check finds no fault, its count is right."""
    def look(name: str, number: int) -> None:
        quick = inspect_video(f"{path}/{name}")
        assert quick.findings or quick.num_frames == number, quick
        decode_video(f"{path}/{name}")
        read_frames(f"{path}/{name}", np.arange(number), number, (40, 30))

    open_shard.cache_clear()
    look_at_all([lambda video=video: look(*video) for video in PACKED.items()])


def picture() -> np.ndarray:
    """A frame, uint8 [48, 64, 3]."""
    return cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8), (64, 48))


def small_run() -> tuple[MultiLevelModel, torch.optim.Optimizer, ScoreQueue, argparse.Namespace]:
    """Model, optimizer, queue and flags of a run with a small backbone."""
    models.multilevel.BACKBONES["r3d10"] = SmallBackbone
    flags = parse_pretraining_flags("--net r3d10 --channel 8 --cluster 6 --queue 6 --split 1 --epoch 2".split())
    torch.manual_seed(0)
    model = MultiLevelModel("r3d10", 8, 6)
    return model, torch.optim.Adam(model.parameters(), 1e-3), ScoreQueue(6), flags


def kinds(folder: Path) -> dict[str, Kind]:
    """Every kind by name; `folder` gets what the valid inputs refer to."""
    (folder / "v0").mkdir()
    jpeg = cv2.imencode(".jpg", picture())[1].tobytes()
    for index in range(40):
        (folder / "v0" / f"image_{index + 1:05d}.jpg").write_bytes(jpeg)
    csv = b"frame_dir,number_of_frames,label\nv0,40,0\nv0,40,1\n\nv0,33,0\nv0,12,1\n"
    model, optimizer, queue, flags = small_run()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    queue.extend(torch.zeros(2, 2, 6))
    checkpoint = io.BytesIO()
    sums = {"names": ["total", "a", "b"], "sums": torch.ones(3, dtype=torch.float64), "steps": 3}
    progress = Progress(1, 3, 8, 1, {"v1": "gone"})
    torch.save(pretraining_state(model, optimizer, queue, progress, sums, 2, "0" * 64, flags, IMAGENET, ALONE), checkpoint)
    images = {f"frame{suffix}": cv2.imencode(suffix, picture(), options)[1].tobytes() for suffix, options in
                ((".jpg", [cv2.IMWRITE_JPEG_QUALITY, 90]), (".jpeg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]), (".png", []))}
    videos = {f"clip{suffix}": encode(folder / f"clip{suffix}", codec) for suffix, codec in
              ((".mp4", "libx264"), (".mkv", "libx264"), (".avi", "mpeg4"), (".webm", "libvpx"),
               (".mpg", "mpeg1video"))}
    shard = folder / "frames.tar"
    write_shard(str(shard), [(name, [(f"image_{index + 1:05d}.jpg", jpeg) for index in range(number)])
                             for name, number in PACKED.items()])
    return {"csv": Kind({"videos.csv": csv, "plain.csv": csv.split(b"\n", 1)[1]}, change_csv, read_csv),
            "checkpoint": Kind({"epoch_0001_step_000003.pt": checkpoint.getvalue()}, change_checkpoint, read_pretraining),
            "image": Kind(images, change_bytes, read_image),
            "video": Kind(videos, change_bytes, read_video_file),
            "shard": Kind({"frames.tar": shard.read_bytes()}, change_shard, read_shard)}


def encode(path: Path, codec: str) -> bytes:
    """The bytes of a video of 16 frames, which `path` holds then."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(16):
            frame = av.VideoFrame.from_ndarray(np.roll(picture(), index, axis=1), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()
