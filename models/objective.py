"""The objective: a model's outputs -> named loss terms, their weighted total, and metrics.

Shapes: B videos of this rank, N videos over all ranks (this rank's are rows rank * B ... rank * B + B - 1),
V clips of a video, D embedding width, K prototypes.
"""
from __future__ import annotations

from typing import Callable, Mapping, NamedTuple

import torch
from torch import Tensor

from models.cluster import ScoreQueue, sinkhorn_knopp
from models.graph import graph_contrast, infer_adjacency, log_similarity
from models.levels import LEVELS
from models.losses import instance_contrast, motion_contrast, swapped_prediction, timestamp_retrieval
from models.multilevel import ModelOutput
from models.numerics import at_least_float32

TERM_WEIGHTS = {
    "instance_high": 1.0, "motion_mid": 0.5, "motion_low": 0.3,
    "timestamp_high": 1.0, "timestamp_mid": 0.5, "timestamp_low": 0.3,
    "prototype": 0.5,
    "graph_high": 1.0, "graph_mid": 0.5, "graph_low": 0.3,
}


class Loss(NamedTuple):
    """Loss of one step. Every entry of `terms` and `metrics` is a scalar tensor on the device."""

    total: Tensor
    terms: dict[str, Tensor]     # unweighted, by name
    metrics: dict[str, Tensor]   # no gradient


class Objective:
    """All losses of a step, and the queue of scores that they keep between steps.

    `queue_start_epoch` is the first epoch whose assignments use the queue, `graph_start_epoch` (`--split`) the first
    with the graph constraint, `graph_threshold` (`--thres`) the smallest off-diagonal similarity that makes an edge.
    `weights` (`--loss_weights`) replaces some of TERM_WEIGHTS. A term of weight 0 is still computed and logged, and gives
    gradients of 0; but without any weight on the graph terms there is no graph. `reversed_negatives` False: motion contrast
    without the time-reversed features.
    """

    def __init__(self, queue_rows: int = 1024, queue_start_epoch: int = 10, graph_start_epoch: int = 20,
                 graph_threshold: float = 0.05, graph_reduction: str = "row", weights: Mapping[str, float] = {},
                 reversed_negatives: bool = True) -> None:
        self.queue = ScoreQueue(queue_rows)
        self.queue_start_epoch = queue_start_epoch
        self.graph_start_epoch = graph_start_epoch
        self.graph_threshold = graph_threshold
        self.graph_reduction = graph_reduction
        self.weights = {**TERM_WEIGHTS, **weights}
        self.reversed_negatives = reversed_negatives

    def uses_graph(self, epoch: int) -> bool:
        """Returns whether the graph constraint is on in `epoch` (0-based)."""
        return epoch >= self.graph_start_epoch and any(self.weights[f"graph_{level}"] for level in LEVELS)

    def __call__(self, output: ModelOutput, epoch: int, gather: Callable[[Tensor], Tensor], rank: int) -> Loss:
        """Returns the loss of this rank's videos; `gather` maps [B, ...] to every rank's rows [N, ...] in rank order."""
        b = output.scores.shape[0]
        own = slice(rank * b, (rank + 1) * b)
        use_graph = self.uses_graph(epoch)

        local = {f"instance_{level}": x for level, x in zip(LEVELS, output.instance)}
        if use_graph:
            local |= {f"graph_{level}": x for level, x in zip(LEVELS, output.graph_embeddings)}
        # One collective for all embeddings [B, 3 or 6, V, D], one for the scores.
        stacked = torch.stack([at_least_float32(x) for x in local.values()], dim=1)
        gathered = dict(zip(local, gather(stacked).unbind(1)))
        scores = gather(at_least_float32(output.scores).detach())                # [N, V, K]

        terms, metrics = {}, {}
        terms["instance_high"], metrics["accuracy_instance_high"] = instance_contrast(
            local["instance_high"], gathered["instance_high"], own.start)
        for level, negatives in (("mid", output.reversed_mid), ("low", output.reversed_low)):
            terms[f"motion_{level}"], metrics[f"accuracy_motion_{level}"] = motion_contrast(
                local[f"instance_{level}"], gathered[f"instance_{level}"], own.start,
                negatives if self.reversed_negatives else None)
        for level, embeddings in zip(LEVELS, output.timestamp):
            name = f"timestamp_{level}"
            terms[name], metrics[f"accuracy_{name}"] = timestamp_retrieval(embeddings)

        assignments = self.assign(scores, epoch)                                 # [N, V, K]
        terms["prototype"], metrics["accuracy_prototype"] = swapped_prediction(output.scores, assignments[own])
        labels = assignments[:, :2].sum(dim=1).argmax(dim=1)                     # [N], by clips 1 and 2
        metrics |= cluster_statistics(assignments, labels)

        if use_graph:
            high, high_all = local["instance_high"].detach(), gathered["instance_high"].detach()
            similarity = log_similarity(high[:, 0], high_all[:, 1]).exp()
            adjacency = infer_adjacency(similarity, labels, own.start, self.graph_threshold)
            metrics["graph_edges_per_row"] = (adjacency > 0).float().sum(dim=1).mean()
            for level in LEVELS:
                key = f"graph_{level}"
                terms[key] = graph_contrast(adjacency, local[key][:, 0], gathered[key][:, 1], self.graph_reduction)
        return Loss(weighted_total(terms, self.weights), terms, metrics)

    def assign(self, scores: Tensor, epoch: int) -> Tensor:
        """Returns assignments [N, V, K] of the gathered batch, computed with the queue from `queue_start_epoch` on."""
        rows = self.queue.extend(scores)
        return sinkhorn_knopp(rows if epoch >= self.queue_start_epoch else scores, len(scores))


def weighted_total(terms: dict[str, Tensor], weights: Mapping[str, float] = TERM_WEIGHTS) -> Tensor:
    """Returns the sum of the terms, each times its weight."""
    return sum(weights[name] * term for name, term in terms.items())


def cluster_statistics(assignments: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Returns the number of distinct cluster labels among the N videos, and the mean entropy (nats) of the assignments."""
    used = torch.zeros(assignments.shape[-1], device=labels.device).index_fill_(0, labels, 1.0).sum()
    entropy = torch.special.entr(assignments).sum(dim=-1).mean()
    return {"prototypes_in_use": used, "assignment_entropy": entropy}
