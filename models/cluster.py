"""Online clustering: Sinkhorn-Knopp assignments and the queue of past scores that steadies them.

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
    """Soft assignments [N, ..., K] of N samples to K prototypes that use all prototypes about equally.

    Starts from exp((S - max S) / epsilon) and alternates three times: every prototype receives mass 1/K, every
    sample gives mass 1/N; each sample's assignment then sums to 1. Dimensions between the first and the last (the
    clips) are separate problems. `scores` are dot products in [-1, 1] (any constant may be added to them: it
    cancels). The alternation multiplies rows and columns by factors only, so those factors are all that is iterated.
    With `num_wanted` all samples take part and the first `num_wanted` are returned.
    Float32 at least, whatever comes in. Source: Cuturi 2013; Caron et al. 2020 (SwAV), section 3.1.
    """
    scores = at_least_float32(scores)
    n, k = scores.shape[0], scores.shape[-1]
    kernel = (scores - scores.amax(dim=(0, -1), keepdim=True)).div_(EPSILON).exp_()
    per_sample = torch.ones_like(kernel[..., 0])                                          # [N, ...]
    for _ in range(ROUNDS):
        # Products and sums, since matrix kernels are slow on so narrow factors.
        per_prototype = 1 / (k * (kernel * per_sample[..., None]).sum(dim=0))             # prototypes to 1/K
        per_sample = 1 / (n * (kernel * per_prototype).sum(dim=-1))                       # samples to 1/N
    return kernel[:num_wanted] * per_prototype * (n * per_sample[:num_wanted])[..., None]


class ScoreQueue:
    """The newest Q rows of gathered scores, newest batch first, first in first out.

    Rows not yet filled do not exist: `extend` returns fewer than Q rows until enough have come in. (The reference
    starts from a full queue of noise.)
    """

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.rows: Tensor | None = None

    @torch.no_grad()
    def extend(self, scores: Tensor) -> Tensor:
        """Take in a batch [N, V, K]; returns batch and older rows [max(N, min(Q, seen)), V, K], the batch first.

        Older rows fall out beyond Q. A batch larger than the queue is returned whole.
        """
        scores = at_least_float32(scores.detach())
        older = scores[:0] if self.rows is None else self.rows
        rows = torch.cat([scores, older[:max(self.num_rows - len(scores), 0)]])
        self.rows = rows[:self.num_rows]
        return rows

    def state_dict(self) -> dict[str, Tensor | None]:
        """Everything needed to go on: the filled rows."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Tensor | None], device: torch.device) -> None:
        """Go on from `state`, on `device`."""
        rows = state["rows"]
        self.rows = None if rows is None else rows.to(device)
