"""Linear probes for every (learning rate, weight decay) of a grid, trained jointly, and the choice by held-out videos.

Shapes: N videos; C channels; K classes; G pairs of the grid; B videos of a step.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.errors import InputError

MOMENTUM = 0.9
DECAY_AT = (0.6, 0.8)  # fractions of training at which the learning rate is divided by 10
RELATIVE_EPS = 1e-5  # added to each channel's variance, times the mean variance of the channels

LrAndDecay = tuple[float, float]


class ProbeRecipe(NamedTuple):
    """How every head is trained, with SGD and cross-entropy."""

    epochs: int = 100
    batch_size: int = 256
    seed: int = 0


def fit_standardizer(vectors: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function, vectors -> float32: batch norm without affine part, by mean and variance of all training vectors
    float32 [N, C]. Constant channels become 0."""
    mean, variance = vectors.mean(axis=0, dtype=np.float64), vectors.var(axis=0, dtype=np.float64)
    raised = variance + RELATIVE_EPS * variance.mean()
    scale = np.sqrt(np.where(raised > 0, raised, 1))
    return lambda vectors: ((vectors - mean) / scale).astype(np.float32)


class LinearHeads(NamedTuple):
    """Trained linear layers on standardized vectors: `weights` float32 [G, C + 1, K], the last row the bias."""

    standardize: Callable[[np.ndarray], np.ndarray]
    weights: Tensor

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """Returns logits float32 [G, N, K] of vectors [N, C]."""
        with one_thread():
            return torch.matmul(with_ones(self.standardize(vectors), self.weights.device), self.weights).cpu().numpy()


def train_heads(vectors: np.ndarray, targets: np.ndarray, num_classes: int, pairs: Sequence[LrAndDecay],
                recipe: ProbeRecipe, device: torch.device) -> LinearHeads:
    """Returns a head for each pair, trained on vectors [N, C] of classes int64 [N], each as if it were alone.

    Weights start at zero (the loss is convex). All heads see the same batches, in an order drawn from `recipe.seed` and the
    epoch, and share one matrix product. Weight decay applies to weights and bias, momentum as in torch.optim.SGD. The
    gradient is computed by hand: autograd with torch.optim.SGD took 1.15 times as long and rounds differently, which at a
    learning rate of 1 changed a top-1 on 112 videos by 5 points.
    """
    standardize = fit_standardizer(vectors)
    with one_thread(), torch.inference_mode():
        inputs = with_ones(standardize(vectors), device)
        one_hot = torch.eye(num_classes, device=device)[torch.from_numpy(targets).to(device)]
        weights = torch.zeros(inputs.shape[1], len(pairs), num_classes, device=device)  # [C + 1, G, K]
        velocity = torch.zeros_like(weights)
        lr, decay = (torch.tensor(values, device=device)[:, None] for values in zip(*pairs))
        for epoch in range(recipe.epochs):
            epoch_lr = lr * 0.1 ** sum(epoch >= part * recipe.epochs for part in DECAY_AT)
            for batch in epoch_batches(len(inputs), recipe, epoch, device):
                x = inputs[batch]
                # Gradient of the mean cross-entropy: x^T (softmax - one-hot) / B.
                errors = (x @ weights.flatten(1)).view(len(x), *weights.shape[1:]).softmax(dim=2)
                errors -= one_hot[batch][:, None]
                gradient = (x.T @ errors.flatten(1)).view_as(weights) / len(x)
                velocity.mul_(MOMENTUM).add_(gradient).addcmul_(weights, decay)
                weights.addcmul_(velocity, epoch_lr, value=-1)
    return LinearHeads(standardize, weights.transpose(0, 1).contiguous())


def epoch_batches(num_videos: int, recipe: ProbeRecipe, epoch: int, device: torch.device) -> Sequence[Tensor]:
    """Returns indices [B] of each step; every video once an epoch, the last batch may be smaller."""
    rng = np.random.default_rng(np.random.SeedSequence(recipe.seed, spawn_key=(epoch,)))
    return torch.from_numpy(rng.permutation(num_videos)).to(device).split(recipe.batch_size)


def with_ones(vectors: np.ndarray, device: torch.device) -> Tensor:
    """Returns [N, C + 1]: a column of ones after the vectors, for the bias."""
    return F.pad(torch.from_numpy(vectors), (0, 1), value=1).to(device)


def fit_probe(vectors: np.ndarray, targets: np.ndarray, num_classes: int, held: np.ndarray, pairs: Sequence[LrAndDecay],
              recipe: ProbeRecipe, device: torch.device) -> tuple[LrAndDecay, list[float | None], LinearHeads]:
    """Returns (best pair on the hold-out `held` bool [N], every pair's top-1 there, its head trained on all videos).

    Of equally good pairs the one with the larger weight decay, and of these the one with the smaller learning rate. The
    top-1 of a pair whose training on the other videos diverged is None.
    """
    heads = train_heads(vectors[~held], targets[~held], num_classes, pairs, recipe, device)
    finite = heads.weights.isfinite().all(dim=2).all(dim=1).tolist()
    correct = (heads.scores(vectors[held]).argmax(axis=2) == targets[held]).sum(axis=1).tolist()
    if not any(finite):
        raise InputError(f"--lr, --wd: all {len(pairs)} pairs diverge; give smaller ones")
    best = max((i for i in range(len(pairs)) if finite[i]), key=lambda i: (correct[i], pairs[i][1], -pairs[i][0]))
    holdout_top1 = [count / int(held.sum()) if good else None for count, good in zip(correct, finite)]

    heads = train_heads(vectors, targets, num_classes, [pairs[best]], recipe, device)
    if not heads.weights.isfinite().all():
        raise InputError(f"--lr {pairs[best][0]}, --wd {pairs[best][1]}: diverges on all training videos; give smaller ones")
    return pairs[best], holdout_top1, heads


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch in one CPU thread, as the order of summation depends on their number; heads are small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
