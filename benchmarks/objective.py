"""The objective, forward and backward, against the loop over anchors that the tests hold as the oracle.

    python -m benchmarks.objective [--quick]

64 local of 512 gathered videos, two clips, K = 1000 prototypes, 1024 queue rows, all losses with the graph. The gather
is a concatenation in memory: what passes between processes is measured by `benchmarks.growth`. Peak memory is that of
a process of its own for each version.
"""
from __future__ import annotations

import statistics
import subprocess
import sys

import torch
from torch import Tensor

from benchmarks.measure import milliseconds, quick_flag, ratio, table, time_in_turns
from models.levels import LEVELS, LevelFeatures
from models.multilevel import ModelOutput, MultiLevelModel
from models.objective import Objective
from tests import loop_objective

VIDEOS, ALL_VIDEOS, CLIPS, WIDTH, PROTOTYPES, QUEUE_ROWS = 64, 512, 2, 128, 1000, 1024
FIRST_ROW = 3 * VIDEOS
THRESHOLD = 0.05


def random_output(videos: int, prototypes: int = PROTOTYPES, device: str = "cpu") -> ModelOutput:
    """Returns leaves of the shapes that a model gives for `videos`."""
    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).requires_grad_()

    def levels(*shape: int) -> LevelFeatures:
        return LevelFeatures(*(leaf(*shape) for _ in LEVELS))

    scores = (torch.rand(videos, CLIPS, prototypes, device=device) * 2 - 1).requires_grad_()
    return ModelOutput(levels(videos, CLIPS, WIDTH), leaf(videos, CLIPS, WIDTH), leaf(videos, CLIPS, WIDTH),
                       LevelFeatures(*(leaf(videos, CLIPS + 1, WIDTH, t) for t in (8, 4, 2))), scores,
                       levels(videos, CLIPS, WIDTH))


def ours(local: ModelOutput, every: dict[str, Tensor], objective: Objective) -> Tensor:
    """Returns the total, after backward; the queue is full and comes with each call's scores anew."""
    embeddings = torch.stack([x for name, x in every.items() if name != "scores"], dim=1)

    def gather(rows: Tensor) -> Tensor:
        others = embeddings if rows.ndim == 4 else every["scores"]
        return torch.cat([others[:FIRST_ROW], rows, others[FIRST_ROW + VIDEOS:]])

    total = objective(local, 99, gather, FIRST_ROW // VIDEOS).total
    total.backward()
    return total.detach()


def loops(local: ModelOutput, every: dict[str, Tensor], queue: Tensor) -> Tensor:
    """Returns the total, after backward."""
    rows = {f"instance_{level}": x for level, x in zip(LEVELS, local.instance)}
    rows |= {f"graph_{level}": x for level, x in zip(LEVELS, local.graph)} | {"scores": local.scores}
    gathered = {name: torch.cat([x[:FIRST_ROW], rows[name], x[FIRST_ROW + VIDEOS:]]) for name, x in every.items()}
    total = loop_objective.objective(local, gathered, queue, FIRST_ROW, THRESHOLD)
    total.backward()
    return total.detach()


def jobs() -> dict:
    """Returns both versions on the same numbers."""
    torch.manual_seed(0)
    local, remote = random_output(VIDEOS), random_output(ALL_VIDEOS)
    every = {f"instance_{level}": x.detach() for level, x in zip(LEVELS, remote.instance)}
    every |= {f"graph_{level}": x.detach() for level, x in zip(LEVELS, remote.graph)}
    every["scores"] = remote.scores.detach()
    older = torch.rand(QUEUE_ROWS - ALL_VIDEOS, CLIPS, PROTOTYPES) * 2 - 1
    objective = Objective(QUEUE_ROWS, 0, 0, THRESHOLD)

    def run_ours() -> Tensor:
        objective.queue.rows = older
        return ours(local, every, objective)

    return {"ours": run_ours, "loops": lambda: loops(local, every, older)}


def peak_mib(version: str) -> float:
    """Returns the MiB that a version takes at most beyond its inputs, in a process of its own."""
    code = ("import torch; from benchmarks.measure import raised_mib; from benchmarks.objective import jobs; "
            f"torch.set_num_threads(1); job = jobs()[{version!r}]; torch.mm(torch.ones(64, 64), torch.ones(64, 64)); "
            "print(raised_mib(job))")
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def step_s(videos: int) -> float:
    """Returns the seconds of a forward and backward pass of r3d18 on `videos` of 16 frames at 112 px, in float32."""
    model = MultiLevelModel("r3d18").train()
    views = torch.randn(videos, CLIPS + 1, 3, 16, 112, 112)

    def job() -> None:
        output = model(views)
        sum(x.sum() for x in (*output.instance, *output.timestamp, *output.graph, output.scores)).backward()

    return statistics.median(time_in_turns({"step": job}, 1)["step"])


def main() -> None:
    quick = quick_flag(__doc__)
    torch.set_num_threads(1)
    both = jobs()
    totals = {name: job().item() for name, job in both.items()}
    seconds = time_in_turns(both, 2 if quick else 7)
    rows = [["loop over anchors", milliseconds(seconds["loops"]), "1.0x", f"{peak_mib('loops'):.0f}"],
            ["ours", milliseconds(seconds["ours"]), f"{ratio(seconds['loops'], seconds['ours']):.1f}x",
             f"{peak_mib('ours'):.0f}"]]
    print(table(["forward and backward", "ms", "speed", "peak MiB"], rows))
    line = f"\nTotals: {totals['ours']:.5f} (ours) and {totals['loops']:.5f} (loops)."
    if not quick:
        videos = 2
        step = step_s(videos) / videos * VIDEOS
        line += (f" A forward and backward pass of r3d18 on {videos} videos takes {step * videos / VIDEOS:.2f} s on "
                 f"the same thread, so {step:.0f} s for {VIDEOS}: the objective is "
                 f"{100 * statistics.median(seconds['ours']) / step:.3f} % of such a step.")
    print(line)


if __name__ == "__main__":
    main()
