"""Communication between processes. Everything works without a process group too, for one process of rank 0."""
from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn.parallel import DistributedDataParallel

from utils.cli import MAX_TIMEOUT_S
from utils.errors import AgreedError, InputError, one_line

T = TypeVar("T")


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


@dataclass(frozen=True)
class DistContext:
    """Rank and device of this process; `control`: a CPU group for small messages, None for the default group."""

    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Returns whether this is the one process that writes and prints."""
        return self.rank == 0


def gather_rows(rows: Tensor, all_gradients: bool = False) -> Tensor:
    """Returns every rank's rows [N, ...] in rank order, of [B, ...] on each rank; B must be the same on all.

    Gradient flows to the local rows. By default it is that of this rank's loss, as in the official code: a row gets no
    gradient from the losses of other ranks, where it is a candidate. With `all_gradients` it is summed over all ranks'
    losses, so that the mean of parameter gradients over ranks is the gradient of one process with all rows.
    """
    if world_size() == 1:
        return rows
    rows = rows.contiguous()
    if all_gradients:
        return torch.cat(all_gather(rows))
    gathered = rows.new_empty(world_size(), *rows.shape)
    dist.all_gather(list(gathered), rows.detach())
    if rows.requires_grad:
        gathered[dist.get_rank()] = rows
    return gathered.flatten(0, 1)


def average(values: Tensor) -> Tensor:
    """Returns `values` averaged over all processes."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values / world_size()


def gather_objects(item: object, group: dist.ProcessGroup | None = None) -> list:
    """Returns every rank's `item` in rank order, on every rank; for small objects."""
    items = [item] * world_size()
    if world_size() > 1:
        dist.all_gather_object(items, item, group)
    return items


def true_on_any_rank(values: list[bool], context: DistContext) -> list[bool]:
    """Returns whether each of the values is true in any process; on the CPU, without synchronizing with the device.

    Processes exchange with those 1, 2, 4, ... ranks away: log2(W) messages one after another for W processes, where
    gloo's all-reduce takes 2 (W - 1).
    """
    found, distance = torch.tensor(values), 1
    while distance < context.world_size:
        theirs = torch.empty_like(found)
        sending = dist.isend(found, (context.rank + distance) % context.world_size, context.control)
        dist.recv(theirs, (context.rank - distance) % context.world_size, context.control)
        sending.wait()
        found, distance = found | theirs, 2 * distance
    return found.tolist()


def check_same_on_all_ranks(facts: dict[str, object]) -> None:
    """Raises AgreedError for the first of `facts` (name -> value) that is not the same in every process."""
    first, *others = gather_objects(facts)
    for name, value in first.items():
        for rank, theirs in enumerate(others, start=1):
            if theirs[name] != value:
                raise AgreedError(f"{name}: {theirs[name]} in process {rank}, {value} in process 0; all must have the same")


def share_buffers(module: nn.Module) -> None:
    """Copies rank 0's buffers to every process: on CPUs each process's batch norms have seen only its own videos."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def place_model(model: nn.Module, context: DistContext, channels_last: bool) -> nn.Module:
    """Returns `model` on this process's device, its backbone in the memory format, with SyncBatchNorm on several GPUs."""
    model = model.to(context.device)
    if channels_last:
        model.backbone.to(memory_format=torch.channels_last_3d)
    if context.device.type == "cuda" and context.world_size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def average_gradients(model: nn.Module, context: DistContext) -> nn.Module:
    """Returns `model`, wrapped so that gradients are averaged over processes where there are several."""
    if context.world_size == 1:
        return model
    return DistributedDataParallel(model, device_ids=[context.device] if context.device.type == "cuda" else None,
                                   gradient_as_bucket_view=True)


def run_on_all_ranks(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Returns this process's `work()`; an InputError in any process is raised in all, the first rank's, as AgreedError."""
    result, problem = None, None
    try:
        result = work()
    except InputError as error:
        problem = one_line(error)
    raise_first(problem, group)
    return result


def run_on_main(context: DistContext, work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Returns the main process's `work()`, in every process; an InputError there is raised in all."""
    answer = [run_on_all_ranks(lambda: work() if context.is_main else None, group)]
    if context.world_size > 1:
        dist.broadcast_object_list(answer, 0, group)
    return answer[0]


def run_long_on_main(context: DistContext, work: Callable[[], T]) -> T:
    """Returns `run_on_main` of work that may take longer than --dist_timeout: the others wait as long as the main process
    lives."""
    if context.world_size == 1:
        return work()
    patient = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=MAX_TIMEOUT_S))
    answer = run_on_main(context, work, patient)
    dist.destroy_process_group(patient)
    return answer


def raise_first(problem: str | None, group: dist.ProcessGroup | None = None) -> None:
    """Raises AgreedError in every process, of the first process's `problem` that is not None. All must call this."""
    for found in gather_objects(problem, group):
        if found is not None:
            raise AgreedError(found)
