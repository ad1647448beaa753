"""What a dry run measures and prints."""
from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from utils.distributed import DistContext
from utils.profiling import PHASES, WARM_UP_STEPS, PhaseTimer, describe_profile, duration, largest_fitting

CPU = torch.device("cpu")


def test_time_goes_to_the_phase_that_took_it():
    timer = PhaseTimer(3, CPU)
    for step in range(3 + WARM_UP_STEPS):
        assert not timer.enough
        for phase in PHASES:
            time.sleep(0.02 if phase == "objective" and step >= WARM_UP_STEPS else 0)
            timer.mark(phase)
    assert timer.enough
    means = timer.means()
    assert 0.02 <= means["objective"] < 0.2 and max(means, key=means.get) == "objective"


def test_without_a_dry_run_there_is_no_clock():
    timer = PhaseTimer(0, CPU)
    timer.mark("forward")
    assert not timer.seconds and not timer.enough


def test_the_lines_add_up():
    means = dict.fromkeys(PHASES, 0.0) | {"data": 0.1, "forward": 0.1, "backward": 0.2}
    flags = SimpleNamespace(batch_per_gpu=8, num_nodes=1, epochs=50, num_workers=2)
    lines = list(describe_profile(means, 1000, flags, DistContext(0, 1, CPU), 0.06, None))
    assert lines[0].startswith("20.0 videos/s (26.7 without waiting for data), 400 ms a step of 8")
    assert "waiting for data: 25% of the time" in lines
    assert any("forward 100.0" in line and "backward 200.0" in line for line in lines)
    assert "projected: 6.7 min an epoch, 5.6 h for 50 epochs" in lines
    assert any(line.startswith("suggested --workers: 2 (") for line in lines)  # 1.25 * 0.06 * 8 / 0.3


def test_durations():
    assert [duration(seconds) for seconds in (3, 150, 8000, 200000)] == ["3.0 s", "2.5 min", "2.2 h", "2.3 days"]


@pytest.mark.parametrize("most", [8, 9, 37, 64, 1000])
def test_the_largest_size_that_fits(most):
    tried = []

    def work(size):
        tried.append(size)
        if size > most:
            raise torch.OutOfMemoryError("planted")

    found = largest_fitting(work, 8, limit=512)
    assert found <= min(most, 512) < found + max(2, found // 4) and len(tried) < 12
    with pytest.raises(ValueError):  # any other error is one
        largest_fitting(lambda size: int("x"), 8)
