"""The objective as its formulas read, one anchor, one video, one row at a time: what `models.objective` must equal.

Nothing is shared with `models` but the shape of a ModelOutput. Each anchor gathers its positives and negatives itself;
the tests compare values and gradients with it, `benchmarks/objective.py` speed and memory.

Shapes: B videos of this rank (rows first_row ... of the N gathered ones), V clips, D width, K prototypes, t timestamps.
"""
from __future__ import annotations

import torch
from torch import Tensor

TAU = 0.07
WEIGHTS = {"low": 0.3, "mid": 0.5, "high": 1.0}


def cosine(vector: Tensor, rows: Tensor) -> Tensor:
    """[D] and [..., D] -> [...]."""
    return (rows / rows.norm(dim=-1, keepdim=True)) @ (vector / vector.norm())


def contrast(anchors: Tensor, candidates: Tensor, first_row: int, reverse: Tensor | None) -> Tensor:
    """Mean over the B * V anchors; `reverse` [B, V, D] are further negatives of their own video."""
    losses = []
    for i in range(len(anchors)):
        own = first_row + i
        others = torch.cat([candidates[:own], candidates[own + 1:]]).flatten(0, 1)
        for v in range(anchors.shape[1]):
            positives_of_video = torch.cat([candidates[own, :v], candidates[own, v + 1:]])
            negatives = others if reverse is None else torch.cat([others, reverse[i]])
            positive = (cosine(anchors[i, v], positives_of_video) / TAU).exp().sum()
            negative = (cosine(anchors[i, v], negatives) / TAU).exp().sum()
            losses.append(-(positive / (positive + negative)).log())
    return torch.stack(losses).mean()


def timestamps(embeddings: Tensor) -> Tensor:
    """`embeddings` [B, V+1, D, t]; mean over both ways, videos and timestamps."""
    losses = []
    for video in embeddings:
        clips, overview = video[:-1], video[-1].T
        pooled = torch.cat([clip.unflatten(1, (-1, len(clips))).mean(2) for clip in clips], dim=1).T     # [t, D]
        for m in range(len(overview)):
            for row, rows in ((pooled[m], overview), (overview[m], pooled)):
                e = (cosine(row, rows) / TAU).exp()
                losses.append(-(e[m] / e.sum()).log())
    return torch.stack(losses).mean()


def sinkhorn(scores: Tensor) -> Tensor:
    """[N, K] -> assignments [N, K], each row summing to 1."""
    q = ((scores - scores.max()) / 0.05).exp()
    for _ in range(3):
        q = q / q.sum(0, keepdim=True) / q.shape[1]
        q = q / q.sum(1, keepdim=True) / q.shape[0]
    return q / q.sum(1, keepdim=True)


def prototypes(scores: Tensor, assignments: Tensor) -> Tensor:
    """`scores`, `assignments` [B, V, K]; mean over the ordered pairs of clips and the videos."""
    losses = []
    for s, q in zip(scores, assignments):
        for v in range(len(s)):
            for w in range(len(s)):
                if v != w:
                    losses.append(-(q[v] * (s[w] / 0.1).log_softmax(0)).sum())
    return torch.stack(losses).mean()


def graph_rows(high: Tensor, candidates: Tensor, labels: Tensor, first_row: int, threshold: float) -> list[Tensor]:
    """The rows [N] of the graph, from the clips 1 of this rank and the clips 2 of all."""
    rows = []
    for i, anchor in enumerate(high):
        own = first_row + i
        similarity = (cosine(anchor, candidates) / TAU).softmax(0)
        keep = similarity >= threshold
        keep[own] = True
        row = similarity * (keep & (labels == labels[own]))
        rows.append(row / row.sum())
    return rows


def objective(output, gathered: dict[str, Tensor], queue: Tensor, first_row: int, threshold: float) -> Tensor:
    """The total with queue and graph: `gathered` has every rank's "instance_LEVEL", "graph_LEVEL" and "scores".

    `queue` [Q - N, V, K] are the older scores, which the assignments see besides the N new ones.
    """
    levels = ("low", "mid", "high")
    reverse = {"low": output.reversed_low, "mid": output.reversed_mid, "high": None}
    rows = torch.cat([gathered["scores"].detach(), queue])
    assignments = torch.stack([sinkhorn(rows[:, v]) for v in range(rows.shape[1])], dim=1)[:len(gathered["scores"])]
    labels = torch.stack([(q[0] + q[1]).argmax() for q in assignments])
    own = slice(first_row, first_row + len(output.scores))
    graph = graph_rows(output.instance.high[:, 0].detach(), gathered["instance_high"][:, 1].detach(), labels,
                       first_row, threshold)
    total = 0.5 * prototypes(output.scores, assignments[own])
    for name, instance, stamps, nodes in zip(levels, output.instance, output.timestamp, output.graph_embeddings):
        term = contrast(instance, gathered[f"instance_{name}"], first_row, reverse[name]) + timestamps(stamps)
        edges = [-(row * (cosine(node, gathered[f"graph_{name}"][:, 1]) / TAU).log_softmax(0)).sum()
                 for row, node in zip(graph, nodes[:, 0])]
        total = total + WEIGHTS[name] * (term + torch.stack(edges).mean())
    return total
