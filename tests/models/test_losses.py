"""Losses against loops over the formulas, closed forms, invariances and finite differences."""
from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from models.losses import instance_contrast, motion_contrast, swapped_prediction, timestamp_retrieval

TAU = 0.07


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a @ b / (a.norm() * b.norm())).item()


def contrast_by_loops(anchors, candidates, first_row, reversed_negatives=None) -> float:
    """Mean over the anchors of -log(positives / (positives + negatives))."""
    b, v, _ = anchors.shape
    losses = []
    for i in range(b):
        for clip in range(v):
            positives = negatives = 0.0
            for j in range(len(candidates)):
                for w in range(v):
                    e = math.exp(cosine(anchors[i, clip], candidates[j, w]) / TAU)
                    if j != first_row + i:
                        negatives += e
                    elif w != clip:
                        positives += e
            if reversed_negatives is not None:
                negatives += sum(math.exp(cosine(anchors[i, clip], reversed_negatives[i, w]) / TAU) for w in range(v))
            losses.append(-math.log(positives / (positives + negatives)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("v", [2, 3])
@pytest.mark.parametrize("b, n, first_row", [(3, 3, 0), (2, 6, 0), (2, 6, 2), (2, 6, 4)])
@pytest.mark.parametrize("motion", [False, True])
def test_contrast_equals_loops(v, b, n, first_row, motion):
    candidates = randn(n, v, 5)
    anchors = candidates[first_row:first_row + b]
    reverse = randn(b, v, 5, seed=1) if motion else None
    loss, _ = (motion_contrast(anchors, candidates, first_row, reverse) if motion
               else instance_contrast(anchors, candidates, first_row))
    assert loss.item() == pytest.approx(contrast_by_loops(anchors, candidates, first_row, reverse), rel=1e-12)


@pytest.mark.parametrize("v", [2, 3])
def test_contrast_of_equal_embeddings_counts_candidates(v):
    """All similarities equal: V - 1 positives among V N - 1 candidates, V more with the reversed features."""
    same = torch.ones(4, v, 6, dtype=torch.float64)
    loss, _ = instance_contrast(same, same, 0)
    assert loss.item() == pytest.approx(math.log((4 * v - 1) / (v - 1)))
    loss, _ = motion_contrast(same, same, 0, same)
    assert loss.item() == pytest.approx(math.log((5 * v - 1) / (v - 1)))


def test_contrast_does_not_see_lengths_order_of_videos_or_the_place_of_others():
    x, reverse = randn(5, 2, 4), randn(5, 2, 4, seed=1)
    loss, accuracy = motion_contrast(x, x, 0, reverse)
    scales = randn(5, 2, 1, seed=2).abs() + 0.1
    scaled = motion_contrast(x * scales, x * 3, 0, reverse * scales)
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = motion_contrast(x[order], x[order], 0, reverse[order])
    for other in (scaled, permuted):
        torch.testing.assert_close(other[0], loss)
        assert other[1] == accuracy


def test_contrast_accuracy():
    """Video 0's clips find each other, video 1's find video 0, and reversed features can be nearest."""
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.05]], [[1.0, 0.5], [-1.0, -0.5]]])
    away = -x.new_tensor([[[1.0, 0.0]] * 2, [[0.0, 1.0]] * 2])
    assert instance_contrast(x, x, 0)[1] == 0.5
    assert motion_contrast(x, x, 0, away)[1] == 0.5
    assert motion_contrast(x, x, 0, x)[1] == 0.0
    assert instance_contrast(x[1:], x, 1)[1] == 0.0


def test_contrast_survives_large_similarities_in_float32():
    x = torch.eye(4)[:, None].repeat(1, 2, 1)
    loss, accuracy = instance_contrast(x, x, 0)
    assert torch.isfinite(loss) and loss < 1e-5 and accuracy == 1
    assert instance_contrast(x.bfloat16(), x.bfloat16(), 0)[0].dtype == torch.float32


def timestamps_by_loops(embeddings: torch.Tensor) -> float:
    b, views, d, t = embeddings.shape
    v = views - 1
    total = 0.0
    for i in range(b):
        rows = []
        for clip in range(v):
            for start in range(0, t, v):
                rows.append(sum(embeddings[i, clip, :, start + k] for k in range(v)) / v)
        overview = [embeddings[i, v, :, m] for m in range(t)]
        for m in range(t):
            forth = sum(math.exp(cosine(rows[m], overview[k]) / TAU) for k in range(t))
            back = sum(math.exp(cosine(rows[k], overview[m]) / TAU) for k in range(t))
            positive = math.exp(cosine(rows[m], overview[m]) / TAU)
            total += -0.5 * (math.log(positive / forth) + math.log(positive / back))
    return total / (b * t)


@pytest.mark.parametrize("v, t", [(2, 2), (2, 8), (3, 3), (3, 6)])
def test_timestamps_equal_loops(v, t):
    x = randn(3, v + 1, 5, t)
    assert timestamp_retrieval(x)[0].item() == pytest.approx(timestamps_by_loops(x), rel=1e-12)


def test_timestamps_of_equal_embeddings():
    assert timestamp_retrieval(torch.ones(2, 3, 4, 8))[0].item() == pytest.approx(math.log(8))


def test_timestamps_of_an_aligned_overview_are_all_found():
    """Clip v's pair m of timestamps is the overview's row v t / V + m."""
    overview = torch.eye(4).expand(1, 4, 4)                                        # [1, D, t]
    former, latter = overview[:, :, :2].repeat_interleave(2, 2), overview[:, :, 2:].repeat_interleave(2, 2)
    loss, accuracy = timestamp_retrieval(torch.stack([former, latter, overview], 1))
    assert loss < 1e-4 and accuracy == 1
    swapped, accuracy = timestamp_retrieval(torch.stack([latter, former, overview], 1))
    assert swapped > 10 and accuracy == 0


def test_timestamps_do_not_see_lengths_of_views_or_order_of_videos():
    x = randn(4, 3, 5, 4)
    loss = timestamp_retrieval(x)[0]
    torch.testing.assert_close(timestamp_retrieval(x * randn(4, 3, 1, 1, seed=1).abs())[0], loss)
    torch.testing.assert_close(timestamp_retrieval(x.flip(0))[0], loss)


@pytest.mark.parametrize("v", [2, 3])
def test_swapped_prediction_equals_loops(v):
    scores, q = randn(4, v, 6), randn(4, v, 6, seed=1).softmax(2)
    total = 0.0
    for i in range(4):
        for a in range(v):
            for b in range(v):
                if a != b:
                    z = sum(math.exp(s / 0.1) for s in scores[i, b].tolist())
                    total -= sum(q[i, a, k].item() * math.log(math.exp(scores[i, b, k] / 0.1) / z) for k in range(6))
    assert swapped_prediction(scores, q)[0].item() == pytest.approx(total / (4 * v * (v - 1)), rel=1e-12)


def test_swapped_prediction_closed_form_and_invariance():
    q = randn(3, 2, 5).softmax(2)
    assert swapped_prediction(torch.ones(3, 2, 5), q.float())[0].item() == pytest.approx(math.log(5))
    scores = randn(3, 2, 5, seed=1)
    constant = randn(3, 2, 1, seed=2)
    torch.testing.assert_close(swapped_prediction(scores + constant, q)[0], swapped_prediction(scores, q)[0])
    swap = swapped_prediction(scores.flip(1), q.flip(1))
    torch.testing.assert_close(swap[0], swapped_prediction(scores, q)[0])


def test_swapped_prediction_accuracy():
    q = torch.eye(3)[torch.tensor([[0, 1], [2, 2]])]
    assert swapped_prediction(q, q)[1] == 0.5
    assert swapped_prediction(q, q.flip(1))[1] == 1


@pytest.mark.parametrize("v", [2, 3])
def test_gradients_equal_finite_differences(v):
    x, own, reverse = randn(4, v, 3), randn(2, v, 3, seed=1), randn(2, v, 3, seed=2)
    assert gradcheck(lambda a, c, r: motion_contrast(a, c, 2, r)[0],
                     [y.requires_grad_() for y in (own, x, reverse)])
    assert gradcheck(lambda y: timestamp_retrieval(y)[0], [randn(2, v + 1, 3, 2 * v).requires_grad_()])
    q = randn(2, v, 4, seed=3).softmax(2)
    assert gradcheck(lambda s: swapped_prediction(s, q)[0], [randn(2, v, 4).requires_grad_()])
