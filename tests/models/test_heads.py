"""Projections and the prototype head."""
from __future__ import annotations

import torch

from models.heads import Projection, PrototypeHead


def test_projection_works_on_each_timestamp_alone():
    torch.manual_seed(0)
    head, x = Projection(6, 4), torch.randn(3, 6, 5)
    y = head(x)
    assert y.shape == (3, 4, 5)
    first, _, second = head
    for m in range(3):
        for t in range(5):
            hidden = (first.weight[:, :, 0] @ x[m, :, t] + first.bias).clamp(min=0)
            torch.testing.assert_close(y[m, :, t], second.weight[:, :, 0] @ hidden + second.bias)


def test_scores_are_cosines_once_prototypes_are_normalized():
    torch.manual_seed(0)
    head, x = PrototypeHead(6, 4, 9).eval(), torch.randn(5, 6)
    head.prototypes.weight.data.mul_(7)
    head.normalize_()
    torch.testing.assert_close(head.prototypes.weight.norm(dim=1), torch.ones(9))
    scores = head(x)
    assert scores.shape == (5, 9)
    expected = torch.cosine_similarity(head.projection(x)[:, None], head.prototypes.weight[None], dim=2)
    torch.testing.assert_close(scores, expected)
    before = head.prototypes.weight.clone()
    head.normalize_()
    torch.testing.assert_close(head.prototypes.weight, before)
    assert head.prototypes.bias is None and head.prototypes.weight.requires_grad
