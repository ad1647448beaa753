"""Checkpoints of other projects under this project's names; every key is checked.

The sources, and what they fill:

    official       the official code's model, r3d18: all of MultiLevelModel
    3d-resnets     3D-ResNets-PyTorch r3d18 / 34 / 50 (projection shortcuts): a backbone `..._time_pool`, with its stem
    torchvision    r2plus1d_18 or s3d: a backbone
"""
from __future__ import annotations

import re
from typing import Mapping, MutableMapping

import torch
from torch import Tensor, nn

OFFICIAL_HEADS = {
    "project.": "instance.high.", "project_mid.": "instance.mid.", "project_low.": "instance.low.",
    "project_graph.": "graph_heads.high.", "project_mid_graph.": "graph_heads.mid.",
    "project_low_graph.": "graph_heads.low.",
    "project_fine.": "timestamp.high.", "project_mid_fine.": "timestamp.mid.", "project_low_fine.": "timestamp.low.",
    "project_global.": "prototype_head.projection.", "prototype.": "prototype_head.prototypes.",
}
EXCITATION_PARTS = {"conv1": "squeeze", "bn1": "squeeze_norm", "conv2": "shift", "conv3": "expand",
                    "bn3": "expand_norm"}
# Classifiers, which no backbone here has.
UNUSED = {"official": ("backbone.fc.",), "3d-resnets": ("fc.",), "torchvision": ("fc.", "classifier.")}


def convert(state: Mapping[str, Tensor], source: str, target: nn.Module) -> dict[str, Tensor]:
    """Returns the state dict for `target` (a MultiLevelModel for "official", else a backbone) of a checkpoint's `state`.

    Only the classifiers in UNUSED are left out. ValueError names every key that is missing, unknown, or of another
    shape; so the result always loads strictly. A `module.` prefix (DataParallel) is removed.
    """
    if source not in UNUSED:
        raise ValueError(f"source {source!r}: choose among {', '.join(UNUSED)}")
    rename = {"official": official_name, "3d-resnets": resnet_name, "torchvision": str}[source]
    converted = {}
    for key, value in state.items():
        key = key.removeprefix("module.")
        if key.startswith(UNUSED[source]):
            continue
        name = rename(key)
        if name in converted:
            raise ValueError(f"two entries for {name}, the second under {key}")
        converted[name] = value
    check_keys(converted, target)
    return converted


def check_keys(state: Mapping[str, Tensor], target: nn.Module) -> None:
    """Raises ValueError, in one line, unless `state` holds exactly the entries of `target` in their shapes."""
    wanted, state = target.state_dict(), dict(state)
    rename_old_keys(state)
    problems = []
    missing = [key for key in wanted if key not in state]
    unknown = [key for key in state if key not in wanted]
    reshaped = [f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
                for key in wanted if key in state and state[key].shape != wanted[key].shape]
    for what, keys in (("missing", missing), ("not part of the model", unknown), ("of another shape", reshaped)):
        if keys:
            shown = ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
            problems.append(f"{len(keys)} {what}: {shown}")
    if problems:
        raise ValueError("; ".join(problems))


def rename_old_keys(state: MutableMapping[str, Tensor]) -> None:
    """Renames entries of MultiLevelModel from before `graph` became `graph_heads`, in place."""
    for key in [key for key in state if key.startswith("graph.")]:
        state["graph_heads." + key.removeprefix("graph.")] = state.pop(key)


def official_name(key: str) -> str:
    """Returns the name here of an entry of the official checkpoint."""
    excitation = re.fullmatch(r"backbone\.me(low|mid)\.0\.(\w+)\.(\w+)", key)
    if excitation:
        level, part, leaf = excitation.groups()
        return f"excitation.{level}.{EXCITATION_PARTS.get(part, part)}.{leaf}"
    if key.startswith("backbone."):
        return "backbone." + resnet_name(key.removeprefix("backbone."))
    for theirs, ours in OFFICIAL_HEADS.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key


def resnet_name(key: str) -> str:
    """Returns the name here (torchvision's) of an entry of a plain 3D ResNet: conv1/bn1 of a block are conv1.0/conv1.1."""
    key = re.sub(r"^conv1\.", "stem.0.", key)
    key = re.sub(r"^bn1\.", "stem.1.", key)
    key = re.sub(r"^(layer\d\.\d+)\.conv(\d)\.", r"\1.conv\2.0.", key)
    return re.sub(r"^(layer\d\.\d+)\.bn(\d)\.", r"\1.conv\2.1.", key)


def unwrap(checkpoint: object) -> dict[str, Tensor]:
    """Returns the state dict in a loaded checkpoint: itself, or under "state_dict", "model_state_dict" or "model"."""
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(name), dict):
            checkpoint = checkpoint[name]
            break
    if not isinstance(checkpoint, dict) or not checkpoint or not all(
            isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in checkpoint.items()):
        raise ValueError("holds no state dict (a mapping of names to tensors)")
    return checkpoint
