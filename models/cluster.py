"""Online clustering: Sinkhorn-Knopp assignments, and the queue of past scores that they use.

Shapes: N samples (videos over all ranks), V clips of a video, K prototypes, Q queue rows.
"""
from __future__ import annotations

import torch
from torch import Tensor

from models.numerics import at_least_float32

EPSILON = 0.05  # entropy regularisation of the transport problem (SwAV)
ROUNDS = 3


@torch.no_grad()
def sinkhorn_knopp(scores: Tensor, num_wanted: int | None = None) -> Tensor:
    """Returns soft assignments [N, ..., K] of N samples to K prototypes that use all prototypes about equally.

    Starts from exp((S - max S) / epsilon) and alternates three times: every prototype receives mass 1/K, every
    sample gives mass 1/N; each sample's assignment then sums to 1. Dimensions between the first and the last (the
    clips) are separate problems. `scores` are dot products in [-1, 1], up to a constant, which cancels. The alternation
    only multiplies rows and columns by factors, so only these factors are iterated. With `num_wanted` the assignments
    of the first `num_wanted` samples are returned. Float32 at least for every input dtype.
    Source: Cuturi 2013; Caron et al. 2020 (SwAV), section 3.1.
    """
    scores = at_least_float32(scores)
    n, k = scores.shape[0], scores.shape[-1]
    kernel = (scores - scores.amax(dim=(0, -1), keepdim=True)).div_(EPSILON).exp_()
    per_sample = torch.ones_like(kernel[..., 0])                                          # [N, ...]
    for _ in range(ROUNDS):
        # Products and sums: matrix kernels are slow on factors this narrow.
        per_prototype = 1 / (k * (kernel * per_sample[..., None]).sum(dim=0))             # prototypes to 1/K
        per_sample = 1 / (n * (kernel * per_prototype).sum(dim=-1))                       # samples to 1/N
    return (kernel[:num_wanted] * per_prototype).mul_((n * per_sample[:num_wanted])[..., None])


class ScoreQueue:
    """The newest Q rows of gathered scores, newest batch first, first in first out.

    Until Q rows have come in, `extend` returns fewer; the official code starts from a queue full of noise.
    """

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.rows: Tensor | None = None

    @torch.no_grad()
    def extend(self, scores: Tensor) -> Tensor:
        """Adds a batch [N, V, K]; returns batch and older rows [max(N, min(Q, seen)), V, K], the batch first.

        Rows beyond Q are dropped. A batch larger than the queue is returned whole.
        """
        scores = at_least_float32(scores.detach())
        if len(scores) >= self.num_rows:
            self.rows = scores[:self.num_rows].clone()  # a view would keep all N rows, in checkpoints too
            return scores
        older = scores[:0] if self.rows is None else self.rows
        self.rows = torch.cat([scores, older[:self.num_rows - len(scores)]])
        return self.rows

    def state_dict(self) -> dict[str, Tensor | None]:
        """Returns the filled rows."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Tensor | None], device: torch.device) -> None:
        """Restores `state` on `device`."""
        rows = state["rows"]
        self.rows = None if rows is None else rows.to(device)
