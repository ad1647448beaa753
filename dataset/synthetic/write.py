"""Data set of procedural action videos as JPEG frames and csv files: nothing needs to be downloaded.

    python -m dataset.synthetic data/demo
    python -m dataset.synthetic data/pool --shared_looks --train_per_class 40
"""
from __future__ import annotations

import functools
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataset.frames import write_frame
from dataset.prepare.worker_pool import Crash, available_cores, run_jobs
from dataset.records import VideoRecord, write_records
from dataset.synthetic.actions import ARROW_OF_TIME, CLASSES, render_video
from utils.cli import OneLineParser, check_values, parse_size
from utils.errors import InputError, exit_status_of

JPEG_QUALITY = 95
FORMAT = 2  # raised whenever the same settings would give other pixels


def write_dataset(out: Path, settings: Mapping[str, Any], workers: int = 1) -> bool:
    """Returns True after writing the data set, False if `out` holds the same one already.

    `settings`: the command's flags, which with FORMAT determine every byte, whatever the number of `workers` (processes).
    Writes `frames/SPLIT/CLASS/VIDEO/image_00001.jpg ...`, `train.csv` and `test.csv` (frame_dir, number_of_frames, label),
    `pretrain.csv` (the training videos without labels), `arrow_train.csv` and `arrow_test.csv` (those of the classes with an
    arrow of time, without labels), `classes.txt` (label 0 first) and `settings.json`, beside `out`, which is then renamed.
    InputError if a setting is wrong, or `out` exists and is not the same data set.
    """
    check_values(at_least={"--train_per_class": (settings["train_per_class"], 1), "--seed": (settings["seed"], 0),
                           "--test_per_class": (settings["test_per_class"], 1), "--frames": (settings["frames"], 2)})
    parse_size(settings["size"], least_px=32)
    settings_json = json.dumps({**settings, "format": FORMAT}, indent=2) + "\n"
    if os.path.lexists(out):
        found = out / "settings.json"
        if found.is_file() and found.read_text(encoding="utf-8") == settings_json:
            return False
        raise InputError(f"{out}: exists, but is no data set of these settings; remove it or choose another folder")
    videos = {split: [(split, label, number) for label in range(len(CLASSES)) for number in range(count)]
              for split, count in (("train", settings["train_per_class"]), ("test", settings["test_per_class"]))}
    partial = out.absolute().with_name(f".{out.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        write = functools.partial(_write_video, settings, partial)
        for video, result in run_jobs(write, [*videos["train"], *videos["test"]], workers):
            assert not isinstance(result, Crash), (video, result)
        for name, split, labelled, classes in (
                ("pretrain", "train", False, CLASSES), ("train", "train", True, CLASSES), ("test", "test", True, CLASSES),
                ("arrow_train", "train", False, ARROW_OF_TIME), ("arrow_test", "test", False, ARROW_OF_TIME)):
            records = [VideoRecord(str(partial / _frame_dir(*video)), settings["frames"], video[1])
                       for video in videos[split] if CLASSES[video[1]] in classes]
            write_records(partial / f"{name}.csv", records, labelled)
        (partial / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
        (partial / "settings.json").write_text(settings_json, encoding="utf-8")
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _write_video(settings: Mapping[str, Any], root: Path, video: tuple[str, int, int]) -> None:
    """Writes the frames of one video: (split, label, number within its class)."""
    split, label, number = video
    folder = root / _frame_dir(*video)
    folder.mkdir(parents=True)
    seed = (settings["seed"], ("train", "test").index(split), label, number)
    size = parse_size(settings["size"], least_px=32)
    frames = render_video(CLASSES[label], seed, settings["frames"], size, settings["shared_looks"])
    for index, frame in enumerate(frames):
        write_frame(folder, index, frame, JPEG_QUALITY)


def _frame_dir(split: str, label: int, number: int) -> str:
    return f"frames/{split}/{CLASSES[label]}/{CLASSES[label]}_{number:03d}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OneLineParser(prog="python -m dataset.synthetic",
                           description="Writes procedural action videos as JPEG frames and csv files.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to create; reused if it holds the same data set")
    parser.add_argument("--train_per_class", type=int, default=30, help="training videos per class")
    parser.add_argument("--test_per_class", type=int, default=10, help="test videos per class")
    parser.add_argument("--frames", type=int, default=64, help="frames per video")
    parser.add_argument("--size", default="100x75", help="WIDTHxHEIGHT of the frames in px")
    parser.add_argument("--seed", type=int, default=0, help="random seed, at least 0")
    parser.add_argument("--shared_looks", action="store_true",
                        help="draw the videos' backgrounds, textures and colors from a pool of two each")
    parser.add_argument("--workers", type=int, default=available_cores(), help="number of worker processes")
    flags = vars(parser.parse_args(arguments))
    out, workers = flags.pop("out"), flags.pop("workers")

    def work() -> None:
        check_values(at_least={"--workers": (workers, 1)})
        start = time.monotonic()
        done = f"wrote in {time.monotonic() - start:.0f} s" if write_dataset(out, flags, workers) else "reused, as it holds"
        print(f"{out}: {done} {len(CLASSES)} classes, {flags['train_per_class']} training and {flags['test_per_class']} "
              f"test videos each, {flags['frames']} frames of {flags['size']} px")

    return exit_status_of(work, parser.prog)
