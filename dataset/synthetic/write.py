"""Data set of procedural action videos as JPEG frames and csv files: nothing needs to be downloaded.

    python -m dataset.synthetic data/demo
    python -m dataset.synthetic data/hard --unique_looks --train_per_class 40

`dataset/synthetic/actions.py` defines the classes and renders their videos; this file writes them.
"""
from __future__ import annotations

import csv
import functools
import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2

from dataset.prepare.worker_pool import Crash, available_cores, run_jobs
from dataset.synthetic.actions import CLASSES, render_video
from utils.cli import OneLineParser, check_values
from utils.errors import InputError, exit_status_of

JPEG_QUALITY = 90
FORMAT = 1  # raised whenever the same settings would give other pixels


@dataclass(frozen=True)
class SyntheticSettings:
    """Everything that determines the bytes of a data set; stored in its `settings.json`."""

    train_per_class: int = 20
    test_per_class: int = 8
    frames: int = 64
    size: str = "200x150"
    seed: int = 0
    unique_looks: bool = False
    format: int = FORMAT

    def __post_init__(self) -> None:
        check_values(at_least={"--train_per_class": (self.train_per_class, 1), "--test_per_class": (self.test_per_class, 1),
                               "--frames": (self.frames, 2), "--seed": (self.seed, 0)})
        if not re.fullmatch("[0-9]+x[0-9]+", self.size) or min(map(int, self.size.split("x"))) < 32:
            raise InputError(f"--size {self.size}: expected WIDTHxHEIGHT in px, each at least 32, such as 200x150")


def write_dataset(out: Path, settings: SyntheticSettings, workers: int = 1) -> bool:
    """Returns True after writing the data set, False if `out` holds the same one already.

    Writes `frames/SPLIT/CLASS/VIDEO/image_00001.jpg ...`, `train.csv` and `test.csv` (frame_dir, num_frames, label),
    `pretrain.csv` (the training videos without labels), `classes.txt` (label 0 first) and `settings.json`. Paths in a csv
    are relative to its folder. Everything is written beside `out`, then renamed. The bytes do not depend on `workers`
    (processes). InputError if `out` exists and is not the same data set.
    """
    settings_json = json.dumps(asdict(settings), indent=2) + "\n"
    if out.exists() or out.is_symlink():
        found = out / "settings.json"
        if found.is_file() and found.read_text(encoding="utf-8") == settings_json:
            return False
        raise InputError(f"{out}: exists, but is no data set of these settings; remove it or choose another folder")
    partial = out.absolute().with_name(f".{out.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        counts = {"train": settings.train_per_class, "test": settings.test_per_class}
        videos = [(split, label, number) for split, count in counts.items() for label in range(len(CLASSES))
                  for number in range(count)]
        for video, result in run_jobs(functools.partial(_write_video, settings, partial), videos, workers):
            assert not isinstance(result, Crash), (video, result)
        for name, split, columns in (("pretrain", "train", 2), ("train", "train", 3), ("test", "test", 3)):
            rows = [(_frame_dir(*video), settings.frames, video[1]) for video in videos if video[0] == split]
            with open(partial / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
                rows.insert(0, ("frame_dir", "num_frames", "label"))
                csv.writer(file, lineterminator="\n").writerows(row[:columns] for row in rows)
        (partial / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
        (partial / "settings.json").write_text(settings_json, encoding="utf-8")
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _write_video(settings: SyntheticSettings, root: Path, video: tuple[str, int, int]) -> None:
    """Writes the frames of one video: (split, label, number within its class)."""
    split, label, number = video
    width, height = map(int, settings.size.split("x"))
    folder = root / _frame_dir(*video)
    folder.mkdir(parents=True)
    seed = (settings.seed, ("train", "test").index(split), label, number)
    frames = render_video(CLASSES[label], seed, settings.frames, (width, height), settings.unique_looks)
    for index, frame in enumerate(frames, start=1):
        encoded, data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        assert encoded, folder
        (folder / f"image_{index:05d}.jpg").write_bytes(data.tobytes())


def _frame_dir(split: str, label: int, number: int) -> str:
    return f"frames/{split}/{CLASSES[label]}/{CLASSES[label]}_{number:03d}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 when the data set is there, 2 after a one-line error."""
    parser = OneLineParser(prog="python -m dataset.synthetic",
                           description="Writes procedural action videos as JPEG frames and csv files.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to create; reused if it holds the same data set")
    parser.add_argument("--train_per_class", type=int, default=20, help="training videos per class")
    parser.add_argument("--test_per_class", type=int, default=8, help="test videos per class")
    parser.add_argument("--frames", type=int, default=64, help="frames per video")
    parser.add_argument("--size", default="200x150", help="WIDTHxHEIGHT of the frames in px")
    parser.add_argument("--seed", type=int, default=0, help="random seed, at least 0")
    parser.add_argument("--unique_looks", action="store_true",
                        help="give every video its own background, texture and colors: the hard variant")
    parser.add_argument("--workers", type=int, default=available_cores(), help="number of worker processes")
    flags = vars(parser.parse_args(arguments))
    out, workers = flags.pop("out"), flags.pop("workers")

    def work() -> None:
        check_values(at_least={"--workers": (workers, 1)})
        settings = SyntheticSettings(**flags)
        start = time.monotonic()
        written = write_dataset(out, settings, workers)
        done = f"wrote in {time.monotonic() - start:.0f} s" if written else "reused, as it holds"
        print(f"{out}: {done} {len(CLASSES)} classes, {settings.train_per_class} training and {settings.test_per_class} "
              f"test videos each, {settings.frames} frames of {settings.size} px")

    return exit_status_of(work, parser.prog)
