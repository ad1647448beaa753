"""Values of steps and epochs."""
from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from utils.metrics import EpochMeter, NonFiniteLoss, StepValues


def loss(total=1.0, term=2.0, metric=0.5):
    return SimpleNamespace(total=torch.tensor(total), terms={"term": torch.tensor(term)},
                           metrics={"metric": torch.tensor(metric)})


def test_epoch_means():
    meter = EpochMeter(videos_per_step=4, device=torch.device("cpu"))
    for batch, total in zip(meter.time_waiting([10, 20]), (1.0, 4.0)):
        meter.update(StepValues(loss(total=total, metric=batch / 10)))
    assert meter.averages() == {"total": 2.5, "term": 2.0, "metric": 1.5}
    speed = meter.speed()
    assert speed["samples_per_s"] > 0 and 0 <= speed["data_wait"] <= 1


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_the_term_that_went_wrong_is_named(wrong):
    with pytest.raises(NonFiniteLoss, match=rf"epoch 3, step 7: .*term = {wrong}\)"):
        StepValues(loss(term=wrong)).require_finite(2, 7)
    StepValues(loss()).require_finite(0, 1)
    StepValues(loss(metric=wrong)).require_finite(0, 1)  # only losses count
