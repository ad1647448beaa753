"""The backbone to evaluate, from a checkpoint or with random weights, and what the result card says about it."""
from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dataset.transforms import IMAGENET, RGB, read_input
from models.convert import check_keys, unwrap
from models.multilevel import build_backbone
from utils.checkpoint import canonical, read_weights
from utils.cli import TIME_POOL
from utils.errors import InputError
from utils.files import file_sha256

RANDOM = "random"


def load_backbone(weights: str, net: str | None, seed: int, frames: str | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Returns (backbone on the CPU, its entries of the result card).

    The entries: "weights", "weights_kind" (the checkpoint's kind, or "random"), "net", "checkpoint_sha256", "input" (the
    "mean", "std" and "frames" for `scale_clips`), and "pretrained_epochs" (of a classifier: of the weights that it started
    from).

    `weights`: a checkpoint of this project of kind "model", "backbone" or "classifier"; or "random", which needs `net` and
    gives the weights that pretraining with this `seed` starts from, for `frames` as input (RGB by default). InputError for
    another `net` or other `frames` than the checkpoint's, and for missing, unknown or wrongly shaped entries. A `net`
    without its "_time_pool" is accepted, and that of the checkpoint is built.
    """
    if weights == RANDOM:
        if net is None:
            raise InputError("--weights random: needs --net, the architecture to draw weights for")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = new_backbone(net, "--net")
        return backbone, {"weights": RANDOM, "weights_kind": RANDOM, "net": canonical(net), "checkpoint_sha256": None,
                          "input": {**IMAGENET, "frames": frames or RGB}, "pretrained_epochs": None}

    checkpoint, kind, stored_net = read_weights(weights)
    if net is not None and canonical(net) not in (stored_net, stored_net.removesuffix(TIME_POOL)):
        raise InputError(f"--net {net}: {weights} holds a {stored_net}; leave --net out or name another")
    backbone = new_backbone(stored_net, str(weights))
    try:
        state = unwrap(checkpoint.get("model"))
        if kind != "backbone":
            state = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
        check_keys(state, backbone)
        backbone.load_state_dict(state)
    except (ValueError, RuntimeError) as error:  # RuntimeError: tensors without plain values, such as sparse ones
        reason = str(error).splitlines()[0]
        raise InputError(f"{weights}: does not fill the backbone {stored_net}: {reason}") from error
    origin, epochs = checkpoint, "epochs_done"
    if kind == "classifier":
        started_from = checkpoint.get("weights")
        origin, epochs = started_from if isinstance(started_from, dict) else {}, "pretrained_epochs"
    scale = read_input(origin, str(weights))
    if frames not in (None, scale["frames"]):
        raise InputError(f"--input {frames}: the input of {weights} is {scale['frames']}; leave --input out")
    return backbone, {"weights": str(weights), "weights_kind": kind, "net": stored_net,
                      "checkpoint_sha256": file_sha256(weights), "input": scale, "pretrained_epochs": origin.get(epochs)}


def new_backbone(net: str, where: str) -> nn.Module:
    """Returns `build_backbone(net)`; an InputError for an unknown name begins with `where` the name was given."""
    try:
        return build_backbone(net)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
