"""Backbones and the whole model: shapes, what sees what, what is frozen."""
from __future__ import annotations

import pytest
import torch

from models.convert import check_keys
from models.levels import LEVELS
from models.multilevel import BACKBONES, MultiLevelModel, Projection, PrototypeHead, build_backbone
from utils.cli import TIME_POOL

NETS = [net for net in BACKBONES if net != "resnet18" and not net.endswith(TIME_POOL)]
CHANNELS = {"r3d50": (512, 1024, 2048), "s3d": (480, 832, 1024)}


@pytest.fixture(scope="module")
def backbones() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    return {net: build_backbone(net).eval() for net in NETS}


@pytest.mark.parametrize("frames, size", [(16, 32), (32, 32), (24, 32), (16, 40)])
@pytest.mark.parametrize("net", NETS)
def test_levels(backbones, net, frames, size):
    with torch.no_grad():
        maps = backbones[net](torch.randn(1, 3, frames, size, size))
    for level, channels, stride in zip(LEVELS, CHANNELS.get(net, (128, 256, 512)), (2, 4, 8)):
        found = getattr(maps, level)
        assert backbones[net].channels[level] == channels
        assert found.shape[:3] == (1, channels, frames // stride), level
        assert found.shape[3] == found.shape[4] >= 1


@pytest.mark.parametrize("net, high", [("r3d18", 4), ("s3d", 3)])  # S3D's last pooling drops the odd row
def test_levels_at_the_published_size(backbones, net, high):
    with torch.no_grad():
        maps = backbones[net](torch.randn(1, 3, 16, 112, 112))
    assert [tuple(x.shape[2:]) for x in maps] == [(8, 14, 14), (4, 7, 7), (2, high, high)]


def test_a_stem_that_pools_over_time_halves_the_timestamps():
    with torch.no_grad():
        maps = build_backbone("r3d18_time_pool").eval()(torch.randn(1, 3, 32, 32, 32))
    assert [x.shape[2] for x in maps] == [8, 4, 2]


@pytest.mark.parametrize("net", NETS)
def test_convolutions_start_from_kaiming_fan_out(backbones, net):
    for name, module in backbones[net].named_modules():
        if isinstance(module, torch.nn.Conv3d):
            fan_out = module.weight[:, 0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name
            assert module.bias is None
        if isinstance(module, torch.nn.BatchNorm3d):
            assert (module.weight == 1).all() and (module.bias == 0).all()


def test_resnet18_is_r3d18_and_others_are_refused():
    assert BACKBONES["resnet18"] is BACKBONES["r3d18"]
    with pytest.raises(ValueError, match="'r3d20'.*r3d18"):
        build_backbone("r3d20")


@pytest.mark.parametrize("net, v, frames", [*((net, 2, 16) for net in NETS), ("r3d10", 3, 24)])
def test_output_shapes(net, v, frames):
    torch.manual_seed(0)
    output = MultiLevelModel(net, 20, 7)(torch.randn(2, v + 1, 3, frames, 32, 32))
    for level, stride in zip(LEVELS, (2, 4, 8)):
        assert getattr(output.instance, level).shape == getattr(output.graph_embeddings, level).shape == (2, v, 20)
        assert getattr(output.timestamp, level).shape == (2, v + 1, 20, frames // stride)
    assert output.reversed_low.shape == output.reversed_mid.shape == (2, v, 20)
    assert output.scores.shape == (2, v, 7)


@pytest.fixture
def small() -> tuple[MultiLevelModel, torch.Tensor]:
    torch.manual_seed(0)
    model = MultiLevelModel("r3d10", 20, 7).eval()
    for module in model.excitation.values():  # a gate that is not the same for every order of time
        torch.nn.init.normal_(module.shift.weight)
        torch.nn.init.normal_(module.expand_norm.bias)
    return model, torch.randn(2, 3, 3, 16, 32, 32)


def test_a_view_reaches_its_own_embeddings_alone(small):
    """In eval mode, where no batch statistics tie clips: change one view, see which outputs move."""
    model, views = small
    with torch.no_grad():
        before = model(views)
        for view in range(3):
            changed = views.clone()
            changed[1, view] += torch.randn_like(changed[1, view])
            after = model(changed)
            pairs = [*zip(before.instance, after.instance), *zip(before.graph_embeddings, after.graph_embeddings),
                     *zip(before.timestamp, after.timestamp), (before.scores, after.scores),
                     (before.reversed_low, after.reversed_low), (before.reversed_mid, after.reversed_mid)]
            for a, b in pairs:
                moved = ((a - b).flatten(2).abs().amax(2) > 1e-4).tolist()
                assert moved == [[False] * a.shape[1], [i == view for i in range(a.shape[1])]]


def test_reversed_features_are_the_excitation_of_flipped_maps(small):
    model, views = small
    with torch.no_grad():
        output = model(views)
        maps = model.backbone(views[:, :2].flatten(0, 1))
        for level, found in (("low", output.reversed_low), ("mid", output.reversed_mid)):
            features = model.excitation[level](getattr(maps, level).flip(2)).mean(dim=(3, 4))
            expected = model.instance[level](features).mean(dim=2).unflatten(0, (2, 2))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
            assert (found - getattr(output.instance, level)).abs().max() > 1e-3


def test_without_graph_the_rest_is_the_same(small):
    model, views = small
    with torch.no_grad():
        with_graph, without = model(views), model(views, with_graph=False)
    assert without.graph_embeddings is None
    assert torch.equal(with_graph.scores, without.scores)
    assert all(torch.equal(a, b) for a, b in zip(with_graph.timestamp, without.timestamp))


def test_frozen_parameters_stay_bit_identical_under_weight_decay(small):
    model, views = small
    assert model.set_trainable(prototypes=False, graph=False)
    assert not model.set_trainable(prototypes=False, graph=False)
    frozen = [*model.prototype_head.prototypes.parameters(), *model.graph_heads.parameters()]
    before = [p.clone() for p in frozen]
    moving = model.prototype_head.projection[0].weight
    start = moving.clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)

    def train_step():
        optimizer.zero_grad(set_to_none=True)
        output = model.train()(views)
        (output.scores.square().sum() + sum(x.square().sum() for x in output.graph_embeddings)).backward()
        optimizer.step()

    train_step()
    assert all(p.grad is None and torch.equal(p, old) for p, old in zip(frozen, before))
    assert not torch.equal(moving, start)
    assert model.set_trainable(prototypes=True, graph=True)
    train_step()
    assert not any(torch.equal(p, old) for p, old in zip(frozen, before))


def test_checkpoints_from_before_graph_heads_were_named_so_load(small):
    model, _ = small
    state = model.state_dict()
    old = {name.replace("graph_heads.", "graph."): torch.rand_like(value, dtype=torch.float)
           for name, value in state.items()}
    check_keys(old, model)
    model.load_state_dict(old)
    for name, value in old.items():
        loaded = model.state_dict()[name.replace("graph.", "graph_heads.")]
        assert torch.equal(loaded, value.to(loaded.dtype)), name
    assert "graph.low.0.weight" in old  # the caller's dict is left alone


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
