"""Run by torchrun in test_distributed.py: one objective over two ranks, its values and gradients, saved per rank."""
from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from models.levels import LevelFeatures  # noqa: E402
from models.multilevel import ModelOutput  # noqa: E402
from models.objective import Objective  # noqa: E402
from utils.distributed import DistContext, average, gather_objects, gather_rows, true_on_any_rank  # noqa: E402

VIDEOS, CLIPS, DIM, PROTOTYPES = 3, 2, 8, 6


def make_output(videos: int, seed: int = 0) -> tuple[ModelOutput, list[torch.Tensor]]:
    """Random float64 outputs of `videos` videos, and the leaves that they are made of."""
    draw = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(videos, *shape, generator=draw, dtype=torch.float64)

    leaves = [leaf(CLIPS, DIM) for _ in range(8)] + [leaf(CLIPS + 1, DIM, t) for t in (8, 4, 2)]
    leaves.append(leaf(CLIPS, PROTOTYPES).tanh())
    return assemble(leaves), leaves


def assemble(leaves: list[torch.Tensor]) -> ModelOutput:
    """A ModelOutput of twelve tensors."""
    return ModelOutput(instance=LevelFeatures(*leaves[:3]), reversed_low=leaves[3], reversed_mid=leaves[4],
                       graph_embeddings=LevelFeatures(*leaves[5:8]),
                       timestamp=LevelFeatures(*leaves[8:11]), scores=leaves[11])


def main(out: str) -> None:
    """Two steps, so that the queue holds something in the second."""
    dist.init_process_group("gloo")
    rank, own = dist.get_rank(), slice(dist.get_rank() * VIDEOS, (dist.get_rank() + 1) * VIDEOS)
    results = {}
    for mode in ("local", "all"):
        objective = Objective(queue_rows=10, queue_start_epoch=0, graph_start_epoch=0, graph_threshold=0.1)
        for seed in (0, 1):
            leaves = [x[own].clone().requires_grad_() for x in make_output(2 * VIDEOS, seed)[1]]
            loss = objective(assemble(leaves), 0, partial(gather_rows, all_gradients=mode == "all"), rank)
            loss.total.backward()
        results[mode] = {"terms": {name: x.detach() for name, x in loss.terms.items()}, "total": loss.total.detach(),
                         "gradients": [x.grad for x in leaves], "queue": objective.queue.rows}
    results["average"] = average(torch.tensor([float(rank), 1.0]))
    context = DistContext(rank, 2, torch.device("cpu"))
    results["any"] = true_on_any_rank([rank == 1, rank == 0, False], context)
    results["objects"] = gather_objects({"rank": rank})
    torch.save(results, f"{out}/rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
