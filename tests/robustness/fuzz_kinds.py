"""What fuzz_inputs.py breaks: valid csv files, checkpoints, images, videos and shards, their changes, and their readers."""
from __future__ import annotations

import argparse
import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from torch import Tensor, nn

import models.multilevel
from dataset.prepare.annotations import read_diving48, read_hmdb51, read_kinetics400, read_ucf101
from dataset.prepare.checks import decode_video, inspect_video
from dataset.frames import read_frames
from dataset.packed import open_shard, write_shard
from dataset.records import read_packed_records, read_records, usable_for_pretraining
from dataset.sampling import uniform_clips
from dataset.transforms import TestCrops
from dataset.video_file import count_frames, find_cut, iterate_frames, promised_frames, read_video
from dataset.videos import PretrainVideos, TestVideos
from eval.features.backbone import load_backbone
from eval.metrics import class_names
from dataset.transforms import IMAGENET
from models.cluster import ScoreQueue
from models.levels import LevelFeatures
from models.multilevel import MultiLevelModel
from scripts.convert_checkpoint import convert_checkpoint
from tests.encoded_videos import zero_half
from utils.checkpoint import Progress, pretraining_state, read_checkpoint, restore_pretraining
from utils.distributed import DistContext
from utils.errors import InputError
from utils.pretraining_flags import parse_pretraining_flags
from utils.training_log import EpochMeter

CSV_TOKENS = [b'"', b",", b"\n", b"\r", b"\0", b"-1", b"1e5", b"9" * 30, b"\xe9", b"\xef\xbb\xbf", b"../",
              b"a" * 5000, b" ", b"v0,40,0\n", b",,", b"clip.mp4", b".tar/", "²".encode(), b"40", b"0", b"\t",
              b"'", b"\x1b[31m", b"x.avi,,1\n", b"inf", b"nan"]
NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
PACKED = {"v0": 20, "class/v1": 1, "class/v2": 7}  # videos of the shard and their numbers of frames
LISTS = {"train.csv": b"label,youtube_id,time_start,time_end,split\nyoga,abc,0,10,train\n\"a, b\",-x_,27,37,train\n",
         "val.csv": b"label,youtube_id,time_start,time_end,split\nyoga,abd,0.0,10.0,val\n",
         "classInd.txt": b"1 Archery\n2 Biking\n", "trainlist01.txt": b"Archery/v_Archery_g01_c01.avi 1\r\n\nBiking/b.avi 2",
         "testlist01.txt": b"Biking/v_Biking_g02_c01.avi\n", "run_test_split1.txt": b"a_run.avi 1 \nb_run.avi 2 \nc.avi 0\n",
         "Diving48_V2_train.json": b'[{"vid_name": "a_00001", "label": 1, "start_frame": 0, "end_frame": 90}]',
         "Diving48_V2_test.json": b'[{"vid_name": "a_00002", "label": 0, "start_frame": 0, "end_frame": 90}]',
         "Diving48_vocab.json": b'[["Back", "15som"], ["Inward", "25som"]]'}
OFFICIAL = ((("train.csv", "val.csv"), read_kinetics400),
            (("classInd.txt", "trainlist01.txt", "testlist01.txt"), lambda folder: read_ucf101(folder, [1])),
            (("run_test_split1.txt",), lambda folder: read_hmdb51(folder, [1])),
            (("Diving48_V2_train.json", "Diving48_V2_test.json", "Diving48_vocab.json"), read_diving48))
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
    """Inputs of one sort: valid ones by file name, how one is changed, and what reads the file that results.

    `refused`: further ones, which are refused as they are.
    """

    valid: dict[str, bytes]
    change: Callable[[bytes, np.random.Generator], bytes]
    read: Callable[[Path], object]
    refused: dict[str, bytes] = field(default_factory=dict)


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
    checkpoint = torch.load(io.BytesIO(data), weights_only=False)  # written here, and may hold other objects
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


def read_foreign(path: Path) -> None:
    """What convert_checkpoint.py does with 3D-ResNets weights, here of a small backbone; then what evaluations do."""
    out = path.with_name("converted.pt")
    convert_checkpoint(argparse.Namespace(source="3d-resnets", input=path, output=out, net="r3d18", mean=None, std=None))
    load_backbone(str(out), None, 0)


def read_list(path: Path) -> None:
    """What evaluations do with the names of classes, and make_csv.py with an official list among valid ones."""
    if path.name == "classes.txt":
        class_names(str(path), "train.csv", [0, 1])
        return
    [read] = [read for names, read in OFFICIAL if path.name in names]
    folder = path.parent / "lists"
    folder.mkdir(exist_ok=True)
    for name, data in LISTS.items():
        (folder / name).write_bytes(data)
    (folder / path.name).write_bytes(path.read_bytes())
    lists = read(folder)
    assert all(video.class_name in lists.classes for videos in lists.sets.values() for video in videos)


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
                 lambda: find_cut(str(path)), lambda: list(read_video(str(path), [0, 7, 15], 16)),
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
    state = {f"module.{name}": value for name, value in {
        "conv1.weight": torch.zeros(16, 3, 1, 1, 1), "conv1.bias": torch.zeros(16), "fc.weight": torch.zeros(4, 16),
        **{f"bn1.{name}": value for name, value in nn.BatchNorm3d(16).state_dict().items()}}.items()}
    models.multilevel.BACKBONES["r3d18_time_pool"] = SmallBackbone
    foreign = {name: save({"epoch": 200, "arch": "resnet-18", "state_dict": state, **more}) for name, more in (
        ("plain.pth", {}), ("scalar.pth", {"best": np.float64(0.7)}), ("flags.pth", {"opt": argparse.Namespace(lr=0.1)}))}
    images = {f"frame{suffix}": cv2.imencode(suffix, picture(), options)[1].tobytes() for suffix, options in
                ((".jpg", [cv2.IMWRITE_JPEG_QUALITY, 90]), (".jpeg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]), (".png", []))}
    videos = {f"clip{suffix}": encode(folder / f"clip{suffix}", codec) for suffix, codec in
              ((".mp4", "libx264"), (".mkv", "libx264"), (".avi", "mpeg4"), (".webm", "libvpx"),
               (".mpg", "mpeg1video"))}
    shard = folder / "frames.tar"
    write_shard(str(shard), [(name, [(f"image_{index + 1:05d}.jpg", jpeg) for index in range(number)])
                             for name, number in PACKED.items()])
    (folder / "v0" / "._image_00001.jpg").write_bytes(b"\0\5\x16\7")
    gap = [index * 0.04 + 3600 * (index >= 8) for index in range(16)]
    videos |= {"gap.ts": encode(folder / "gap.ts", "libx264", gap)}
    return {"csv": Kind({"videos.csv": csv, "plain.csv": csv.split(b"\n", 1)[1], "wrong_counts.csv": b"v0,33,0\nv0,34,1\n"},
                        change_csv, read_csv),
            "checkpoint": Kind({"epoch_0001_step_000003.pt": checkpoint.getvalue()}, change_checkpoint, read_pretraining),
            "foreign": Kind({name: foreign[name] for name in ("plain.pth", "scalar.pth")}, change_checkpoint, read_foreign,
                            {"flags.pth": foreign["flags.pth"]}),
            "list": Kind({**LISTS, "classes.txt": b"a\n\nb\n"}, change_csv, read_list),
            "image": Kind(images, change_bytes, read_image),
            "video": Kind(videos, change_bytes, read_video_file,
                          {"half.mp4": zero_half(videos["clip.mp4"]), "cover.mp4": encode_cover(folder / "cover.mp4")}),
            "shard": Kind({"frames.tar": shard.read_bytes()}, change_shard, read_shard)}


def save(checkpoint: object) -> bytes:
    """The bytes of a checkpoint."""
    written = io.BytesIO()
    torch.save(checkpoint, written)
    return written.getvalue()


def encode_cover(path: Path) -> bytes:
    """The bytes of a sound file with a cover image, of 16 frames of sound."""
    with av.open(str(path), "w") as container:
        sound, cover = container.add_stream("aac", rate=8000), container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture(), format="rgb24")))
        container.mux(cover.encode())
        for number in range(16):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate, frame.pts = 8000, 1024 * number
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    return path.read_bytes()


def encode(path: Path, codec: str, times_s: Sequence[float] | None = None) -> bytes:
    """The bytes of a video of 16 frames, which `path` holds then."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(16):
            frame = av.VideoFrame.from_ndarray(np.roll(picture(), index, axis=1), format="rgb24")
            frame.pts, frame.time_base = round(25 * times_s[index]) if times_s else index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()
