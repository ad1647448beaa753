"""The contrastive losses and the swapped prediction, each a function of tensors alone.

Shapes: B videos of this rank, N videos over all ranks (this rank's are N's rows first_row ... first_row + B - 1),
V clips of a video, D embedding width, t timestamps of a level, K prototypes. Embeddings need not be normalised:
every loss scales them to unit length first and computes in float32 at least. With one process, anchors and
candidates are the same tensor.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.numerics import at_least_float32

TEMPERATURE = 0.07            # tau of every contrast
PREDICTION_TEMPERATURE = 0.1  # of the swapped prediction (SwAV)


def unit(embeddings: Tensor) -> Tensor:
    """Returns `embeddings` [..., D] scaled to unit L2 length, in float32 at least."""
    return F.normalize(at_least_float32(embeddings), dim=-1)


def instance_contrast(anchors: Tensor, candidates: Tensor, first_row: int) -> tuple[Tensor, Tensor]:
    """Returns the loss (scalar) and top-1 retrieval accuracy (scalar in [0, 1]) of finding a video's other clips.

    `anchors` [B, V, D] are this rank's clips, `candidates` [N, V, D] those of all ranks. For anchor clip v of video i
    the positives are the other clips of video i, the negatives all clips of the other videos:

        L = -log( sum_{w != v} e^{z_iv . z_iw / tau} / sum_{(j, w) != (i, v)} e^{z_iv . z_jw / tau} ),

    averaged over the B * V anchors. An anchor counts as retrieved when its nearest candidate is a positive.
    """
    logits, positives = _similarities(unit(anchors), candidates, first_row)
    return _contrast(logits, positives, first_row)


def motion_contrast(anchors: Tensor, candidates: Tensor, first_row: int,
                    reversed_negatives: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the loss and accuracy of `instance_contrast` with V further negatives for each anchor.

    These are the time-reversed features of the anchor's own video, `reversed_negatives` [B, V, D]. They are never
    anchors, and those of other videos are not used. None: the loss without them, `instance_contrast`.
    """
    anchors = unit(anchors)
    logits, positives = _similarities(anchors, candidates, first_row)
    if reversed_negatives is None:
        return _contrast(logits, positives, first_row)
    own_reversed = anchors @ unit(reversed_negatives).transpose(1, 2) / TEMPERATURE      # [B, V, V]
    return _contrast(torch.cat([logits, own_reversed], dim=2), positives, first_row)


def _similarities(anchors: Tensor, candidates: Tensor, first_row: int) -> tuple[Tensor, Tensor]:
    """Returns logits [B, V, N*V] of anchors of unit length, -inf at themselves, and the positives [B, V, V] among them."""
    b, v, _ = anchors.shape
    n = candidates.shape[0]
    # One matrix product for all similarities: [B*V, D] x [D, N*V] -> [B, V, N, V].
    logits = (anchors.flatten(0, 1) @ unit(candidates).flatten(0, 1).T / TEMPERATURE).view(b, v, n, v)
    row = torch.arange(first_row, first_row + b, device=logits.device)
    is_own = row[:, None] == torch.arange(n, device=logits.device)                       # [B, N]
    itself = is_own[:, None, :, None] & torch.eye(v, dtype=torch.bool, device=logits.device)[:, None]
    logits = logits.masked_fill(itself, -torch.inf)
    return logits.flatten(2), logits[row - first_row, :, row]


def _contrast(logits: Tensor, positives: Tensor, first_row: int) -> tuple[Tensor, Tensor]:
    """Returns mean loss and accuracy of logits [B, V, N*V or more] of which `positives` [B, V, V] are the positives'."""
    b, v, _ = positives.shape
    loss = (logits.logsumexp(dim=2) - positives.logsumexp(dim=2)).mean()
    nearest_video = logits.detach().argmax(dim=2) // v           # N where a reversed feature is nearest
    own_video = torch.arange(first_row, first_row + b, device=logits.device)[:, None]
    return loss, (nearest_video == own_video).float().mean()


def timestamp_retrieval(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the loss (scalar) and top-1 accuracy (scalar in [0, 1]) of aligning clips with the overview in time.

    `embeddings` [B, V+1, D, t]: V clips in temporal order, then the overview; t a multiple of V. Each clip is
    average-pooled over time to t / V, before the L2 normalization, and the results concatenated to length t, so that
    row m of this sequence and row m of the overview's cover the same moment: the positive pair. The other rows of
    the same video are the negatives. Cross-entropy both ways, averaged over the two ways, the videos and the
    timestamps.
    """
    embeddings = at_least_float32(embeddings)
    b, views, d, t = embeddings.shape
    v = views - 1
    assert t % v == 0, f"{t} timestamps cannot be shared among {v} clips"
    clips = embeddings[:, :v].unflatten(3, (t // v, v)).mean(dim=4)              # [B, V, D, t/V]
    clips = unit(clips.permute(0, 1, 3, 2).reshape(b, t, d))                     # [B, t, D]
    overview = unit(embeddings[:, v].transpose(1, 2))                            # [B, t, D]
    logits = clips @ overview.transpose(1, 2) / TEMPERATURE                      # [B, t, t]
    target = torch.arange(t, device=logits.device).expand(b, t)
    loss = 0.5 * (F.cross_entropy(logits.transpose(1, 2), target) + F.cross_entropy(logits, target))
    accuracy = (logits.detach().argmax(dim=2) == target).float().mean()
    return loss, accuracy


def swapped_prediction(scores: Tensor, assignments: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the loss (scalar) of predicting each clip's assignment from the other clips' scores, and its accuracy.

    `scores` and `assignments` [B, V, K]; assignments carry no gradient. For every ordered pair of clips (v, w), v != w,
    -sum_k q_v log softmax(s_w / 0.1), averaged over the pairs and the videos; for V = 2 this is SwAV's
    -1/2 (sum q_2 log p_1 + sum q_1 log p_2). Source: Caron et al. 2020, equation 2.
    """
    b, v, _ = scores.shape
    log_p = F.log_softmax(at_least_float32(scores) / PREDICTION_TEMPERATURE, dim=2)
    pairs = -torch.einsum("bvk,bwk->bvw", assignments, log_p)
    different = ~torch.eye(v, dtype=torch.bool, device=scores.device)
    num_pairs = b * v * (v - 1)  # masked and summed, since indexing by a mask synchronizes with the device
    loss = pairs.masked_fill(~different, 0).sum() / num_pairs
    agree = assignments.argmax(dim=2)[:, :, None] == log_p.detach().argmax(dim=2)[:, None, :]
    return loss, (agree & different).sum() / num_pairs
