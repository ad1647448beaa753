"""The objective, forward and backward, against the loop over anchors with which the tests compare it.

64 local of 512 gathered videos, two clips, K = 1000 prototypes, 1024 queue rows, all losses with the graph. The gather
is a concatenation in memory: communication between processes is measured by `benchmarks.growth`. Peak memory is that of
one process per version.
"""
from __future__ import annotations

import statistics
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import peak_mib, print_timed_table, run_benchmark, time_in_turns
from benchmarks.step import CLIPS, BenchmarkStep
from models.levels import LEVELS, LevelFeatures
from models.multilevel import ModelOutput
from models.objective import Objective
from tests import loop_objective

VIDEOS, WIDTH = 64, 128


def random_output(videos: int, prototypes: int) -> ModelOutput:
    """Returns leaf tensors of the shapes that a model returns for `videos`."""
    def leaf(*shape: int) -> Tensor:
        return torch.randn(videos, *shape).requires_grad_()

    instance, graph = (LevelFeatures(*(leaf(CLIPS, WIDTH) for _ in LEVELS)) for _ in range(2))
    return ModelOutput(instance, leaf(CLIPS, WIDTH), leaf(CLIPS, WIDTH),
                       LevelFeatures(*(leaf(CLIPS + 1, WIDTH, t) for t in (8, 4, 2))),
                       (torch.rand(videos, CLIPS, prototypes) * 2 - 1).requires_grad_(), graph)


def stack_embeddings(output: ModelOutput) -> Tensor:
    """Returns the embeddings that are gathered: instance and graph of the levels, [B, 6, V, D]."""
    return torch.stack([*output.instance, *output.graph_embeddings], dim=1)


class GatheredVideos:
    """Outputs for the videos of one rank, gathered rows of the others, and a full queue."""

    def __init__(self, videos: int = VIDEOS, all_videos: int = 512, prototypes: int = 1000, queue_rows: int = 1024,
                 rank: int = 3) -> None:
        torch.manual_seed(0)
        self.local, others = random_output(videos, prototypes), random_output(all_videos - videos, prototypes)
        self.others = {4: stack_embeddings(others).detach(), 3: others.scores.detach()}  # by number of dimensions
        self.older = torch.rand(queue_rows, CLIPS, prototypes) * 2 - 1
        self.objective = Objective(queue_rows, queue_start_epoch=0, graph_start_epoch=0)
        self.rank, self.first_row, self.num_older = rank, rank * videos, queue_rows - all_videos

    def gather(self, rows: Tensor) -> Tensor:
        """Returns the rows [N, ...] of all ranks from this rank's [B, ...]."""
        others = self.others[rows.ndim]
        return torch.cat([others[:self.first_row], rows, others[self.first_row:]])

    def ours(self) -> Tensor:
        """Returns the total of `models.objective`."""
        self.objective.queue.rows = self.older
        return self.objective(self.local, 0, self.gather, self.rank).total

    def loops(self) -> Tensor:
        """Returns the total of the loop over anchors, on the same values."""
        names = [f"{kind}_{level}" for kind in ("instance", "graph") for level in LEVELS]
        gathered = dict(zip(names, self.gather(stack_embeddings(self.local)).unbind(1)))
        gathered["scores"] = self.gather(self.local.scores)
        return loop_objective.objective(self.local, gathered, self.older[:self.num_older], self.first_row,
                                        self.objective.graph_threshold)


def main(quick: bool, _: Path) -> None:
    batch = GatheredVideos()
    totals = {"loop over anchors": batch.loops, "ours": batch.ours}
    setup = ("from benchmarks.objective import GatheredVideos; batch = GatheredVideos(); "
             "torch.mm(torch.ones(64, 64), torch.ones(64, 64))")
    seconds = print_timed_table(
        ["forward and backward", "ms", "speed", "peak MiB"],
        {name: lambda total=total: total().backward() for name, total in totals.items()},
        2 if quick else 7, "loop over anchors",
        lambda name, _, ratio: [f"{ratio:.1f}x", f"{peak_mib(setup, f'batch.{totals[name].__name__}().backward()'):.0f}"])
    print(f"Totals: {batch.ours():.5f} (ours) and {batch.loops():.5f} (loops).", end="\n" if quick else " ")
    if not quick:
        step = BenchmarkStep("r3d18", 2)
        [pass_s] = time_in_turns({"pass": lambda: step.backward("float32")}, 1)["pass"]
        all_s = pass_s / 2 * VIDEOS
        print(f"A forward and backward pass of r3d18 on 2 videos takes {pass_s:.2f} s on the same thread, so {all_s:.0f} s "
              f"for {VIDEOS}: the objective is {statistics.median(seconds['ours']) / all_s:.3%} of such a step.")


if __name__ == "__main__":
    run_benchmark(main, __doc__)
