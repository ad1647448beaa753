"""Linear classifiers on features: a whole grid of learning rate and weight decay trained at once, and the choice.

Shapes: N videos; C channels; K classes; G pairs (learning rate, weight decay) of the grid; B videos of a step.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError

MOMENTUM = 0.9
DECAY_AT = (0.6, 0.8)  # of the epochs: a tenth of the learning rate from there on; 60 and 80 of 100
RELATIVE_EPS = 1e-5

Pair = tuple[float, float]  # learning rate, weight decay


@dataclass(frozen=True)
class Recipe:
    """How every head is trained: SGD with momentum, cross-entropy, in full float32."""

    epochs: int = 100
    batch_size: int = 256
    seed: int = 0


@dataclass(frozen=True)
class Standardizer:
    """Batch norm in its final state: mean and scale [C] of the videos trained on, for all of them at once.

    No statistics of single batches, no affine part (the linear layer has it), and no others' statistics at test time.
    A channel's variance is raised by 1e-5 of the mean variance, so that a constant channel becomes 0 whatever the
    features' scale.
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray) -> Standardizer:
        """That of the vectors float32 [N, C]."""
        mean = vectors.mean(axis=0, dtype=np.float64)
        variance = vectors.var(axis=0, dtype=np.float64)
        raised = variance + RELATIVE_EPS * variance.mean()
        return cls(mean, np.sqrt(np.where(raised > 0, raised, 1)))

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """float32 [N, C], standardized."""
        return ((vectors - self.mean) / self.scale).astype(np.float32)


@dataclass(frozen=True)
class Heads:
    """Trained linear layers on standardized vectors: `weights` float32 [G, C + 1, K], the last row the bias."""

    standardizer: Standardizer
    weights: Tensor

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """Logits float32 [G, N, K] of vectors [N, C]."""
        with full_float32():
            inputs = with_ones(self.standardizer(vectors), self.weights.device)
            return torch.matmul(inputs, self.weights).cpu().numpy()


def train_heads(
    vectors: np.ndarray, targets: np.ndarray, num_classes: int, pairs: Sequence[Pair], recipe: Recipe,
    device: torch.device,
) -> Heads:
    """A head for each pair, trained on vectors [N, C] of classes int64 [N], each as if it were alone.

    Weights start at zero (the loss is convex), and all heads see the same batches, in an order that `recipe.seed` draws
    anew for each epoch. Weight decay is an L2 term on weights and bias, momentum as in torch.optim.SGD.
    """
    standardizer = Standardizer.of(vectors)
    with full_float32(), torch.inference_mode():
        inputs = with_ones(standardizer(vectors), device)
        one_hot = torch.eye(num_classes, device=device)[torch.from_numpy(targets).to(device)]
        # [C + 1, G, K], so that one matrix product serves all heads: they share their inputs.
        weights = torch.zeros(inputs.shape[1], len(pairs), num_classes, device=device)
        velocity = torch.zeros_like(weights)
        lr, decay = (torch.tensor(values, device=device)[:, None] for values in zip(*pairs))
        for epoch in range(recipe.epochs):
            epoch_lr = lr * 0.1 ** sum(epoch >= fraction * recipe.epochs for fraction in DECAY_AT)
            for batch in epoch_batches(len(inputs), recipe, epoch, device):
                x = inputs[batch]
                # Gradient of the mean cross-entropy: x^T (softmax - one-hot) / B.
                errors = (x @ weights.flatten(1)).view(len(x), *weights.shape[1:]).softmax(dim=2)
                errors -= one_hot[batch][:, None]
                gradient = (x.T @ errors.flatten(1)).view_as(weights) / len(x)
                velocity.mul_(MOMENTUM).add_(gradient).addcmul_(weights, decay)
                weights.addcmul_(velocity, epoch_lr, value=-1)
        return Heads(standardizer, weights.transpose(0, 1).contiguous())


def epoch_batches(num_videos: int, recipe: Recipe, epoch: int, device: torch.device) -> Iterator[Tensor]:
    """Indices [B] of one step after the other; every video once an epoch, the last batch may be smaller."""
    rng = np.random.default_rng(np.random.SeedSequence(recipe.seed, spawn_key=(epoch,)))
    return iter(torch.from_numpy(rng.permutation(num_videos)).to(device).split(recipe.batch_size))


def with_ones(vectors: np.ndarray, device: torch.device) -> Tensor:
    """[N, C + 1]: a column of ones after the vectors, for the bias."""
    return torch.cat([torch.from_numpy(vectors), torch.ones(len(vectors), 1)], dim=1).to(device)


@dataclass(frozen=True)
class Choice:
    """`pair`: what was chosen. `accuracies`: each pair's top-1 on the held-out videos, None where training diverged."""

    pair: Pair
    accuracies: list[float | None]


def choose_pair(
    vectors: np.ndarray, targets: np.ndarray, num_classes: int, held: np.ndarray, pairs: Sequence[Pair], recipe: Recipe,
    device: torch.device,
) -> Choice:
    """The pair whose head, trained on the other training videos, gets most of the held-out ones (bool [N]) right.

    Of equally good pairs the one with the larger weight decay, and of these the one with the smaller learning rate.
    """
    heads = train_heads(vectors[~held], targets[~held], num_classes, pairs, recipe, device)
    finite = heads.weights.isfinite().all(dim=2).all(dim=1).tolist()
    correct = (heads.scores(vectors[held]).argmax(axis=2) == targets[held]).sum(axis=1).tolist()
    if not any(finite):
        raise InputError(f"--lr, --wd: all {len(pairs)} pairs diverge; give smaller ones")
    best = max((i for i in range(len(pairs)) if finite[i]), key=lambda i: (correct[i], pairs[i][1], -pairs[i][0]))
    return Choice(pairs[best], [correct[i] / int(held.sum()) if finite[i] else None for i in range(len(pairs))])


@contextmanager
def full_float32() -> Iterator[None]:
    """Products in full float32, and on the CPU in one thread: others may be summed in another order.

    How many threads there are depends on how many processes share the machine, and results must not.
    """
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
