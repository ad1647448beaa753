"""The grid of linear heads: each as if alone, chance without information, the choice, and no dependence on threads."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from eval.metrics import accuracies
from eval.features.probe_heads import ProbeRecipe, epoch_batches, fit_probe, fit_standardizer, train_heads
from utils.errors import InputError

CPU = torch.device("cpu")


def blobs(num: int, num_classes: int, noise: float, seed: int, channels: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.permutation(num) % num_classes
    centers = np.random.default_rng(99).normal(size=(num_classes, channels))
    return (centers[targets] + noise * rng.normal(size=(num, channels))).astype(np.float32), targets


def test_every_head_is_that_of_torch_sgd_on_a_linear_layer():
    vectors, targets = blobs(70, 4, 1.0, 0, channels=6)
    pairs, recipe = [(0.1, 1e-3), (0.1, 1e-1), (0.5, 1e-3)], ProbeRecipe(epochs=10, batch_size=16, seed=5)
    heads = train_heads(vectors, targets, 4, pairs, recipe, CPU)
    spread = vectors.astype(np.float64)
    inputs = torch.from_numpy((spread - spread.mean(0)) / np.sqrt(spread.var(0) + 1e-5 * spread.var(0).mean()))
    for index, (lr, weight_decay) in enumerate(pairs):
        linear = nn.Linear(6, 4).double()
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        optimizer = torch.optim.SGD(linear.parameters(), lr, momentum=0.9, weight_decay=weight_decay)
        for epoch in range(10):
            optimizer.param_groups[0]["lr"] = lr * (0.01 if epoch >= 8 else 0.1 if epoch >= 6 else 1)
            for batch in epoch_batches(70, recipe, epoch, CPU):
                optimizer.zero_grad()
                nn.functional.cross_entropy(linear(inputs[batch]), torch.from_numpy(targets)[batch]).backward()
                optimizer.step()
        expected = torch.cat([linear.weight.T, linear.bias[None]]).float()
        torch.testing.assert_close(heads.weights[index], expected.detach(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(heads.scores(vectors)[index], linear(inputs).detach().numpy(), rtol=1e-3, atol=1e-4)


def test_an_epoch_holds_every_video_once_in_an_order_of_its_own():
    recipe = ProbeRecipe(batch_size=16, seed=1)
    orders = [torch.cat(list(epoch_batches(70, recipe, epoch, CPU))).tolist() for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and all(sorted(order) == list(range(70)) for order in orders)
    assert [len(batch) for batch in epoch_batches(70, recipe, 0, CPU)] == [16, 16, 16, 16, 6]


def test_standardized_channels_have_mean_0_and_variance_1_whatever_the_scale_and_constant_ones_are_0():
    vectors = np.random.default_rng(0).normal(3, 2, size=(50, 4)).astype(np.float32)
    vectors[:, 2] = 7
    for scale in (1, 1e-4):
        standard = fit_standardizer(vectors * np.float32(scale))(vectors * np.float32(scale))
        np.testing.assert_allclose(standard.mean(0), 0, atol=1e-3)
        np.testing.assert_allclose(standard.std(0)[[0, 1, 3]], 1, atol=1e-3)
        assert np.abs(standard[:, 2]).max() < 1e-3
    assert (fit_standardizer(np.ones((3, 2), np.float32))(np.ones((3, 2), np.float32)) == 0).all()


def test_vectors_that_encode_the_label_give_everything_and_shuffled_labels_give_chance():
    num_classes, pairs, recipe = 8, [(0.1, 1e-3), (1.0, 1e-2)], ProbeRecipe(epochs=20, batch_size=64)
    vectors, targets = blobs(400, num_classes, 0.05, 1)
    test_vectors, test_targets = blobs(800, num_classes, 0.05, 2)
    shuffled = np.random.default_rng(3).permutation(targets)
    shuffled_test = np.random.default_rng(4).permutation(test_targets)
    for labels, test_labels in ((targets, test_targets), (shuffled, shuffled_test)):
        found = [accuracies(scores, test_labels)["top1"]
                 for scores in train_heads(vectors, labels, num_classes, pairs, recipe, CPU).scores(test_vectors)]
        if labels is targets:
            assert found == [1.0, 1.0]
        else:
            chance = 1 / num_classes
            assert all(abs(top1 - chance) < 4.5 * np.sqrt(chance * (1 - chance) / 800) for top1 in found)


def test_the_best_pair_on_the_held_out_videos_is_chosen_and_ties_go_to_decay_then_to_the_smaller_rate():
    vectors, targets = blobs(200, 4, 0.05, 1)
    held = np.arange(200) % 5 == 0
    pairs = [(1.0, 1e-3), (0.5, 1e-2), (0.1, 1e-2), (0.1, 1e-3)]
    pair, top1, _ = fit_probe(vectors, targets, 4, held, pairs, ProbeRecipe(epochs=5), CPU)
    assert top1 == [1.0] * 4 and pair == (0.1, 1e-2)

    vectors, targets = blobs(300, 4, 2.5, 1)
    held, recipe = np.arange(300) % 3 == 0, ProbeRecipe(epochs=5, batch_size=32)
    pairs = [(0.1, 1e3 / 200), (0.1, 1e-2), (0.001, 1e-2)]
    pair, top1, _ = fit_probe(vectors, targets, 4, held, pairs, recipe, CPU)
    heads = train_heads(vectors[~held], targets[~held], 4, pairs, recipe, CPU)
    expected = [float((scores.argmax(1) == targets[held]).mean()) for scores in heads.scores(vectors[held])]
    assert top1 == expected and len(set(expected)) > 1
    assert expected[pairs.index(pair)] == max(expected)


def test_a_pair_that_diverges_is_not_chosen_and_a_grid_of_them_is_refused():
    vectors, targets = blobs(60, 3, 0.1, 1)
    held, recipe = np.arange(60) % 4 == 0, ProbeRecipe(epochs=60, batch_size=16)
    pair, top1, _ = fit_probe(vectors, targets, 3, held, [(1e4, 1e4), (0.1, 1e-3)], recipe, CPU)
    assert pair == (0.1, 1e-3) and top1[0] is None
    with pytest.raises(InputError, match="all 1 pairs diverge"):
        fit_probe(vectors, targets, 3, held, [(1e4, 1e4)], recipe, CPU)


def test_the_number_of_threads_changes_no_bit_and_is_left_as_it_was():
    vectors, targets = blobs(600, 10, 1.0, 1, channels=300)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(train_heads(vectors, targets, 10, [(0.1, 1e-3), (1, 1e-3)], ProbeRecipe(epochs=2), CPU).weights)
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
