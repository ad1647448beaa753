"""The objective against a loop over anchors; no waiting for the device, loop over the batch or large intermediate result."""
from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.levels import LEVELS, LevelFeatures
from models.multilevel import ModelOutput
from models.objective import TERM_WEIGHTS, Objective, weighted_total
from tests import loop_objective

WIDTH, PROTOTYPES = 12, 20


def random_output(b: int, v: int, device: str = "cpu", dtype: torch.dtype = torch.float64,
                  prototypes: int = PROTOTYPES) -> ModelOutput:
    generator = torch.Generator().manual_seed(b)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator).to(device).requires_grad_()

    def levels(*shape: int) -> LevelFeatures:
        return LevelFeatures(*(leaf(*shape) for _ in LEVELS))

    return ModelOutput(levels(b, v, WIDTH), leaf(b, v, WIDTH), leaf(b, v, WIDTH),
                       LevelFeatures(*(leaf(b, v + 1, WIDTH, v * t) for t in (4, 2, 1))),
                       leaf(b, v, prototypes), levels(b, v, WIDTH))


def leaves(output: ModelOutput) -> list[torch.Tensor]:
    return tree_leaves(output)


@pytest.mark.parametrize("v", [2, 3])
def test_total_and_gradients_equal_the_loop_over_anchors(v):
    """Rank 1 of three with 3 videos each, a queue half full, two prototypes, so that the graph has edges."""
    local, remote, first_row = random_output(3, v, prototypes=2), random_output(9, v, prototypes=2), 3
    older = torch.randn(5, v, 2, dtype=torch.float64)
    names = [*(f"instance_{level}" for level in LEVELS), *(f"graph_{level}" for level in LEVELS), "scores"]
    rows = dict(zip(names, (*local.instance, *local.graph_embeddings, local.scores)))
    others = dict(zip(names, (x.detach() for x in (*remote.instance, *remote.graph_embeddings, remote.scores))))
    gathered = {name: torch.cat([x[:3], rows[name], x[6:]]) for name, x in others.items()}

    def gather(x: torch.Tensor) -> torch.Tensor:
        return gathered["scores"] if x.ndim == 3 else torch.stack([gathered[name] for name in names[:-1]], dim=1)

    objective = Objective(queue_rows=14, queue_start_epoch=0, graph_start_epoch=0, graph_threshold=0.001)
    objective.queue.rows = older
    loss = objective(local, 0, gather, 1)
    expected = loop_objective.objective(local, gathered, older, first_row, 0.001)
    assert loss.metrics["graph_edges_per_row"] > 1
    torch.testing.assert_close(loss.total, expected)
    ours, theirs = (torch.autograd.grad(total, leaves(local)) for total in (loss.total, expected))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b)


class Operations(TorchDispatchMode):
    """Counts operations, and knows the largest tensor that one gave."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.count[func.overloadpacket.__name__] += 1
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.largest = max(self.largest, leaf.untyped_storage().nbytes() // leaf.element_size())
        return result


def operations(b: int, n: int, device: str = "meta", backward: bool = True) -> Operations:
    """Of one call with all terms, b local of n gathered videos, the queue full."""
    local, remote = random_output(b, 2, device, torch.float32), random_output(n, 2, device, torch.float32)
    everything = torch.stack([*remote.instance, *remote.graph_embeddings], dim=1)
    objective = Objective(queue_rows=2 * n, queue_start_epoch=0, graph_start_epoch=0)
    objective.queue.rows = torch.rand(n, 2, PROTOTYPES).to(device)
    with Operations() as seen:
        loss = objective(local, 0, lambda x: everything if x.ndim == 4 else remote.scores, 0)
        if backward:
            loss.total.backward()
    return seen


def test_nothing_waits_for_the_device():
    """On the meta device there are no values: whatever needs one on the host (item, a mask as index) raises.

    Backward included. On the CPU, where they would work, no such operation is counted either.
    """
    operations(4, 8)
    seen = operations(4, 8, "cpu").count
    assert sum(seen.values()) > 300
    assert not {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "item"} & seen.keys()
    with pytest.raises(RuntimeError):
        torch.ones(3, device="meta").sum().item()
    with pytest.raises(RuntimeError):
        x = torch.ones(3, device="meta")
        x[x > 0]


def test_no_loop_over_the_batch_and_no_tensor_of_all_pairs_times_width():
    small, large = operations(2, 4), operations(16, 64)
    assert small.count == large.count
    pairs = (16 * 2) * (64 * 2)
    assert large.largest <= max(pairs + 16 * 2 * 2, 2 * 64 * 2 * PROTOTYPES, 64 * 6 * 2 * WIDTH) < pairs * WIDTH / 4


def test_rows_of_this_rank_only():
    """Nothing reaches [N, N], and the largest tensor grows with N alone."""
    small, large = operations(2, 512), operations(2, 1024)
    assert large.largest == 2 * small.largest < 512 * 512


def test_one_matrix_product_a_similarity():
    """Forward: instance, mid and low contrast, the graph's target and its three levels; batched: what is a video's own.

    These are the reversed features of two levels, the timestamps of three, the pairs of assignments and scores.
    """
    count = operations(4, 8, backward=False).count
    assert count["mm"] == 3 + 1 + 3 and count["bmm"] == 2 + 3 + 1 and not count["matmul"]


def test_total_weights_every_term():
    for name, weight in TERM_WEIGHTS.items():
        assert weighted_total({name: torch.tensor(2.0)}) == 2 * weight
    assert TERM_WEIGHTS == {
        "instance_high": 1.0, "motion_mid": 0.5, "motion_low": 0.3, "prototype": 0.5,
        **{f"{kind}_{level}": weight for kind in ("timestamp", "graph")
           for level, weight in (("low", 0.3), ("mid", 0.5), ("high", 1.0))}}
