"""Values of steps and epochs, kept on the device and read without blocking it."""
from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from utils.distributed import average


class NamedScalars(Protocol):
    """The loss of a step: the total, the terms and the metrics by name, all scalar tensors."""

    total: Tensor
    terms: dict[str, Tensor]
    metrics: dict[str, Tensor]


class StepValues:
    """The scalars of one step in one tensor, copied to the host asynchronously; with "gradient_norm", the global L2 norm."""

    def __init__(self, loss: NamedScalars, gradients: Sequence[Tensor]) -> None:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)).double())
        scalars = {"total": loss.total, **loss.terms, "gradient_norm": norm, **loss.metrics}
        self.names = list(scalars)
        self.num_checked = 2 + len(loss.terms)
        self.on_device = torch.stack([value.detach().double() for value in scalars.values()])
        self.on_host = self.on_device.to("cpu", non_blocking=True)
        self.arrived = torch.cuda.Event() if self.on_device.is_cuda else None
        if self.arrived:
            self.arrived.record()

    def to_dict(self) -> dict[str, float]:
        """Returns the values by name, once they have arrived."""
        if self.arrived:
            self.arrived.synchronize()
        return dict(zip(self.names, self.on_host.tolist()))

    def not_finite(self) -> dict[str, float]:
        """Returns the losses and the gradient norm that are NaN or infinite, once they have arrived."""
        values = self.to_dict()
        return {name: values[name] for name in self.names[:self.num_checked] if not math.isfinite(values[name])}


class EpochMeter:
    """Averages over the steps so far, throughput, and the fraction of time spent waiting for data."""

    def __init__(self, videos_per_step: int, device: torch.device) -> None:
        self.videos_per_step = videos_per_step
        self.device = device
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.steps = 0
        self.steps_before = 0  # of these, steps of an earlier start
        self.waited_s = 0.0
        self.begin = time.perf_counter()

    def time_waiting(self, batches: Iterable) -> Iterator:
        """Yields `batches`; the time until each arrives counts as waiting."""
        iterator = iter(batches)
        self.begin = time.perf_counter()
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            self.waited_s += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums so far as plain values, without the clocks."""
        return {"names": self.names, "sums": None if self.sums is None else self.sums.cpu(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the sums; throughput counts the steps from here on."""
        self.names, self.steps = state["names"], state["steps"]
        self.sums = None if state["sums"] is None else state["sums"].to(self.device)
        self.steps_before = self.steps

    def update(self, values: StepValues) -> None:
        """Adds a step's values."""
        self.names = values.names
        self.sums = values.on_device if self.sums is None else self.sums + values.on_device
        self.steps += 1

    def averages(self) -> dict[str, float]:
        """Returns the means over the epoch's steps (at least one) and all processes."""
        return dict(zip(self.names, (average(self.sums.clone()) / self.steps).tolist()))

    def speed(self) -> dict[str, float]:
        """Returns videos per second over all processes, and the fraction of time in which this one waited for data."""
        elapsed = max(time.perf_counter() - self.begin, 1e-9)
        videos = (self.steps - self.steps_before) * self.videos_per_step
        return {"samples_per_s": videos / elapsed, "data_wait": self.waited_s / elapsed}
