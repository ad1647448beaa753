"""Clip-averaged features of a pretrained backbone, by dataset index.

Shapes: N videos, each of several views (clips x crops) of T frames; M views in one forward; S = `--img_dim`;
C channels of a level.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dataset.records import VideoRecord
from dataset.transforms import normalize
from eval.views import ClipSettings, mean_over_views
from models.levels import LEVELS
from models.multilevel import build_backbone
from models.weights import check_keys, unwrap
from utils.checkpoint import FORMAT, canonical, read_checkpoint
from utils.distributed import Process
from utils.errors import InputError
from utils.runlog import file_sha256

RANDOM = "random"


def load_backbone(weights: str, net: str | None, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """The backbone on the CPU, and what it is, for the result card.

    "weights", "weights_kind" (a checkpoint's kind, or "random"), "net", "checkpoint_sha256", and "pretrained_epochs":
    of a classifier's checkpoint those of the weights that its own training started from.

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
                          "checkpoint_sha256": None, "pretrained_epochs": None}

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
    started_from = checkpoint.get("weights")
    if kind != "classifier":
        epochs = checkpoint.get("epochs_done")
    else:
        epochs = started_from.get("pretrained_epochs") if isinstance(started_from, dict) else None
    return backbone, {"weights": str(weights), "weights_kind": kind, "net": canonical(stored_net),
                      "checkpoint_sha256": file_sha256(weights), "pretrained_epochs": epochs}


def new_backbone(net: str, where: str) -> nn.Module:
    """`build_backbone`, with an InputError that says where the unknown name stands."""
    try:
        return build_backbone(net)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def extract_features(
    backbone: nn.Module, records: Sequence[VideoRecord], settings: ClipSettings, process: Process, *,
    batch: int = 32, num_workers: int = 0, skipped: dict[int, str] | None = None, label: str = "features",
) -> dict[str, np.ndarray]:
    """Level -> float32 [N, C]: each video's mean over its views of the map's mean over time and space.

    Row i belongs to records[i]; how, and what is refused, tells `mean_over_views`. Another `batch` changes the last
    bits of float32. The backbone's statistics, and what is in training mode, stay as they are.
    """
    rows = mean_over_views(backbone, partial(pool_levels, backbone), "features", records, settings, process,
                           batch=batch, num_workers=num_workers, skipped=skipped, label=label)
    rows = rows or {level: np.full((len(records), backbone.channels[level]), np.nan) for level in LEVELS}
    return {level: values.astype(np.float32) for level, values in rows.items()}


def pool_levels(backbone: nn.Module, views: Tensor) -> dict[str, np.ndarray]:
    """Level -> float64 [M, C] from uint8 views [M, T, S, S, 3]: the mean over time and space of each map."""
    maps = backbone(normalize(views).contiguous())
    return {level: x.mean(dim=(2, 3, 4)).double().cpu().numpy() for level, x in zip(LEVELS, maps)}
