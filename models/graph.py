"""The graph constraint: high-level similarity between videos, filtered by cluster label, as target for every level.

Shapes: B videos of this rank, N videos over all ranks (this rank's are N's rows first_row ... first_row + B - 1),
D embedding width.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.losses import TEMPERATURE, unit


def log_similarity(anchors: Tensor, candidates: Tensor) -> Tensor:
    """Returns log softmax_j(a_i . c_j / tau) [B, N] of embeddings [B, D] and [N, D], each L2-normalised first."""
    return F.log_softmax(unit(anchors) @ unit(candidates).T / TEMPERATURE, dim=1)


@torch.no_grad()
def infer_adjacency(similarity: Tensor, labels: Tensor, first_row: int, threshold: float) -> Tensor:
    """Returns edge weights G [B, N] from B videos to all N, every row summing to 1, without gradient.

    `similarity` [B, N] holds rows of the row-softmaxed similarity A of clip 1 to clip 2, `labels` [N] the cluster
    label of every video. Off-diagonal entries below `threshold` become 0, the diagonal stays; entries between
    different clusters become 0; what is left of each row is divided by its sum.
    """
    b, n = similarity.shape
    own = torch.arange(first_row, first_row + b, device=similarity.device)
    diagonal = own[:, None] == torch.arange(n, device=similarity.device)
    same_cluster = labels[own][:, None] == labels
    edges = similarity * (same_cluster & (diagonal | (similarity >= threshold)))
    return edges / edges.sum(dim=1, keepdim=True)


def graph_contrast(adjacency: Tensor, anchors: Tensor, candidates: Tensor, reduction: str = "row") -> Tensor:
    """Returns -sum_j G_ij log P_ij, where P_ij = softmax_j(g_i1 . g_j2 / tau), as a scalar.

    `adjacency` G [B, N]; `anchors` [B, D] are clip 1 of this rank's videos, `candidates` [N, D] clip 2 of all videos.
    `reduction` "row" sums over j and averages over i, a cross-entropy; "element" averages over all B * N entries, as
    the official code does, which is N times smaller and so weakens the constraint as the batch grows.
    """
    entries = -adjacency * log_similarity(anchors, candidates)
    return entries.mean() if reduction == "element" else entries.sum(dim=1).mean()
