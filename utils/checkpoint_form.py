"""What must be true of a checkpoint's entries before a run goes on from them: what reads them later asks no more."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from utils.progress import Progress


def find_problem(checkpoint: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer,
                 score_columns: int) -> str | None:
    """What in a pretraining checkpoint, damaged or a stranger's, cannot be gone on from, or None.

    The model's own entries are left to `load_state_dict`. `score_columns`: number of prototypes.
    """
    if not isinstance(checkpoint["model"], dict):
        return "its model is not what a run writes"
    checks = {"flags": is_flags(checkpoint["flags"]), "global_batch": is_count(checkpoint["global_batch"], least=1),
              "progress": is_progress(checkpoint["progress"]), "queue": is_queue(checkpoint["queue"], score_columns),
              "optimizer": is_adam(checkpoint["optimizer"], model, optimizer),
              "processes": isinstance(checkpoint["processes"], list) and len(checkpoint["processes"]) > 0
              and all(map(is_process, checkpoint["processes"]))}
    return next((f"its {name} is not what a run writes" for name, good in checks.items() if not good), None)


def is_count(value: Any, least: int = 0) -> bool:
    """Whether this is a whole number that a run could have counted to."""
    return type(value) is int and least <= value < 1 << 62


def is_dense(value: Any, *shape: int | None) -> bool:
    """Whether this is a floating tensor on the CPU of such a shape (None: any size)."""
    return (isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
            and value.is_floating_point() and value.dim() == len(shape)
            and all(wanted in (None, size) for wanted, size in zip(shape, value.shape)))


def is_flags(value: Any) -> bool:
    """Whether these are flags by name, which can be told in a line."""
    plain = (int, float, str, bool, type(None), list)
    return isinstance(value, dict) and all(isinstance(name, str) for name in value) and all(
        isinstance(flag, plain) and len(str(flag).splitlines()) < 2 for flag in value.values())


def is_progress(value: Any) -> bool:
    """Whether this is the state of a `Progress`."""
    fresh = Progress().state_dict()
    if not isinstance(value, dict) or value.keys() != fresh.keys():
        return False
    bad = value["bad_videos"]
    return (all(is_count(value[name]) for name in fresh if name != "bad_videos") and isinstance(bad, dict)
            and all(isinstance(text, str) for entry in bad.items() for text in entry))


def is_queue(value: Any, score_columns: int) -> bool:
    """Whether this is the state of a queue of scores."""
    return isinstance(value, dict) and value.keys() == {"rows"} and (
        value["rows"] is None or is_dense(value["rows"], None, None, score_columns))


def is_process(value: Any) -> bool:
    """Whether this is what one process writes: its random states, and the sums of its epoch so far."""
    if not isinstance(value, dict) or value.keys() != {"random", "sums"}:
        return False
    random, sums = value["random"], value["sums"]
    if not isinstance(random, dict) or not random.keys() <= {"cpu", "cuda"} or not isinstance(random.get("cpu"), Tensor):
        return False
    if not isinstance(sums, dict) or sums.keys() != {"names", "sums", "steps"} or not isinstance(sums["names"], list):
        return False
    if not all(isinstance(name, str) for name in sums["names"]) or not is_count(sums["steps"]):
        return False
    return sums["steps"] == 0 if sums["sums"] is None else is_dense(sums["sums"], len(sums["names"]))


def is_adam(value: Any, model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    """Whether this is the state of an Adam of this model's parameters; those that are frozen have none yet."""
    parameters, [own] = list(model.parameters()), optimizer.state_dict()["param_groups"]
    if not isinstance(value, dict) or value.keys() != {"state", "param_groups"} or not isinstance(value["state"], dict):
        return False
    groups = value["param_groups"]
    if not isinstance(groups, list) or len(groups) != 1 or not isinstance(groups[0], dict):
        return False
    return is_adam_group(groups[0], own) and all(
        is_count(index) and index < len(parameters) and isinstance(moments, dict)
        and moments.keys() == {"step", "exp_avg", "exp_avg_sq"} and is_dense(moments["step"])
        and all(is_dense(moments[name], *parameters[index].shape) for name in ("exp_avg", "exp_avg_sq"))
        for index, moments in value["state"].items())


def is_adam_group(group: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether these settings are `own` up to those that may differ. Another version of torch has fewer or more of them."""
    if not {"params", "lr", "betas", "eps", "weight_decay"} <= group.keys():
        return False
    for name in group.keys() & own.keys():
        setting = group[name]
        if name in ("lr", "weight_decay"):
            good = type(setting) in (int, float) and 0 <= setting < 1e6
        elif name in ("foreach", "fused"):  # as the device is
            good = setting is None or isinstance(setting, bool)
        else:
            good = type(setting) is type(own[name]) and repr(setting) == repr(own[name])  # tensors inside compare to no bool
        if not good:
            return False
    return True
