"""Values of steps and epochs, kept on the device and read without holding up the work there."""
from __future__ import annotations

import math
import time
from typing import Iterable, Iterator, Protocol

import torch
from torch import Tensor

from utils.distributed import average
from utils.errors import InputError


class NamedScalars(Protocol):
    """What a step yields: the total, the terms and the metrics by name, all scalar tensors."""

    total: Tensor
    terms: dict[str, Tensor]
    metrics: dict[str, Tensor]


class NonFiniteLoss(InputError):
    """A loss term is NaN or infinite; the run cannot go on."""


class StepValues:
    """The scalars of one step in one tensor, on their way to the host while the device goes on."""

    def __init__(self, loss: NamedScalars) -> None:
        scalars = {"total": loss.total, **loss.terms, **loss.metrics}
        self.names = list(scalars)
        self.num_losses = 1 + len(loss.terms)
        self.on_device = torch.stack([value.detach().double() for value in scalars.values()])
        self.on_host = self.on_device.to("cpu", non_blocking=True)
        self.arrived = torch.cuda.Event() if self.on_device.is_cuda else None
        if self.arrived:
            self.arrived.record()

    def to_dict(self) -> dict[str, float]:
        """The values by name; waits until they are here."""
        if self.arrived:
            self.arrived.synchronize()
        return dict(zip(self.names, self.on_host.tolist()))

    def require_finite(self, epoch: int, step: int) -> None:
        """NonFiniteLoss, naming each term, where the loss is not finite."""
        values = self.to_dict()
        wrong = {name: values[name] for name in self.names[:self.num_losses] if not math.isfinite(values[name])}
        if wrong:
            named = ", ".join(f"{name} = {value}" for name, value in wrong.items())
            raise NonFiniteLoss(f"epoch {epoch + 1}, step {step}: the loss is not finite ({named}); nothing was updated, "
                                "the newest checkpoint is from before")


class EpochMeter:
    """Averages of the steps so far, the rate of work, and the share of time spent waiting for data."""

    def __init__(self, videos_per_step: int, device: torch.device) -> None:
        self.videos_per_step = videos_per_step
        self.device = device
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.steps = 0
        self.waited_s = 0.0
        self.begin = time.perf_counter()

    def time_waiting(self, batches: Iterable) -> Iterator:
        """`batches`, with the time until each arrives counted as waiting."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            self.waited_s += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def update(self, values: StepValues) -> None:
        """Take in a step's values."""
        self.names = values.names
        self.sums = values.on_device if self.sums is None else self.sums + values.on_device
        self.steps += 1

    def averages(self) -> dict[str, float]:
        """Means over the epoch's steps and all processes. At least one step must have been taken."""
        return dict(zip(self.names, (average(self.sums.clone()) / self.steps).tolist()))

    def speed(self) -> dict[str, float]:
        """Videos of all processes per second, and the share of time in which this one waited for data, 0 to 1."""
        elapsed = max(time.perf_counter() - self.begin, 1e-9)
        return {"samples_per_s": self.steps * self.videos_per_step / elapsed, "data_wait": self.waited_s / elapsed}
