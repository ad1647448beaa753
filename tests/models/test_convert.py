"""Checkpoints of other projects: names, and every key checked."""
from __future__ import annotations

import pytest
import torch

from models.multilevel import MultiLevelModel, build_backbone
from models.convert import check_keys, convert, official_name, unwrap
from tests.official_checkpoint import official_shapes


def meta_model() -> MultiLevelModel:
    with torch.device("meta"):
        return MultiLevelModel("r3d18", 128, 4)


def official() -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in official_shapes(4).items()}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_official_entry_has_its_place(prefix):
    state, model = official(), meta_model()
    converted = convert({prefix + name: value for name, value in state.items()}, "official", model)
    assert converted.keys() == model.state_dict().keys()
    assert len(converted) == len(state) - 2


@pytest.mark.parametrize("name", ["backbone.bn1.running_mean", "backbone.melow.0.conv3.weight", "project_low.2.bias",
                                  "project_global.1.num_batches_tracked", "prototype.weight"])
def test_each_missing_or_reshaped_entry_is_named(name):
    state, model = official(), meta_model()
    gone = official_name(name)
    with pytest.raises(ValueError, match=f"^1 missing: {gone}$"):
        convert({key: value for key, value in state.items() if key != name}, "official", model)
    with pytest.raises(ValueError, match=f"^1 of another shape: {gone} "):
        convert(state | {name: torch.empty(3, 3)}, "official", model)


def test_unknown_entries_and_sources_are_named():
    with pytest.raises(ValueError, match="^1 not part of the model: project_high.0.weight$"):
        convert(official() | {"project_high.0.weight": torch.empty(1)}, "official", meta_model())
    with pytest.raises(ValueError, match="'tensorflow'.*official, 3d-resnets, torchvision"):
        convert({}, "tensorflow", meta_model())


def test_many_problems_stay_one_line():
    with torch.device("meta"):
        target = build_backbone("r3d10")
    with pytest.raises(ValueError) as error:
        check_keys({"x": torch.zeros(1), "stem.0.weight": torch.zeros(2)}, target)
    message = str(error.value)
    assert "\n" not in message and len(message) < 1000
    assert f"{len(target.state_dict()) - 1} missing: " in message and "1 not part of the model: x" in message
    assert "stem.0.weight (2,) instead of (64, 3, 7, 7, 7)" in message


def test_unwrap():
    state = {"a": torch.zeros(1)}
    for checkpoint in (state, {"state_dict": state, "epoch": 3}, {"model": state}, {"model_state_dict": state}):
        assert unwrap(checkpoint) is state
    for nothing in ({}, [1], {"epoch": 3}, {"state_dict": {}}, {"a": torch.zeros(1), "b": 2}):
        with pytest.raises(ValueError, match="holds no state dict"):
            unwrap(nothing)


def test_two_entries_of_one_name_are_refused():
    backbone = build_backbone("r3d10")
    state = {"stem.0.weight": backbone.stem[0].weight, "module.conv1.weight": backbone.stem[0].weight}
    with pytest.raises(ValueError, match="two entries for stem.0.weight, the second under conv1.weight"):
        convert(state, "3d-resnets", backbone)
