"""Values of steps and epochs."""
from __future__ import annotations

from types import SimpleNamespace

import pytest
from utils.training_log import EpochMeter, StepValues
import torch



def loss(total=1.0, term=2.0, metric=0.5):
    return SimpleNamespace(total=torch.tensor(total), terms={"term": torch.tensor(term)},
                           metrics={"metric": torch.tensor(metric)})


GRADIENTS = [torch.tensor([3.0, 4.0]), torch.tensor([[12.0]])]  # of norm 13


def test_epoch_means():
    meter = EpochMeter(videos_per_step=4, device=torch.device("cpu"))
    for batch, total in zip(meter.time_waiting([10, 20]), (1.0, 4.0)):
        meter.update(StepValues(loss(total=total, metric=batch / 10), GRADIENTS))
    means = {"total": 2.5, "term": 2.0, "gradient_norm": 13.0, "metric": 1.5}
    assert meter.averages() == means
    resumed = EpochMeter(videos_per_step=4, device=torch.device("cpu"))
    resumed.load_state_dict(meter.state_dict())
    assert resumed.averages() == means and resumed.speed()["samples_per_s"] == 0
    speed = meter.speed()
    assert speed["samples_per_s"] > 0 and 0 <= speed["data_wait"] <= 1


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(wrong):
    assert list(StepValues(loss(term=wrong), GRADIENTS).not_finite()) == ["term"]
    assert list(StepValues(loss(), [*GRADIENTS, torch.tensor([1.0, wrong])]).not_finite()) == ["gradient_norm"]
    assert not StepValues(loss(), GRADIENTS).not_finite()
    assert not StepValues(loss(metric=wrong), GRADIENTS).not_finite()  # a metric changes nothing
