"""Runs a network on all test views of each video, and averages features or class probabilities over the views.

Shapes: N videos, each of several views (clips x crops) of T frames; M views in one forward; S = `--img_dim`; C outputs per
view: channels of a level, or classes.
"""
from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dataset.records import VideoRecord
from dataset.sampling import NATURAL, uniform_clips, window_clips
from dataset.transforms import IMAGENET, TestCrops, scale_clips
from dataset.videos import TestVideos, TestViews, build_loader
from models.levels import LEVELS
from models.numerics import at_least_float32
from utils.distributed import DistContext, gather_objects, raise_first
from utils.errors import AgreedError, InputError, one_line

WINDOWS = "windows"
FULL_FLOAT32 = {"enabled": True, "benchmark": False, "deterministic": True, "allow_tf32": False}  # cuDNN's flags
CHECK_EVERY = 64  # videos per process between error checks
ROWS_AT_ONCE = 1024  # rows that each process sends per message

CONCAT = "concat"  # the three levels side by side
LEVEL_CHOICES = (*LEVELS, CONCAT)
Rows = dict[str, np.ndarray]  # level -> values


@dataclass(frozen=True)
class ClipSettings:
    """How test views are cut from a video; deterministic."""

    clips: int | str = 10  # with evenly spaced starts; or "windows": half-overlapping ones over the whole video
    clip_frames: int = 16
    stride: int = 1
    img_dim: int = 112
    crops: int = 1
    clip_order: str = NATURAL  # see `order_frames`
    order_seed: int = 0  # of the order "shuffled", otherwise 0

    def facts(self) -> dict[str, Any]:
        """Returns the settings by name, for result cards and fingerprints, which name no natural order."""
        return {name: value for name, value in asdict(self).items()
                if name not in ("clip_order", "order_seed") or value != getattr(ClipSettings, name)}

    def sampler(self) -> Callable[[int], np.ndarray]:
        """Returns a function from a video's number of frames to frame indices [clips, T]."""
        if self.clips == WINDOWS:
            return partial(window_clips, clip_frames=self.clip_frames, stride=self.stride)
        return partial(uniform_clips, clip_frames=self.clip_frames, stride=self.stride, num_clips=self.clips)

    def videos(self, records: Sequence[VideoRecord], skip_bad: bool = False) -> TestVideos:
        """Returns the data set of the videos' test clips."""
        return TestVideos(records, self.sampler(), TestCrops(self.img_dim, self.crops), skip_bad, self.clip_order,
                          self.order_seed)

    def count_short(self, records: Sequence[VideoRecord]) -> int:
        """Returns how many videos are shorter than one clip; these repeat their last frame."""
        return sum(record.num_frames < (self.clip_frames - 1) * self.stride + 1 for record in records)


def extract_features(backbone: nn.Module, records: Sequence[VideoRecord], settings: ClipSettings, context: DistContext, *,
                     scale: Mapping[str, Sequence[float]] = IMAGENET, batch: int = 32, num_workers: int = 0,
                     skipped: dict[int, str] | None = None, label: str = "features", amp: str = "off") -> Rows:
    """Returns level -> float32 [N, C]: feature maps averaged over time and space, then over the video's views.

    See `mean_over_views` for order, processes and errors. `scale`: the "input" that `load_backbone` returns. Another
    `batch` changes the last bits of float32. `amp` "bf16" runs the backbone in bfloat16 and pools in float32.
    """
    rows = mean_over_views(backbone, partial(pool_levels, backbone, scale=scale, amp=amp), "features", records, settings,
                           context, batch=batch, num_workers=num_workers, skipped=skipped, label=label, dtype=np.float32)
    if rows or not context.is_main:
        return rows
    return {level: np.full((len(records), backbone.channels[level]), np.nan, np.float32) for level in LEVELS}


def pool_levels(backbone: nn.Module, views: Tensor, scale: Mapping[str, Sequence[float]] = IMAGENET,
                amp: str = "off") -> Rows:
    """Returns level -> float64 [M, C], the mean over time and space of each map, from uint8 views [M, T, S, S, 3]."""
    with torch.autocast(views.device.type, torch.bfloat16, enabled=amp == "bf16"):
        maps = backbone(scale_clips(views, **scale, channels_last=amp == "bf16"))  # the layout decides the last bits
    return {level: at_least_float32(x).mean(dim=(2, 3, 4)).double().cpu().numpy() for level, x in zip(LEVELS, maps)}


def level_vectors(features: Rows, level: str, means: Rows | None = None) -> np.ndarray:
    """Returns vectors float32 [N, C] of `level`; "concat" is low, mid and high side by side.

    `means` (level -> [C]) are subtracted first; every level is L2-normalized on its own. A zero vector stays zero.
    """
    if level == CONCAT:
        return np.concatenate([level_vectors(features, name, means) for name in LEVELS], axis=1)
    rows = features[level] - (means[level] if means else np.float32(0))
    norms = np.sqrt(np.einsum("nc,nc->n", rows, rows, dtype=np.float64))[:, None]
    rows /= np.where(norms > 0, norms, 1).astype(np.float32)
    return rows


def predict(model: nn.Module, records: Sequence[VideoRecord], settings: ClipSettings, context: DistContext, *,
            scale: Mapping[str, Sequence[float]] = IMAGENET, batch: int, num_workers: int,
            skipped: dict[int, str] | None = None, label: str = "test") -> Rows:
    """Returns level -> probabilities float64 [N, K]: the softmax of each view, averaged over the video's clips and crops.

    See `mean_over_views`; no autocast. AgreedError if no video can be read.
    """
    def probabilities(views: Tensor) -> Rows:
        logits = model(scale_clips(views, **scale))
        return {level: x.float().softmax(dim=1).double().cpu().numpy() for level, x in logits.items()}

    rows = mean_over_views(model, probabilities, "class probabilities", records, settings, context, batch=batch,
                           num_workers=num_workers, skipped=skipped, label=label)
    if skipped and len(skipped) == len(records):
        raise AgreedError(f"none of the {len(records)} {label} videos can be read; the first: {skipped[0]}")
    return rows


def mean_over_views(network: nn.Module, forward: Callable[[Tensor], Rows], what: str, records: Sequence[VideoRecord],
                    settings: ClipSettings, context: DistContext, *, batch: int, num_workers: int,
                    skipped: dict[int, str] | None, label: str, dtype: type[np.floating] = np.float64,
                    reduce: Callable[[np.ndarray], np.ndarray] = partial(np.mean, axis=0)) -> Rows:
    """Returns level -> `dtype` [N, C]: each video's mean over its views of the outputs of `forward`.

    `forward`: uint8 views [M, T, S, S, 3] on the device -> level -> float64 [M, C]. It runs `network` in eval mode and full
    float32 (no TF32), always on `batch` views, as other sizes are rounded differently; training modes are restored. Row i
    belongs to records[i] and is bit-identical for any number of workers and of processes, given equal threads per process.
    Each process reads every world_size-th video; all must call this. The main one gets all rows, the others no level.

    An unreadable video is an InputError in all processes; where `skipped` is given, its row is NaN, the dictionary gets
    index -> reason in every process, and no level is returned if none can be read. Non-finite rows are an InputError, in
    which `what` names them. `reduce`: a video's views float64 [views, C] -> its row.
    """
    in_training = [module for module in network.modules() if module.training]
    network.to(context.device).eval()
    bad: dict[int, str] = {}
    own = range(context.rank, len(records), context.world_size)
    loader = build_loader(settings.videos(records, skipped is not None), [[i] for i in own], num_workers, context.device)

    def readable() -> Iterator[tuple[int, TestViews]]:
        items = iter(tqdm(loader, desc=label, unit="video", leave=False, disable=None if context.is_main else True))
        # Every process runs the same number of rounds, and errors are shared after each.
        for start in range(0, -(-len(records) // context.world_size), CHECK_EVERY):
            problem = None
            try:
                for _ in own[start:start + CHECK_EVERY]:
                    frames, clips, index, reason = next(items)
                    if reason[0]:
                        bad[int(index)] = reason[0]
                    else:
                        yield int(index), TestViews(frames[0], clips[0], TestCrops(settings.img_dim, settings.crops))
            except InputError as error:
                problem = one_line(error)
            raise_first(problem)

    def view_rows() -> Iterator[tuple[int, Rows]]:
        for owners, views in batch_views(readable(), batch):
            padding = views.new_zeros(batch - len(views), *views.shape[1:])
            rows = forward((torch.cat([views, padding]) if len(padding) else views).to(context.device, non_blocking=True))
            yield from ((index, {level: values[i] for level, values in rows.items()}) for i, index in enumerate(owners))

    means, problem = {}, None  # index -> level -> [C]
    with torch.inference_mode(), torch.backends.cudnn.flags(**FULL_FLOAT32):
        for index, group in itertools.groupby(view_rows(), key=lambda view: view[0]):
            views = [rows for _, rows in group]
            assert index not in means, f"the views of video {index} are not side by side"
            means[index] = {level: reduce(np.stack([rows[level] for rows in views])).astype(dtype) for level in views[0]}
            bad_levels = [level for level, row in means[index].items() if not np.isfinite(row).all()]
            if bad_levels and problem is None:
                problem = (f"{records[index].path}: its {what} are not finite at level {bad_levels[0]}: are the weights "
                           "those of a run that diverged?")
    for module in in_training:
        module.training = True

    raise_first(problem)
    if skipped is not None:
        for bad_of_rank in gather_objects(bad):
            skipped.update(bad_of_rank)
    return gather_by_index(means, len(records), skipped or {}, context)


def gather_by_index(rows: dict[int, Rows], num_rows: int, skipped: Container[int], context: DistContext) -> Rows:
    """Returns level -> [N, C] in the main process, no level in the others, from every process's index -> level -> [C].

    NaN for the indices of `skipped`; every other row must come from exactly one process. All must call this; `rows` is
    emptied, so that no row is held twice.
    """
    table: Rows = {}
    times_filled = np.zeros(num_rows, np.int64)
    for _ in range(max(gather_objects(-(-len(rows) // ROWS_AT_ONCE)))):
        for part in gather_objects({index: rows.pop(index) for index in list(itertools.islice(rows, ROWS_AT_ONCE))}):
            times_filled[list(part)] += 1
            for index, row in part.items() if context.is_main else ():
                for level, values in row.items():
                    if level not in table:
                        table[level] = np.full((num_rows, len(values)), np.nan, values.dtype)
                    table[level][index] = values
    expected = [int(index not in skipped) for index in range(num_rows)]
    assert times_filled.tolist() == expected, "a row was not filled exactly once"
    return table


def keep_readable(records: Sequence[VideoRecord], rows: Rows, skipped: Container[int]) -> tuple[list[VideoRecord], Rows]:
    """Returns the videos and rows of all but the indices in `skipped`."""
    kept = [index for index in range(len(records)) if index not in skipped]
    return [records[index] for index in kept], {
        level: values if len(kept) == len(records) else values[kept] for level, values in rows.items()}


def batch_views(videos: Iterable[tuple[int, Tensor | TestViews]], batch: int) -> Iterator[tuple[list[int], Tensor]]:
    """Yields (index of each view's video, views [M, ...]): the views of one video after the other, `batch` at a time."""
    each = ((index, views[number:number + 1]) for index, views in videos for number in range(len(views)))
    while views := list(itertools.islice(each, batch)):
        yield [index for index, _ in views], torch.cat([view for _, view in views])
