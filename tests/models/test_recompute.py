"""Activation checkpointing: less memory is held for the backward pass, and nothing else changes, to the last bit."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.measure import HeldMemory
from models.multilevel import MultiLevelModel, build_backbone
from models.numerics import run_blocks

NETS = ("r3d10", "r3d50", "r2plus1d18", "s3d")  # each kind of block


def one_step(backbone: nn.Module, clips: torch.Tensor, bfloat16: bool) -> tuple[list[torch.Tensor], int]:
    """All that a step leaves behind (maps, gradients, buffers), and the bytes held between forward and backward."""
    with HeldMemory() as memory:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            maps = backbone(clips)
    held = memory.held_bytes()
    sum((x.float() ** 2).mean() for x in maps).backward()
    found = [*maps, *(p.grad for p in backbone.parameters()), *backbone.buffers()]
    return [x.detach().clone() for x in found], held


def both_ways(backbone: nn.Module, size: int, bfloat16: bool) -> list[tuple[list[torch.Tensor], int]]:
    """One step each without and with checkpointing, from the same state and on the same clips."""
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    clips, results = torch.randn(2, 3, 16, size, size), []
    for checkpoint_activations in (False, True):
        backbone.load_state_dict(state)
        backbone.zero_grad(set_to_none=True)
        backbone.checkpoint_activations = checkpoint_activations
        results.append(one_step(backbone, clips, bfloat16))
    return results


@pytest.mark.parametrize("net", NETS)
def test_maps_gradients_and_statistics_stay_the_same(net):
    torch.manual_seed(0)
    backbone = build_backbone(net).train()
    for bfloat16 in (False, True):
        (plain, plain_bytes), (recomputed, recomputed_bytes) = both_ways(backbone, 32, bfloat16)
        assert len(plain) == len(recomputed)
        assert all(torch.equal(a, b) for a, b in zip(plain, recomputed))
        assert recomputed_bytes < 0.5 * plain_bytes


def test_a_second_pass_would_have_changed_the_statistics():
    """Without the guard the buffers differ, so the test above can see it."""
    torch.manual_seed(0)
    backbone = build_backbone("r3d10").train()
    clips = torch.randn(2, 3, 16, 32, 32)
    backbone(clips)
    once = [buffer.clone() for buffer in backbone.buffers()]
    backbone(clips)
    assert not any(torch.equal(a, b) for a, b in zip(once, backbone.buffers()))


def test_the_whole_model_trains_with_it():
    torch.manual_seed(0)
    model = MultiLevelModel("r3d10", 16, 8).train()
    views, gradients = torch.randn(2, 3, 3, 16, 32, 32), []
    for checkpoint_activations in (False, True):
        model.zero_grad(set_to_none=True)
        model.backbone.checkpoint_activations = checkpoint_activations
        output = model(views, with_graph=False)
        sum(x.square().sum() for x in (*output.instance, *output.timestamp, output.scores)).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


class Counting(nn.Linear):
    """A layer that counts its forward passes."""

    passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return super().forward(x)


def test_nothing_is_computed_twice_without_need():
    block, x = Counting(2, 2), torch.ones(1, 2)
    with torch.no_grad():
        run_blocks([block], x, recompute=True)
    assert block.passes == 1
    run_blocks([block], x, recompute=False).sum().backward()
    assert block.passes == 2
    run_blocks([block], x, recompute=True).sum().backward()
    assert block.passes == 4
