"""All test views of many videos through a network, and each video's mean over its own.

Shapes: N videos, each of several views (clips x crops) of T frames; M views in one forward; S = `--img_dim`;
C values that the network gives of a view.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dataset.records import VideoRecord
from dataset.sampling import uniform_clips, window_clips
from dataset.transforms import TestCrops
from dataset.videos import TestVideos, TestViews, build_loader
from eval.features.rows import Rows, RowTable
from utils.distributed import DistContext, gather_objects, raise_first
from utils.errors import InputError, one_line

WINDOWS = "windows"
FULL_FLOAT32 = {"enabled": True, "benchmark": False, "deterministic": True, "allow_tf32": False}
AGREE_EVERY = 64  # videos that a process reads before it asks the others whether all goes well


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

    def videos(self, records: Sequence[VideoRecord], skip_bad: bool = False) -> TestVideos:
        """Their test clips by index; `skip_bad`: report unreadable videos instead of raising InputError."""
        return TestVideos(records, self.sampler(), TestCrops(self.img_dim, self.crops), skip_bad)

    def count_short(self, records: Sequence[VideoRecord]) -> int:
        """How many videos are shorter than one clip; these repeat their last frame."""
        return sum(record.num_frames < (self.clip_frames - 1) * self.stride + 1 for record in records)


def mean_over_views(
    network: nn.Module, forward: Callable[[Tensor], Rows], what: str, records: Sequence[VideoRecord],
    settings: ClipSettings, context: DistContext, *, batch: int, num_workers: int, skipped: dict[int, str] | None,
    label: str, dtype: type[np.floating] = np.float64,
    reduce: Callable[[np.ndarray], np.ndarray] = partial(np.mean, axis=0),
) -> Rows:
    """Level -> `dtype` [N, C]: each video's mean over its views of what `forward` gives of them.

    `forward`: views uint8 [M, T, S, S, 3] on the process's device -> level -> float64 [M, C]; it runs `network`, in
    eval mode and full float32 (no TF32), on `batch` views at a time, black ones among them, so that every forward has
    the same size. The mean is taken in float64 and in the views' order. Row i belongs to records[i]; workers change not
    a bit of it, nor do processes of as many threads each. (On a CPU some convolutions, such as S3D's, add up in another
    order with another number of threads: the last bits of float32 differ.) Of several processes each reads every
    world_size-th video; all must call this, and the main one gets all rows, the others no level. That every row is
    filled exactly once is checked.

    A video that cannot be read is an InputError with its path, in all processes; where `skipped` is given, its row is
    NaN and the dictionary, in every process, gets index -> reason; where none can be read, no level is returned. Rows
    (`what` they are) that are not finite are an InputError too. What is in training mode stays so. `reduce`: a video's
    views [views, C] -> its row, for a caller that wants something else than their mean.
    """
    in_training = [module for module in network.modules() if module.training]
    network.to(context.device).eval()
    bad: dict[int, str] = {}
    own = range(context.rank, len(records), context.world_size)
    loader = build_loader(settings.videos(records, skipped is not None), [[i] for i in own], num_workers, context.device)
    crops = TestCrops(settings.img_dim, settings.crops)

    def readable() -> Iterator[tuple[int, TestViews]]:
        items = iter(tqdm(loader, desc=label, unit="video", leave=False, disable=None if context.is_main else True))
        # Equally many rounds in every process, which all learn of a mistake at the end of one.
        for start in range(0, -(-len(records) // context.world_size), AGREE_EVERY):
            problem = None
            try:
                for _ in own[start:start + AGREE_EVERY]:
                    frames, clips, index, reason = next(items)
                    if reason[0]:
                        bad[int(index)] = reason[0]
                    else:
                        yield int(index), TestViews(frames[0], clips[0], crops)
            except InputError as error:
                problem = one_line(error)
            raise_first(problem)

    table, not_finite = RowTable(len(records), context, dtype), None
    with torch.inference_mode(), torch.backends.cudnn.flags(**FULL_FLOAT32):
        per_view = ((owners, forward(fill_up(views, batch).to(context.device, non_blocking=True)))
                    for owners, views in batch_views(readable(), batch))
        for index, rows in group_by_video(per_view):
            means = {level: reduce(values) for level, values in rows.items()}
            table.fill(index, means)
            not_finite = not_finite or find_not_finite(means, f"{records[index].path}: its {what}")
    for module in in_training:
        module.training = True

    raise_first(not_finite)
    for their_bad in gather_objects(bad) if skipped is not None else ():
        skipped.update(their_bad)
    return table.gather(skipped or {})


def find_not_finite(row: Rows, whose: str) -> str | None:
    """A line that begins with `whose` on the first level that is not finite throughout, None if all are."""
    return next((f"{whose} are not finite at level {level}: are the weights those of a run that diverged?"
                 for level, values in row.items() if not np.isfinite(values).all()), None)


def fill_up(views: Tensor, batch: int) -> Tensor:
    """`views` and black ones after them, `batch` in all: batches of other sizes are rounded differently."""
    if len(views) == batch:
        return views
    return torch.cat([views, views.new_zeros(batch - len(views), *views.shape[1:])])


def batch_views(
    videos: Iterable[tuple[int, Tensor | TestViews]], batch: int
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
