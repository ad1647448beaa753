"""The graph against loops over the formula, its properties, and the loss on it."""
from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from models.graph import graph_contrast, infer_adjacency, log_similarity


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def graph_by_loops(similarity, labels, first_row, threshold) -> list[list[float]]:
    rows = []
    for i, similarities in enumerate(similarity.tolist()):
        row = []
        for j, a in enumerate(similarities):
            if j != first_row + i and a < threshold:
                a = 0.0
            if labels[j] != labels[first_row + i]:
                a = 0.0
            row.append(a)
        rows.append([a / sum(row) for a in row])
    return rows


@pytest.mark.parametrize("b, n, first_row", [(6, 6, 0), (2, 6, 2), (3, 6, 3)])
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.2, 1.0])
def test_graph_equals_loops_and_rows_sum_to_one(b, n, first_row, threshold):
    similarity = (2 * randn(b, n)).softmax(1)
    labels = torch.tensor([0, 1, 0, 0, 1, 0])
    adjacency = infer_adjacency(similarity, labels, first_row, threshold)
    torch.testing.assert_close(adjacency, torch.tensor(graph_by_loops(similarity, labels, first_row, threshold),
                                                   dtype=torch.float64))
    torch.testing.assert_close(adjacency.sum(1), torch.ones(b, dtype=torch.float64))
    diagonal = adjacency[torch.arange(b), torch.arange(b) + first_row]
    assert (diagonal > 0).all()
    if threshold == 1.0:
        assert (adjacency > 0).sum() == b and (diagonal == 1).all()


def test_diagonal_stays_below_the_threshold_and_a_value_at_it_is_an_edge():
    similarity = torch.tensor([[0.1, 0.5, 0.4], [0.3, 0.3, 0.4], [0.25, 0.25, 0.5]])
    adjacency = infer_adjacency(similarity, torch.zeros(3, dtype=torch.long), 0, 0.4)
    torch.testing.assert_close(adjacency, torch.tensor([[0.1, 0.5, 0.4], [0, 3 / 7, 4 / 7], [0, 0, 1]]))


def test_graph_carries_no_gradient_and_follows_a_permutation():
    similarity = (2 * randn(5, 5)).softmax(1).requires_grad_()
    labels = torch.tensor([0, 1, 0, 0, 1])
    adjacency = infer_adjacency(similarity, labels, 0, 0.1)
    assert not adjacency.requires_grad
    order = torch.tensor([4, 2, 0, 1, 3])
    assert torch.equal(infer_adjacency(similarity[order][:, order], labels[order], 0, 0.1), adjacency[order][:, order])


def contrast_by_loops(adjacency, anchors, candidates) -> float:
    """Sum over all entries of -G log P."""
    total = 0.0
    for i in range(len(anchors)):
        e = [math.exp((anchors[i] @ c / (anchors[i].norm() * c.norm())).item() / 0.07) for c in candidates]
        total -= sum(adjacency[i, j].item() * math.log(e[j] / sum(e)) for j in range(len(candidates)))
    return total


def test_contrast_equals_loops_and_reductions_differ_by_n():
    adjacency, anchors, candidates = randn(3, 7).softmax(1), randn(3, 4, seed=1), randn(7, 4, seed=2)
    expected = contrast_by_loops(adjacency, anchors, candidates)
    row, element = (graph_contrast(adjacency, anchors, candidates, reduction) for reduction in ("row", "element"))
    assert row.item() == pytest.approx(expected / 3, rel=1e-12)
    assert element.item() == pytest.approx(expected / 21, rel=1e-12)
    assert graph_contrast(adjacency, anchors, candidates) == row
    torch.testing.assert_close(graph_contrast(adjacency, anchors * 5, candidates * 0.1), row)


def test_contrast_closed_form():
    """Equal embeddings: log N whatever the adjacency; the adjacency P itself: P's entropy."""
    adjacency = randn(4, 6).softmax(1)
    same = torch.ones(1, 3, dtype=torch.float64)
    assert graph_contrast(adjacency, same.expand(4, 3), same.expand(6, 3)).item() == pytest.approx(math.log(6))
    log_p = log_similarity(randn(4, 3, seed=1), randn(6, 3, seed=2))
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(4, dtype=torch.float64))
    entropy = -(log_p.exp() * log_p).sum(1).mean()
    torch.testing.assert_close(graph_contrast(log_p.exp(), randn(4, 3, seed=1), randn(6, 3, seed=2)), entropy)


@pytest.mark.parametrize("reduction", ["row", "element"])
def test_gradients_equal_finite_differences(reduction):
    adjacency = randn(2, 5).softmax(1)
    assert gradcheck(lambda a, c: graph_contrast(adjacency, a, c, reduction),
                     [randn(2, 3, seed=1).requires_grad_(), randn(5, 3, seed=2).requires_grad_()])
