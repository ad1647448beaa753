"""Where the time of a step goes: `train.py --dry_run N` measures it, in every other run these marks cost nothing."""
from __future__ import annotations

import time

import torch

PHASES = ("data", "input", "forward", "objective", "backward", "checks", "optimizer")
WARM_UP_STEPS = 2  # not counted: first allocations, choice of kernels, workers that start


class Phases:
    """A clock that attributes the time since the last mark to a phase; `steps` 0: no clock."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.steps = steps
        self.device = device
        self.seconds: list[dict[str, float]] = []
        self.last = 0.0

    def begin(self) -> None:
        """Start the clock, before the first step."""
        self.seconds, self.last = [], time.perf_counter()

    def mark(self, phase: str) -> None:
        """The end of `phase`; waits for the device. "data" begins a step."""
        if not self.steps:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if phase == "data":
            self.seconds.append(dict.fromkeys(PHASES, 0.0))
        self.seconds[-1][phase] += now - self.last
        self.last = now

    @property
    def enough(self) -> bool:
        """Whether all steps of a dry run, those of its warm-up among them, are done."""
        return self.steps > 0 and len(self.seconds) >= self.steps + WARM_UP_STEPS

    def means(self) -> dict[str, float]:
        """Phase -> mean seconds of a step after the warm-up."""
        counted = self.seconds[WARM_UP_STEPS:]
        return {phase: sum(step[phase] for step in counted) / len(counted) for phase in PHASES}
