"""Weights of a checkpoint, or random ones: the backbone to evaluate, with what the result card says about it, and the
initial weights of pretraining."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dataset.transforms import IMAGENET, RGB, read_input
from models.convert import check_keys, rename_old_keys, unwrap
from models.multilevel import MultiLevelModel, build_backbone
from utils.checkpoint import canonical, read_weights, reading_entries
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
        state = of_backbone(stored_entries(checkpoint, kind))
        check_keys(state, backbone)
        backbone.load_state_dict(state)
    except (ValueError, RuntimeError) as error:  # RuntimeError: tensors without plain values, such as sparse ones
        reason = str(error).splitlines()[0]
        raise InputError(f"{weights}: does not fill the backbone {stored_net}: {reason}") from error
    origin, epochs = checkpoint, "epochs_done"
    if kind == "classifier":
        origin, epochs = checkpoint.get("weights") or {}, "pretrained_epochs"
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


def load_initial_weights(model: MultiLevelModel, path: str, net: str,
                         frames: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (the "input" of the checkpoint at `path`, for `scale_clips`; what was loaded from it into `model`, a `net`).

    A whole model gives all entries but those whose shape --channel or --cluster change; a backbone or a classifier gives the
    backbone. The others stay as they are drawn. InputError unless net, `frames` and the whole backbone fit.
    """
    checkpoint, kind, stored_net = read_weights(path)
    if stored_net != canonical(net):
        raise InputError(f"--init_from {path}: holds a {stored_net}, --net is {net}; add --net {stored_net}")
    with reading_entries(path, "weights"):
        state, own = stored_entries(checkpoint, kind), model.state_dict()
        check_keys(of_backbone(state), model.backbone)
        kept = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
        scale = read_input(checkpoint["weights"] if kind == "classifier" else checkpoint, path)
        if scale["frames"] != frames:
            raise InputError(f"--init_from {path}: its input is {scale['frames']}, --input is {frames}")
        model.load_state_dict(kept, strict=False)
    random = sorted({".".join(name.split(".")[:2]) for name in own.keys() - kept.keys()})
    return scale, {"path": path, "sha256": file_sha256(path), "kind": kind, "net": stored_net, "loaded": len(kept),
                   "random": ", ".join(random) or "none"}


def stored_entries(checkpoint: Mapping[str, Any], kind: str) -> dict[str, Tensor]:
    """Returns the weights of a checkpoint of `kind` by their names in a MultiLevelModel."""
    state = dict(unwrap(checkpoint.get("model")))
    rename_old_keys(state)
    return {f"backbone.{name}": value for name, value in state.items()} if kind == "backbone" else state


def of_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the backbone's entries of a MultiLevelModel or classifier, by their names in the backbone."""
    return {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
