"""The objective, forward and backward, against the loop over anchors with which the tests compare it.

    python -m benchmarks.objective [--quick]

64 local of 512 gathered videos, two clips, K = 1000 prototypes, 1024 queue rows, all losses with the graph. The gather
is a concatenation in memory: communication between processes is measured by `benchmarks.growth`. Peak memory is that of
one process per version.
"""
from __future__ import annotations

import statistics

import torch
from torch import Tensor

from benchmarks.measure import format_table, milliseconds, peak_mib, quick_flag, ratio, time_in_turns
from benchmarks.step import BenchmarkStep
from models.levels import LEVELS, LevelFeatures
from models.multilevel import ModelOutput
from models.objective import Objective
from tests import loop_objective

VIDEOS, ALL_VIDEOS, CLIPS, WIDTH, PROTOTYPES, QUEUE_ROWS = 64, 512, 2, 128, 1000, 1024
FIRST_ROW = 3 * VIDEOS
THRESHOLD = 0.05


def random_output(videos: int, prototypes: int, device: str = "cpu") -> ModelOutput:
    """Returns leaf tensors of the shapes that a model returns for `videos`."""
    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).requires_grad_()

    def levels(*shape: int) -> LevelFeatures:
        return LevelFeatures(*(leaf(*shape) for _ in LEVELS))

    scores = (torch.rand(videos, CLIPS, prototypes, device=device) * 2 - 1).requires_grad_()
    return ModelOutput(levels(videos, CLIPS, WIDTH), leaf(videos, CLIPS, WIDTH), leaf(videos, CLIPS, WIDTH),
                       LevelFeatures(*(leaf(videos, CLIPS + 1, WIDTH, t) for t in (8, 4, 2))), scores,
                       levels(videos, CLIPS, WIDTH))


def rows_by_name(output: ModelOutput) -> dict[str, Tensor]:
    """Returns what is gathered, by name."""
    return {**{f"instance_{level}": x for level, x in zip(LEVELS, output.instance)},
            **{f"graph_{level}": x for level, x in zip(LEVELS, output.graph_embeddings)}, "scores": output.scores}


def make_versions() -> dict:
    """Returns name -> function that computes the total, and its gradients, of the same values: "ours" and "loops"."""
    torch.manual_seed(0)
    local, remote = random_output(VIDEOS, PROTOTYPES), random_output(ALL_VIDEOS, PROTOTYPES)
    every = {name: x.detach() for name, x in rows_by_name(remote).items()}
    embeddings = torch.stack([x for name, x in every.items() if name != "scores"], dim=1)
    older = torch.rand(QUEUE_ROWS - ALL_VIDEOS, CLIPS, PROTOTYPES) * 2 - 1
    objective = Objective(QUEUE_ROWS, 0, 0, THRESHOLD)

    def insert(rows: Tensor, others: Tensor) -> Tensor:
        return torch.cat([others[:FIRST_ROW], rows, others[FIRST_ROW + VIDEOS:]])

    def ours() -> Tensor:
        objective.queue.rows = older  # the queue is full
        total = objective(local, 99, lambda rows: insert(rows, embeddings if rows.ndim == 4 else every["scores"]),
                          FIRST_ROW // VIDEOS).total
        total.backward()
        return total.detach()

    def loops() -> Tensor:
        own = rows_by_name(local)
        total = loop_objective.objective(local, {name: insert(own[name], x) for name, x in every.items()}, older,
                                         FIRST_ROW, THRESHOLD)
        total.backward()
        return total.detach()

    return {"ours": ours, "loops": loops}


def network_pass_s(videos: int) -> float:
    """Returns the seconds of a forward and backward pass of r3d18 on `videos` of 16 frames at 112 px, in float32."""
    step = BenchmarkStep("r3d18", videos)

    def forward_and_backward() -> None:
        output = step.forward("float32")
        sum(x.sum() for x in (*output.instance, *output.timestamp, *output.graph_embeddings, output.scores)).backward()

    return statistics.median(time_in_turns({"pass": forward_and_backward}, 1)["pass"])


def main() -> None:
    quick = quick_flag(__doc__)
    torch.set_num_threads(1)
    versions = make_versions()
    totals = {name: job().item() for name, job in versions.items()}
    seconds = time_in_turns(versions, 2 if quick else 7)
    setup = ("from benchmarks.objective import make_versions; versions = make_versions(); "
             "torch.mm(torch.ones(64, 64), torch.ones(64, 64))")
    rows = [[label, milliseconds(seconds[name]), f"{ratio(seconds['loops'], seconds[name]):.1f}x",
             f"{peak_mib(setup, f'versions[{name!r}]()'):.0f}"]
            for label, name in (("loop over anchors", "loops"), ("ours", "ours"))]
    print(format_table(["forward and backward", "ms", "speed", "peak MiB"], rows))
    line = f"\nTotals: {totals['ours']:.5f} (ours) and {totals['loops']:.5f} (loops)."
    if not quick:
        videos = 2
        network_s = network_pass_s(videos)
        step = network_s / videos * VIDEOS
        line += (f" A forward and backward pass of r3d18 on {videos} videos takes {network_s:.2f} s on "
                 f"the same thread, so {step:.0f} s for {VIDEOS}: the objective is "
                 f"{100 * statistics.median(seconds['ours']) / step:.3f} % of such a step.")
    print(line)


if __name__ == "__main__":
    main()
