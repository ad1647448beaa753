"""A data set of procedural action videos as real JPEG frames and csv files: nothing needs to be downloaded.

    python -m dataset.synthetic data/demo
    python -m dataset.synthetic data/hard --unique_looks --train_per_class 40

`dataset/synthetic/actions.py` says what the classes do and how a video is drawn; this file writes them.
"""
from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import cv2

from dataset.synthetic.actions import CLASSES, render_video
from utils.errors import InputError, report

JPEG_QUALITY = 90
FORMAT = 1  # raised whenever the same settings would give other pixels


@dataclass(frozen=True)
class Settings:
    """All that decides the bytes of a data set, kept in its `settings.json`."""

    train_per_class: int = 20
    test_per_class: int = 8
    frames: int = 64
    size: str = "200x150"
    seed: int = 0
    unique_looks: bool = False
    format: int = FORMAT

    def __post_init__(self) -> None:
        for name, least in (("train_per_class", 1), ("test_per_class", 1), ("frames", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} {getattr(self, name)}: must be at least {least}")
        sides = self.size.split("x")
        if len(sides) != 2 or not all(side.isdecimal() and int(side) >= 32 for side in sides):
            raise InputError(f"--size {self.size}: WIDTHxHEIGHT in px, each at least 32, like 200x150")


def _frame_dir(split: str, label: int, number: int) -> str:
    return f"frames/{split}/{CLASSES[label]}/{CLASSES[label]}_{number:03d}"


def _write_video(settings: Settings, root: Path, split: str, label: int, number: int) -> None:
    folder = root / _frame_dir(split, label, number)
    folder.mkdir(parents=True)
    width, height = map(int, settings.size.split("x"))
    seed = (settings.seed, ("train", "test").index(split), label, number)
    video = render_video(CLASSES[label], seed, settings.frames, (width, height), settings.unique_looks)
    for index, image in enumerate(video, start=1):
        encoded, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        assert encoded, folder
        (folder / f"image_{index:05d}.jpg").write_bytes(data.tobytes())


def write_dataset(out: Path, settings: Settings, workers: int = 1) -> bool:
    """True if the data set was written, False if `out` holds the same one already.

    Writes `frames/SPLIT/CLASS/VIDEO/image_00001.jpg ...`, `train.csv` and `test.csv` (frame_dir, num_frames,
    label), `pretrain.csv` (the training videos without label), `classes.txt` (label 0 first) and
    `settings.json`. Paths in a csv are relative to its folder. All of it appears at once: it is written
    beside `out`, then renamed. The bytes do not depend on `workers` (processes). InputError if `out` exists
    and is not the same data set.
    """
    mark = json.dumps(asdict(settings), indent=2) + "\n"
    if out.exists() or out.is_symlink():
        found = out / "settings.json"
        if found.is_file() and found.read_text(encoding="utf-8") == mark:
            return False
        raise InputError(f"{out}: exists, but is no data set of these settings; remove it or name another")
    partial = out.absolute().with_name(f".{out.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    counts = {"train": settings.train_per_class, "test": settings.test_per_class}
    videos = [(split, label, number) for split, count in counts.items() for label in range(len(CLASSES))
              for number in range(count)]
    try:
        # spawn: forking a process in which OpenCV runs threads can hang
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, cv2.setNumThreads, (1,)) as pool:
            for written in [pool.submit(_write_video, settings, partial, *video) for video in videos]:
                written.result()
        for name, split, columns in (("pretrain", "train", 2), ("train", "train", 3), ("test", "test", 3)):
            rows = [(_frame_dir(*video), settings.frames, video[1]) for video in videos if video[0] == split]
            with open(partial / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
                rows.insert(0, ("frame_dir", "num_frames", "label"))
                csv.writer(file, lineterminator="\n").writerows(row[:columns] for row in rows)
        (partial / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
        (partial / "settings.json").write_text(mark, encoding="utf-8")
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the data set is there, 2 after a user's mistake, told in one line."""
    parser = _Parser(prog="python -m dataset.synthetic",
                     formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                     description="Write procedural action videos as JPEG frames and csv files.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make; re-used if it is there")
    parser.add_argument("--train_per_class", type=int, default=20, help="training videos of each class")
    parser.add_argument("--test_per_class", type=int, default=8, help="test videos of each class")
    parser.add_argument("--frames", type=int, default=64, help="frames of each video")
    parser.add_argument("--size", default="200x150", help="WIDTHxHEIGHT of the frames, px")
    parser.add_argument("--seed", type=int, default=0, help="random seed, at least 0")
    parser.add_argument("--unique_looks", action="store_true",
                        help="every video has its own background, texture and coloring: the hard variant")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="writing processes")
    try:
        flags = vars(parser.parse_args(arguments))
        out, workers = flags.pop("out"), flags.pop("workers")
        if workers < 1:
            raise InputError(f"--workers {workers}: must be at least 1")
        settings = Settings(**flags)
        start = time.monotonic()
        written = write_dataset(out, settings, workers)
    except InputError as error:
        return report(error, parser.prog)
    what = (f"{len(CLASSES)} classes, {settings.train_per_class} training and {settings.test_per_class} test "
            f"videos each, {settings.frames} frames of {settings.size} px")
    done = f"wrote in {time.monotonic() - start:.0f} s" if written else "re-used, as it holds"
    print(f"{out}: {done} {what}")
    return 0

