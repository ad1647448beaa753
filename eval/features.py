"""Clip-averaged features of a pretrained backbone, by dataset index.

Shapes: N videos, each of several views (clips x crops) of T frames; M views in one forward; S = `--img_dim`;
C channels of a level.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from dataset.records import VideoRecord
from dataset.sampling import uniform_clips, window_clips
from dataset.transforms import TestCrops, normalize
from dataset.videos import LabelledTestVideos, build_loader
from models.levels import LEVELS
from models.multilevel import build_backbone
from models.weights import check_keys, unwrap
from utils.checkpoint import FORMAT, canonical, read_checkpoint
from utils.distributed import Process, gather_objects
from utils.errors import AgreedError, InputError
from utils.runlog import file_sha256

RANDOM = "random"
WINDOWS = "windows"


@dataclass(frozen=True)
class ClipSettings:
    """Which pixels of a video are looked at. Nothing in it is drawn at random.

    `clips`: number of clips with evenly spaced starts, or "windows", each half a window after the one before.
    """

    clips: int | str = 10
    clip_frames: int = 16
    stride: int = 1
    img_dim: int = 112
    crops: int = 1

    def sampler(self) -> Callable[[int], np.ndarray]:
        """A function from a video's number of frames to frame indices [clips, T]."""
        if self.clips == WINDOWS:
            return partial(window_clips, clip_frames=self.clip_frames, stride=self.stride)
        return partial(uniform_clips, clip_frames=self.clip_frames, stride=self.stride, num_clips=self.clips)

    def count_short(self, records: Sequence[VideoRecord]) -> int:
        """How many videos are shorter than one clip; these repeat their last frame."""
        return sum(record.num_frames < (self.clip_frames - 1) * self.stride + 1 for record in records)


def load_backbone(weights: str, net: str | None, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """The backbone on the CPU, and what it is: "weights", "net", "checkpoint_sha256", "pretrained_epochs".

    `weights` is a checkpoint of this project (a whole model, of which the backbone is taken, or a backbone),
    or "random": then `net` is needed, and the weights are those that pretraining with this `seed` starts
    from. A checkpoint names its architecture; another `net`, and any entry missing, unknown or of another
    shape, is an InputError.
    """
    if weights == RANDOM:
        if net is None:
            raise InputError("--weights random: needs --net, the architecture to draw weights for")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = new_backbone(net, "--net")
        return backbone, {"weights": RANDOM, "net": canonical(net), "checkpoint_sha256": None,
                          "pretrained_epochs": None}

    checkpoint = read_checkpoint(weights)
    kind, stored_net = checkpoint.get("kind"), checkpoint.get("net")
    if (checkpoint.get("format") != FORMAT or kind not in ("model", "backbone", "classifier")
            or not isinstance(stored_net, str)):
        raise InputError(f"{weights}: no checkpoint of this project (format {checkpoint.get('format')!r}, "
                         f"kind {kind!r}, net {stored_net!r}); other people's must be converted first")
    if net is not None and canonical(net) != canonical(stored_net):
        raise InputError(f"--net {net}: {weights} holds a {stored_net}; leave --net out or name another")
    backbone = new_backbone(stored_net, str(weights))
    try:
        state = unwrap(checkpoint.get("model"))
        if kind != "backbone":
            state = {key.removeprefix("backbone."): value for key, value in state.items()
                     if key.startswith("backbone.")}
        check_keys(state, backbone)
    except ValueError as error:
        raise InputError(f"{weights}: does not fill the backbone {stored_net}: {error}") from error
    backbone.load_state_dict(state)
    return backbone, {"weights": str(weights), "net": canonical(stored_net),
                      "checkpoint_sha256": file_sha256(weights),
                      "pretrained_epochs": checkpoint.get("epochs_done")}


def new_backbone(net: str, where: str) -> nn.Module:
    """`build_backbone`, with an InputError that says where the unknown name stands."""
    try:
        return build_backbone(net)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


class ViewsOrReason(Dataset):
    """A video's test views by index; with `skip_bad`, for one that cannot be read, the reason instead."""

    def __init__(self, videos: LabelledTestVideos, skip_bad: bool) -> None:
        self.videos = videos
        self.skip_bad = skip_bad

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[int, Tensor, str]:
        """Returns (index, views uint8 [views, T, S, S, 3], ""), or (index, no views, reason)."""
        try:
            return index, self.videos[index][0], ""
        except InputError as error:
            if not self.skip_bad:
                raise
            return index, torch.empty(0, dtype=torch.uint8), str(error)


def extract_features(
    backbone: nn.Module, records: Sequence[VideoRecord], settings: ClipSettings, process: Process, *,
    batch: int = 32, num_workers: int = 0, skipped: dict[int, str] | None = None, label: str = "features",
) -> dict[str, np.ndarray]:
    """Level -> float32 [N, C]: each video's mean over its views of the map's mean over time and space.

    Row i belongs to records[i]. `batch` views go through the backbone at a time, in eval mode and in full
    float32 (no TF32); the mean over a video's views is taken in float64 and in their order. Workers and
    processes change not a bit of a row, as every forward has the same size; another `batch` changes the last
    bits of float32. Of several processes each reads every world_size-th video; all must call this, and all
    get all rows. That every row is filled exactly once is checked.

    A video that cannot be read is an InputError with its path; where `skipped` is given, its row is NaN and
    the dictionary gets index -> reason. Features that are not finite are an InputError too. The backbone's
    statistics, and what is in training mode, stay as they are.
    """
    in_training = [module for module in backbone.modules() if module.training]
    backbone.to(process.device).eval()
    videos = LabelledTestVideos(records, settings.sampler(), TestCrops(settings.img_dim, settings.crops))
    own = range(process.rank, len(records), process.world_size)
    loader = build_loader(ViewsOrReason(videos, skipped is not None), [[i] for i in own], num_workers,
                          process.device)
    bad: dict[int, str] = {}
    filled: list[tuple[int, dict[str, np.ndarray]]] = []

    def readable() -> Iterator[tuple[int, Tensor]]:
        for index, views, reason in tqdm(loader, desc=label, unit="video", leave=False,
                                         disable=None if process.is_main else True):
            if reason[0]:
                bad[int(index)] = reason[0]
            else:
                yield int(index), views[0]

    with torch.inference_mode(), torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        pooled = ((owners, pool_levels(backbone, fill_up(views, batch).to(process.device, non_blocking=True)))
                  for owners, views in batch_views(readable(), batch))
        for index, rows in group_by_video(pooled):
            filled.append((index, {level: rows[level].mean(axis=0).astype(np.float32) for level in LEVELS}))
    for module in in_training:
        module.training = True

    # Every process's rows, each where its video stands.
    features = {level: np.full((len(records), backbone.channels[level]), np.nan, np.float32)
                for level in LEVELS}
    times_filled = np.zeros(len(records), np.int64)
    for part, part_bad in gather_objects((filled, bad)):
        for index, row in part:
            times_filled[index] += 1
            for level in LEVELS:
                if not np.isfinite(row[level]).all():
                    raise AgreedError(f"{records[index].path}: its features are not finite at level {level}: "
                                      "are the weights those of a run that diverged?")
                features[level][index] = row[level]
        if skipped is not None:
            skipped.update(part_bad)
    expected = [0 if skipped and i in skipped else 1 for i in range(len(records))]
    assert times_filled.tolist() == expected, "rows filled other than once"
    return features


def pool_levels(backbone: nn.Module, views: Tensor) -> dict[str, np.ndarray]:
    """Level -> float64 [M, C] from uint8 views [M, T, S, S, 3]: the mean over time and space of each map."""
    maps = backbone(normalize(views).contiguous())
    return {level: x.mean(dim=(2, 3, 4)).double().cpu().numpy() for level, x in zip(LEVELS, maps)}


def fill_up(views: Tensor, batch: int) -> Tensor:
    """`views` and black ones after them, `batch` in all: batches of other sizes are rounded differently."""
    if len(views) == batch:
        return views
    return torch.cat([views, views.new_zeros(batch - len(views), *views.shape[1:])])


def batch_views(
    videos: Iterable[tuple[int, Tensor]], batch: int
) -> Iterator[tuple[list[tuple[int, bool]], Tensor]]:
    """Views of one video after the other, cut into runs of `batch`; a video may lie in several runs.

    Yields (owners, views [M, ...]) with an owner (index of the video, whether this is its last view) for each
    view.
    """
    owners: list[tuple[int, bool]] = []
    parts: list[Tensor] = []
    for index, views in videos:
        start = 0
        while start < len(views):
            part = views[start:start + batch - len(owners)]
            start += len(part)
            owners += [(index, start == len(views) and i == len(part) - 1) for i in range(len(part))]
            parts.append(part)
            if len(owners) == batch:
                yield owners, torch.cat(parts)
                owners, parts = [], []
    if owners:
        yield owners, torch.cat(parts)


def group_by_video(
    batches: Iterable[tuple[list[tuple[int, bool]], dict[str, np.ndarray]]],
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """(index, level -> [views, C]) of each video in turn, from batches of pooled views and their owners."""
    rows: list[dict[str, np.ndarray]] = []
    for owners, pooled in batches:
        for position, (index, is_last) in enumerate(owners):
            rows.append({level: values[position] for level, values in pooled.items()})
            if is_last:
                yield index, {level: np.stack([row[level] for row in rows]) for level in pooled}
                rows = []
    assert not rows, f"{len(rows)} view(s) of an unfinished video"
