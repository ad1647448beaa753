"""Settings of visualization/main_temporal.py: each one's flag, default, meaning and least value."""
from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from eval.features.extract import ClipSettings
from models.levels import LEVELS
from utils.cli import OneLineParser, check_values
from utils.errors import AgreedError, InputError
from utils.launch import visible_gpus

MODES = ("train", "eval", "visualize")
# Clip settings that are left out: those of the trained head; in a new training these.
CLIP_DEFAULTS = {"clip_frames": 16, "stride": 1, "img_dim": 224, "clips": 1, "level": "high"}
# Besides, the weights of a trained head depend on these; the number of epochs may grow.
TRAINING_SETTINGS = ("augment", "batch_pairs", "lr", "lr_decay_epoch", "weight_decay", "seed")


def _flag(flag: str, default: Any, help: str, least: float | None = None, **argument: Any) -> Any:
    """Returns a field whose value `flag` sets; numbers must be at least `least`. `argument`: others of add_argument."""
    if "action" not in argument and "choices" not in argument:
        argument.setdefault("type", type(default) if default is not None else int if least else str)
    return field(default=default, metadata={"flag": flag, "least": least, "argument": {"help": help, **argument}})


@dataclass(frozen=True)
class OrderSettings:
    """What a temporal-order head is trained on, tested on and shown for."""

    weights: str = _flag("--weights", None, "backbone; it stays frozen", required=True, metavar="CHECKPOINT|random")
    net: str | None = _flag("--net", None, "architecture; needed for random weights, else read from the checkpoint")
    seed: int = _flag("--seed", 0, "seed of random weights, order and augmentation", 0)
    head: str | None = _flag("--head", None, "eval, visualize: checkpoint of the head (default: the newest in --out)")
    train_csv: str | None = _flag("--train_csv", None, "train: videos, frame_dir,number_of_frames; labels are not used; "
                                  "eval: the same list where it has moved")
    test_csv: str | None = _flag("--test_csv", None, "held-out videos to test on, or to show")
    clip_frames: int | None = _flag("--seq", None, "frames of a clip (default: as the head was trained, or 16)", 8)
    stride: int | None = _flag("--ds", None, "take every ds-th frame (default: likewise, or 1)", 1)
    img_dim: int | None = _flag("--img_dim", None, "side of a clip in px (default: likewise, or 224)", 32)
    clips: int | None = _flag("--clips", None, "evenly spaced clips of each video (default: likewise, or 1: the middle)", 1)
    level: str | None = _flag("--level", None, "feature map under the head (default: likewise, or high)", choices=LEVELS)
    augment: bool = _flag("--augment", False, "train: a random clip, crop, flip and color of each video in each epoch; "
                          "runs the backbone every time", action="store_true")
    epochs: int = _flag("--epoch", 50, "train: number of epochs in all", 1)
    batch_pairs: int = _flag("--train_batch", 256, "train: clips per step, each with its reversal: twice as many rows", 1)
    lr: float = _flag("--lr", 1e-3, "train: learning rate of Adam")
    lr_decay_epoch: int = _flag("--lr_decay", 30, "train: first epoch (from 0) at a tenth of --lr", 0)
    weight_decay: float = _flag("--wd", 1e-3, "train: weight decay (L2)", 0)
    batch: int = _flag("--batch", 32, "clips in one forward of the backbone", 1)
    num_workers: int = _flag("--workers", 4, "DataLoader workers", 0)
    feature_dir: str | None = _flag("--feature_dir", None, "keep features here for the same weights, csv and clips; frames "
                                    "that change under the same csv are not noticed (default: OUT/features)")
    out: str = _flag("--out", "runs/order", "run directory of the head")
    resume: str | None = _flag("--resume", None, "train: resume from the newest head in --out, or from the one given",
                               nargs="?", const="auto", metavar="CHECKPOINT")
    num_videos: int = _flag("--num_videos", 8, "visualize: the first ones of --test_csv; they replace those in OUT/cam", 1)
    scale: str = _flag("--scale", "clip", "visualize: one color scale for a clip and its reversal; frame: one per frame, "
                       "which hides how strong the evidence is over time", choices=("clip", "frame"))
    fps: int = _flag("--fps", 4, "visualize: frames per second", 1)
    pos: str = _flag("--pos", "natural", "visualize: folder of the natural order's images, in OUT/cam")
    neg: str = _flag("--neg", "reversed", "visualize: folder of the reversed order's images, in OUT/cam")

    def completed(self, values: dict[str, Any]) -> OrderSettings:
        """Returns these settings with each of `values` where a setting is None."""
        return replace(self, **{name: value for name, value in values.items() if getattr(self, name) is None})

    @property
    def clip_settings(self) -> ClipSettings:
        """Which clips of a video are read, by completed settings."""
        return ClipSettings(self.clips, self.clip_frames, self.stride, self.img_dim, crops=1)


FLAGS = {setting.name: setting.metadata["flag"] for setting in fields(OrderSettings)}


def order_parser(description: str | None = None) -> OneLineParser:
    """Returns the parser of `python visualization/main_temporal.py`: --mode, --gpu and every setting's flag."""
    parser = OneLineParser(prog="main_temporal.py", description=description)
    parser.add_argument("--mode", choices=MODES, default="train",
                        help="train the head, then test it; eval: test it; visualize: write its maps")
    parser.add_argument("--gpu", metavar="N|none", help="GPU to use; none: the CPU (default: the first GPU, if any)")
    for setting in fields(OrderSettings):
        parser.add_argument(FLAGS[setting.name], dest=setting.name, default=setting.default, **setting.metadata["argument"])
    return parser


def check_order_settings(settings: OrderSettings, mode: str) -> None:
    """Raises InputError for a value that cannot work, or that `mode` lacks or does not use."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise AgreedError(f"WORLD_SIZE {os.environ['WORLD_SIZE']}: this runs in a single process; start it without torchrun")
    check_values({FLAGS[setting.name]: (getattr(settings, setting.name), setting.metadata["least"])
                  for setting in fields(settings) if setting.metadata["least"] is not None}, positive={"--lr": settings.lr})
    for name in ("train_csv", "test_csv") if mode == "train" else ("test_csv",):
        if getattr(settings, name) is None:
            raise InputError(f"--{name}: needed with --mode {mode}")
    for name, modes in {"head": MODES[1:], "resume": MODES[:1], "augment": MODES[:1], "clips": MODES[:2],
                        "train_csv": MODES[:2]}.items():
        if getattr(settings, name) and mode not in modes:
            raise InputError(f"--{name}: without effect in --mode {mode} (only in {' and '.join(modes)}); leave it out")
    for flag, name in (("--pos", settings.pos), ("--neg", settings.neg)):
        if name in ("", os.curdir, os.pardir) or os.path.basename(name) != name:
            raise InputError(f"{flag} {name}: must be the name of a folder in OUT/cam, without {os.sep}")
    if settings.pos == settings.neg:
        raise InputError(f"--neg {settings.neg}: must be another folder than --pos")


def choose_device(gpu: str | None) -> torch.device:
    """Returns the device of --gpu; InputError unless it is none or a single GPU of this machine."""
    if gpu not in (None, "none") and not gpu.isdecimal():
        raise InputError(f"--gpu {gpu}: must be none or the number of one GPU: this runs in a single process")
    gpus = visible_gpus(gpu)
    return torch.device("cuda", gpus[0]) if gpus else torch.device("cpu")
