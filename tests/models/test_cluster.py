"""Sinkhorn-Knopp against plain alternating normalization, and the queue's order and fill."""
from __future__ import annotations

import io

import pytest
import torch

from models.cluster import ScoreQueue, sinkhorn_knopp


def random_scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def naive(scores: torch.Tensor) -> torch.Tensor:
    """[N, K]: three rounds of prototypes to 1/K and samples to 1/N, then each sample to 1."""
    q = ((scores - scores.max()) / 0.05).exp()
    for _ in range(3):
        q = q / q.sum(0, keepdim=True) / q.shape[1]
        q = q / q.sum(1, keepdim=True) / q.shape[0]
    return q * q.shape[0]


@pytest.mark.parametrize("n, k", [(4, 4), (3, 7), (40, 5), (1, 3)])
def test_assignments_equal_alternating_normalization(n, k):
    scores = random_scores(n, 2, k)
    assignments = sinkhorn_knopp(scores)
    torch.testing.assert_close(assignments, torch.stack([naive(scores[:, v]) for v in (0, 1)], 1))
    torch.testing.assert_close(assignments.sum(-1), torch.ones(n, 2, dtype=torch.float64))


def test_prototypes_are_used_about_equally_though_all_prefer_one():
    scores = 0.1 * random_scores(60, 6)
    scores[:, 2] += 0.8
    assert (scores.argmax(1) == 2).all()
    used = sinkhorn_knopp(scores).sum(0)
    assert (used - 10).abs().max() < 1.5


def test_constant_added_to_scores_and_order_of_samples_change_nothing():
    scores = random_scores(9, 2, 5)
    assignments = sinkhorn_knopp(scores)
    torch.testing.assert_close(sinkhorn_knopp(scores + 3), assignments)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sinkhorn_knopp(scores[order]), assignments[order])
    torch.testing.assert_close(sinkhorn_knopp(torch.full((4, 8), 0.3)), torch.full((4, 8), 1 / 8))


def test_the_first_samples_alone_are_those_of_all():
    scores = random_scores(9, 2, 5)
    for wanted in (1, 4, 9):
        torch.testing.assert_close(sinkhorn_knopp(scores, wanted), sinkhorn_knopp(scores)[:wanted])


def test_float32_at_least_finite_at_both_ends_and_no_gradient():
    scores = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]], requires_grad=True)
    assignments = sinkhorn_knopp(scores.bfloat16())
    assert assignments.dtype == torch.float32 and torch.isfinite(assignments).all() and not assignments.requires_grad


def numbered(*values: int) -> torch.Tensor:
    """Scores [N, V=2, K=3] that hold the given number everywhere."""
    return torch.tensor(values, dtype=torch.float32)[:, None, None].expand(-1, 2, 3)


def numbers(rows: torch.Tensor) -> list[int]:
    assert rows.shape[1:] == (2, 3)
    return rows[:, 1, 2].int().tolist()


def test_queue_is_first_in_first_out_and_holds_filled_rows_only():
    queue = ScoreQueue(5)
    assert numbers(queue.extend(numbered(1, 2))) == [1, 2]
    assert numbers(queue.extend(numbered(3, 4))) == [3, 4, 1, 2]
    assert numbers(queue.extend(numbered(5, 6))) == [5, 6, 3, 4, 1]
    assert numbers(queue.extend(numbered(7, 8))) == [7, 8, 5, 6, 3]


def test_batch_larger_than_the_queue_is_whole_and_leaves_q_rows():
    queue = ScoreQueue(3)
    queue.extend(numbered(1, 2))
    assert numbers(queue.extend(numbered(3, 4, 5, 6))) == [3, 4, 5, 6]
    rows = queue.state_dict()["rows"]
    assert len(rows) == 3 and rows.untyped_storage().nbytes() == rows.nbytes  # torch.save writes the whole storage
    assert numbers(queue.extend(numbered(7))) == [7, 3, 4]


def test_queue_carries_no_gradient_and_is_not_changed_from_outside():
    queue = ScoreQueue(4)
    scores = numbered(1, 2).clone().requires_grad_()
    assert not queue.extend(scores).requires_grad
    with torch.no_grad():
        scores.fill_(9)
    assert numbers(queue.extend(numbered(3))) == [3, 1, 2]


def test_state_goes_through_a_file():
    queue, restored = ScoreQueue(4), ScoreQueue(4)
    empty = queue.state_dict()
    queue.extend(numbered(1, 2))
    file = io.BytesIO()
    torch.save(queue.state_dict(), file)
    file.seek(0)
    restored.load_state_dict(torch.load(file, weights_only=True), torch.device("cpu"))
    assert numbers(restored.extend(numbered(3, 4, 5))) == numbers(queue.extend(numbered(3, 4, 5))) == [3, 4, 5, 1]
    restored.load_state_dict(empty, torch.device("cpu"))
    assert numbers(restored.extend(numbered(8))) == [8]
