"""Clip-averaged features of a pretrained backbone, by dataset index.

Shapes: N videos, each of several views (clips x crops) of T frames; M views in one forward; S = `--img_dim`;
C channels of a level.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dataset.records import VideoRecord
from dataset.transforms import IMAGENET_MEAN, IMAGENET_STD, scale_clips
from eval.features.clip_means import ClipSettings, mean_over_views
from models.levels import LEVELS
from models.multilevel import build_backbone
from models.numerics import at_least_float32
from models.convert import check_keys, unwrap
from utils.checkpoint import FORMAT, canonical, read_checkpoint
from utils.distributed import DistContext
from utils.errors import InputError
from utils.files import file_sha256

RANDOM = "random"
IMAGENET = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}  # by which pretraining scales colors


def load_backbone(weights: str, net: str | None, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """The backbone on the CPU, and what it is, for the result card.

    "weights", "weights_kind" (a checkpoint's kind, or "random"), "net", "checkpoint_sha256", "input" (the "mean" and
    "std" of each color by which the weights want clips scaled, see `expect_input`), and "pretrained_epochs": of a
    classifier's checkpoint those of the weights that its own training started from.

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
        return backbone, {"weights": RANDOM, "weights_kind": RANDOM, "net": canonical(net),
                          "checkpoint_sha256": None, "input": IMAGENET, "pretrained_epochs": None}

    checkpoint = read_checkpoint(weights)
    form, kind, stored_net = (value if isinstance(value, str) else None
                              for value in map(checkpoint.get, ("format", "kind", "net")))
    if form != FORMAT or kind not in ("model", "backbone", "classifier") or stored_net is None:
        raise InputError(f"{weights}: no checkpoint of this project (format {form!r}, kind {kind!r}, net "
                         f"{stored_net!r}); other people's must be converted first")
    if net is not None and canonical(net) != canonical(stored_net):
        raise InputError(f"--net {net}: {weights} holds a {stored_net}; leave --net out or name another")
    backbone = new_backbone(stored_net, str(weights))
    try:
        state = unwrap(checkpoint.get("model"))
        if kind != "backbone":
            state = {key.removeprefix("backbone."): value for key, value in state.items()
                     if key.startswith("backbone.")}
        check_keys(state, backbone)
        backbone.load_state_dict(state)
    except (ValueError, RuntimeError) as error:  # a RuntimeError: tensors that hold no numbers, such as sparse ones
        reason = str(error).splitlines()[0]
        raise InputError(f"{weights}: does not fill the backbone {stored_net}: {reason}") from error
    told_by, epochs = checkpoint, "epochs_done"
    if kind == "classifier":
        started_from = checkpoint.get("weights")
        told_by, epochs = started_from if isinstance(started_from, dict) else {}, "pretrained_epochs"
    scale = read_input(told_by, weights)
    expect_input(backbone, scale)
    return backbone, {"weights": str(weights), "weights_kind": kind, "net": canonical(stored_net),
                      "checkpoint_sha256": file_sha256(weights), "input": scale, "pretrained_epochs": told_by.get(epochs)}


def read_input(told_by: dict[str, Any], where: str) -> dict[str, list[float]]:
    """The "mean" and "std" under "input" in what a checkpoint tells of its weights; ImageNet's if it tells none."""
    scale = told_by.get("input", IMAGENET)
    mean, std = (scale.get(name) if isinstance(scale, dict) else None for name in ("mean", "std"))
    if not all(isinstance(values, (list, tuple)) and len(values) == 3 and all(
            type(value) in (int, float) and math.isfinite(value) for value in values) for values in (mean, std)) \
            or min(std) <= 0:
        raise InputError(f"{where}: its input is not a mean and a std above 0 of red, green and blue")
    return {"mean": list(mean), "std": list(std)}


def expect_input(backbone: nn.Module, scale: dict[str, list[float]]) -> None:
    """Have `backbone` take clips scaled by ImageNet's mean and std, as all here are, where its weights want `scale`."""
    if scale == IMAGENET:
        return
    mean, std, imagenet_mean, imagenet_std = (
        torch.tensor(values)[:, None, None, None] for values in (*scale.values(), *IMAGENET.values()))
    gain, shift = imagenet_std / std, (imagenet_mean - mean) / std

    def rescale(_backbone: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return inputs[0] * gain.to(inputs[0]) + shift.to(inputs[0])

    backbone.register_forward_pre_hook(rescale)


def new_backbone(net: str, where: str) -> nn.Module:
    """`build_backbone`, with an InputError that says where the unknown name stands."""
    try:
        return build_backbone(net)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def extract_features(
    backbone: nn.Module, records: Sequence[VideoRecord], settings: ClipSettings, context: DistContext, *,
    batch: int = 32, num_workers: int = 0, skipped: dict[int, str] | None = None, label: str = "features",
    amp: str = "off",
) -> dict[str, np.ndarray]:
    """Level -> float32 [N, C]: each video's mean over its views of the map's mean over time and space.

    Row i belongs to records[i]; the main process gets them, the others no level. How, and what is refused, tells
    `mean_over_views`. Another `batch` changes the last bits of float32. `amp`: "bf16" runs the backbone in bfloat16 and
    pools in float32. The backbone's statistics, and what is in training mode, stay as they are.
    """
    rows = mean_over_views(backbone, partial(pool_levels, backbone, amp=amp), "features", records, settings, context,
                           batch=batch, num_workers=num_workers, skipped=skipped, label=label, dtype=np.float32)
    if rows or not context.is_main:
        return rows
    return {level: np.full((len(records), backbone.channels[level]), np.nan, np.float32) for level in LEVELS}


def pool_levels(backbone: nn.Module, views: Tensor, amp: str = "off") -> dict[str, np.ndarray]:
    """Level -> float64 [M, C] from uint8 views [M, T, S, S, 3]: the mean over time and space of each map."""
    clips = scale_clips(views, channels_last=amp != "off")  # the memory format decides the last bits
    with torch.autocast(views.device.type, torch.bfloat16, enabled=amp == "bf16"):
        maps = backbone(clips)
    return {level: at_least_float32(x).mean(dim=(2, 3, 4)).double().cpu().numpy() for level, x in zip(LEVELS, maps)}
