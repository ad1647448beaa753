"""The objective: terms and their weights, when queue and graph come in, and the rows of a rank."""
from __future__ import annotations

import pytest
import torch

from models.cluster import sinkhorn_knopp
from models.graph import graph_contrast, infer_adjacency, log_similarity
from models.levels import LEVELS, LevelFeatures
from models.losses import instance_contrast, motion_contrast, swapped_prediction, timestamp_retrieval
from models.multilevel import ModelOutput
from models.objective import Objective, cluster_statistics

K, D = 6, 4


def random_output(b: int, v: int = 2, seed: int = 0) -> ModelOutput:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    return ModelOutput(
        instance=LevelFeatures(*(randn(b, v, D) for _ in LEVELS)), reversed_low=randn(b, v, D),
        reversed_mid=randn(b, v, D), timestamp=LevelFeatures(*(randn(b, v + 1, D, 2 * v * s) for s in (4, 2, 1))),
        scores=(torch.rand(b, v, K, dtype=torch.float64, generator=generator) * 2 - 1).requires_grad_(),
        graph_embeddings=LevelFeatures(*(randn(b, v, D) for _ in LEVELS)))


def alone(objective: Objective, output: ModelOutput, epoch: int):
    return objective(output, epoch, lambda rows: rows, 0)


@pytest.mark.parametrize("v", [2, 3])
def test_terms_are_the_losses_of_their_tensors(v):
    output = random_output(5, v)
    loss = alone(Objective(graph_start_epoch=0, graph_threshold=0.1), output, 0)
    q = sinkhorn_knopp(output.scores)
    labels = q[:, :2].sum(1).argmax(1)
    high = output.instance.high
    adjacency = infer_adjacency(log_similarity(high[:, 0], high[:, 1]).exp(), labels, 0, 0.1)
    expected = {
        "instance_high": instance_contrast(high, high, 0)[0],
        "motion_mid": motion_contrast(output.instance.mid, output.instance.mid, 0, output.reversed_mid)[0],
        "motion_low": motion_contrast(output.instance.low, output.instance.low, 0, output.reversed_low)[0],
        "prototype": swapped_prediction(output.scores, q)[0],
    }
    for level in LEVELS:
        expected[f"timestamp_{level}"] = timestamp_retrieval(getattr(output.timestamp, level))[0]
        g = getattr(output.graph_embeddings, level)
        expected[f"graph_{level}"] = graph_contrast(adjacency, g[:, 0], g[:, 1])
    assert loss.terms.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(loss.terms[name], expected[name], msg=name)


def test_total_is_the_published_weighting():
    loss = alone(Objective(graph_start_epoch=0), random_output(4), 0)
    t = loss.terms
    expected = (t["instance_high"] + t["timestamp_high"] + 0.5 * (t["motion_mid"] + t["timestamp_mid"])
                + 0.3 * (t["motion_low"] + t["timestamp_low"]) + 0.5 * t["prototype"]
                + t["graph_high"] + 0.5 * t["graph_mid"] + 0.3 * t["graph_low"])
    torch.testing.assert_close(loss.total, expected)


def test_weights_replace_the_published_ones_and_zero_gives_no_gradient():
    output = random_output(4)
    loss = alone(Objective(graph_start_epoch=0, weights={"instance_high": 0.25, "timestamp_mid": 0.0, "graph_low": 2.0}),
                 output, 0)
    t = loss.terms
    expected = (0.25 * t["instance_high"] + t["timestamp_high"] + 0.5 * t["motion_mid"]
                + 0.3 * (t["motion_low"] + t["timestamp_low"]) + 0.5 * t["prototype"]
                + t["graph_high"] + 0.5 * t["graph_mid"] + 2 * t["graph_low"])
    torch.testing.assert_close(loss.total, expected)
    off, on = torch.autograd.grad(loss.total, [output.timestamp.mid, output.timestamp.low])
    assert off.count_nonzero() == 0 and on.count_nonzero() > 0


def test_without_weight_on_its_terms_there_is_no_graph():
    objective = Objective(graph_start_epoch=0, weights={f"graph_{level}": 0.0 for level in LEVELS})
    assert not objective.uses_graph(5)
    loss = alone(objective, random_output(4)._replace(graph_embeddings=None), 5)
    assert not [name for name in loss.terms if name.startswith("graph")]
    assert Objective(graph_start_epoch=0, weights={"graph_low": 0.0, "graph_mid": 0.0}).uses_graph(5)


def test_motion_contrast_without_reversed_negatives_is_instance_contrast():
    output = random_output(4)
    loss = alone(Objective(reversed_negatives=False), output, 0)
    for level in ("low", "mid"):
        embeddings = getattr(output.instance, level)
        torch.testing.assert_close(loss.terms[f"motion_{level}"], instance_contrast(embeddings, embeddings, 0)[0])


def test_graph_terms_from_their_epoch_on_only():
    output = random_output(4)
    before = alone(Objective(graph_start_epoch=3), output._replace(graph_embeddings=None), 2)
    assert not [name for name in before.terms if name.startswith("graph")]
    after = alone(Objective(graph_start_epoch=3), output, 3)
    assert {name for name in after.terms if name.startswith("graph")} == {f"graph_{level}" for level in LEVELS}
    assert after.terms["instance_high"] == before.terms["instance_high"]
    graph_terms = sum(after.terms[f"graph_{level}"] for level in LEVELS)
    target, source = torch.autograd.grad(graph_terms, [output.instance.high, output.graph_embeddings.high])
    assert target.count_nonzero() == 0 and source.count_nonzero() > 0  # the graph is a target


def test_queue_is_filled_from_the_start_and_used_from_its_epoch_on_only():
    objective = Objective(queue_start_epoch=2, graph_start_epoch=9)
    first, second = random_output(4), random_output(4, seed=1)
    alone(objective, first, 0)
    early = alone(objective, second, 1).terms["prototype"]
    torch.testing.assert_close(early, swapped_prediction(second.scores, sinkhorn_knopp(second.scores))[0])
    third = random_output(4, seed=2)
    late = alone(objective, third, 2).terms["prototype"]
    rows = torch.cat([third.scores, second.scores, first.scores])
    torch.testing.assert_close(late, swapped_prediction(third.scores, sinkhorn_knopp(rows)[:4])[0])
    assert not torch.isclose(late, swapped_prediction(third.scores, sinkhorn_knopp(third.scores))[0])


@pytest.mark.parametrize("epoch", [0, 1])
def test_mean_over_ranks_is_the_loss_of_one_process(epoch):
    """Two ranks of 3 videos each, gathered rows in rank order: the mean of each term is one process's term."""
    whole = random_output(6)
    settings = {"queue_start_epoch": 1, "graph_start_epoch": 1, "graph_threshold": 0.01}
    one = alone(Objective(**settings), whole, epoch)

    def part(rank):
        rows = slice(3 * rank, 3 * rank + 3)
        return ModelOutput(*(LevelFeatures(*(y[rows] for y in x)) if isinstance(x, LevelFeatures) else x[rows]
                             for x in whole))

    kinds = [whole.instance, *([whole.graph_embeddings] if epoch else [])]
    embeddings = torch.stack([x for kind in kinds for x in kind], dim=1)

    def gather(rows):
        everything = embeddings if rows.ndim == 4 else whole.scores
        assert rows.shape[1:] == everything.shape[1:]
        return everything

    ranks = [Objective(**settings)(part(rank), epoch, gather, rank) for rank in (0, 1)]
    assert ranks[0].terms.keys() == one.terms.keys()
    for name in one.terms:
        torch.testing.assert_close((ranks[0].terms[name] + ranks[1].terms[name]) / 2, one.terms[name], msg=name)


def test_metrics_carry_no_gradient_and_cluster_statistics():
    loss = alone(Objective(graph_start_epoch=0), random_output(4), 0)
    assert not any(value.requires_grad for value in loss.metrics.values())
    assert all(value.ndim == 0 for value in (*loss.terms.values(), *loss.metrics.values()))
    q = torch.full((3, 2, K), 1 / K)
    statistics = cluster_statistics(q, torch.tensor([1, 4, 1]))
    assert statistics["prototypes_in_use"] == 2
    torch.testing.assert_close(statistics["assignment_entropy"], torch.tensor(K).log())
