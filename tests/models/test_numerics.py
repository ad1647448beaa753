"""bfloat16 on the CPU: every layer's parameter gradient is the one that float32 gives for the same input.

From end to end bfloat16 and float32 differ by tens of percent in early layers even where every kernel is right: ReLU
and max-pool choices flip, and batch norms amplify. So layers are compared one by one: what went in, and the gradient
that came back, are recorded in the bfloat16 pass and given to the same layer in float32. Right kernels then differ by
rounding alone, up to 2^-9 = 0.002 for each factor: measured 0.007 at most. The kernels that this is about
give an error of about 1, inf or NaN.
"""
from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.multilevel import BACKBONES, MultiLevelModel
from models.numerics import SafeConv3d, at_least_float32

ROUNDING = 0.02
NETS = [net for net in BACKBONES if net != "resnet18" and not net.endswith("_time_pool")]


def flat(output) -> list[torch.Tensor]:
    """All tensors of a ModelOutput."""
    return [*output.instance, output.reversed_low, output.reversed_mid, *output.timestamp, output.scores,
            *output.graph_embeddings]


def backward(model: nn.Module, views: torch.Tensor, bfloat16: bool) -> None:
    """Set the gradients of a fixed random linear function of all outputs."""
    model.zero_grad(set_to_none=True)
    with torch.autocast(views.device.type, torch.bfloat16, enabled=bfloat16):
        outputs = flat(model(views))
    generator = torch.Generator().manual_seed(1)
    sum((x.float() * torch.randn(x.shape, generator=generator).to(x.device)).sum() for x in outputs).backward()


def layer_errors(model: nn.Module, views: torch.Tensor) -> dict[str, float]:
    """Relative error of each parameter's bfloat16 gradient against float32's, layer by layer."""
    layers = {name: module for name, module in model.named_modules() if list(module.parameters(recurse=False))}
    calls: dict[str, list] = {name: [] for name in layers}
    hooks = []
    for name, layer in layers.items():
        def record(_module, inputs, output, name=name):
            seen = [inputs[0].detach().clone()]
            calls[name].append(seen)
            output.register_hook(lambda gradient: seen.append(gradient.clone()))
        hooks.append(layer.register_forward_hook(record))
    backward(model, views, bfloat16=True)
    for hook in hooks:
        hook.remove()

    errors = {}
    for name, layer in layers.items():
        parameters = dict(layer.named_parameters(recurse=False))
        expected = [torch.zeros_like(p) for p in parameters.values()]
        for x, gradient in calls[name]:
            output = layer(x.float())
            parts = torch.autograd.grad(output, list(parameters.values()), gradient.float())
            expected = [a + b for a, b in zip(expected, parts)]
        for (leaf, parameter), reference in zip(parameters.items(), expected):
            scale = reference.norm()
            if scale > 1e-4 * max(e.norm() for e in expected):  # a bias before a batch norm gets rounding noise alone
                errors[f"{name}.{leaf}"] = ((parameter.grad - reference).norm() / scale).item()
    return errors


@pytest.mark.parametrize("videos, frames, size", [(2, 16, 32), (1, 16, 48), (2, 8, 32), (1, 24, 32), (1, 32, 32)])
@pytest.mark.parametrize("net", NETS)
def test_bfloat16_gradient_of_every_layer(net, videos, frames, size):
    torch.manual_seed(0)
    model = MultiLevelModel(net, 32, 16)
    views = torch.randn(videos, 3, 3, frames, size, size)
    for _ in range(2):  # the wrong kernels differ from run to run
        errors = layer_errors(model, views)
        wrong = {name: error for name, error in errors.items() if not error < ROUNDING}  # NaN is wrong, too
        assert not wrong
        assert len(errors) >= 0.95 * sum(1 for _ in model.parameters())


def test_float64_and_float32_stay_as_they_are():
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32),
                            (torch.float32, torch.float32), (torch.float64, torch.float64)):
        assert at_least_float32(torch.ones(2, dtype=dtype)).dtype == expected


@pytest.mark.parametrize("kernel, stride", [((3, 3, 3), (1, 1, 1)), ((3, 3, 3), (2, 2, 2)), ((3, 1, 1), (1, 1, 1)),
                                            ((1, 3, 3), (1, 2, 2)), ((7, 1, 1), (2, 1, 1)), ((7, 7, 7), (1, 2, 2))])
def test_bfloat16_convolutions_of_small_maps(kernel, stride):
    """All sizes about those where some CPU kernels are wrong, against float32 on the same rounded numbers."""
    torch.manual_seed(0)
    conv = nn.Conv3d(16, 32, kernel, stride, [size // 2 for size in kernel], bias=False)
    SafeConv3d.replace_in(conv)
    for videos, frames, size in itertools.product((1, 4), (1, 2, 3, 4, 8), (1, 2, 4)):
        x = torch.randn(videos, 16, frames, size, size).bfloat16().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            output = conv(x)
        gradient = torch.randn(output.shape).bfloat16()
        found = [output, *torch.autograd.grad(output, (x, conv.weight), gradient)]
        weight = conv.weight.detach().bfloat16().float().requires_grad_()
        wide = x.detach().float().requires_grad_()
        output = F.conv3d(wide, weight, stride=stride, padding=conv.padding)
        wanted = [output, *torch.autograd.grad(output, (wide, weight), gradient.float())]
        for a, b in zip(found, wanted):
            assert (a.float() - b).norm() <= ROUNDING * b.norm(), (videos, frames, size)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("depth", [1, 7])
def test_a_folded_stem_has_the_same_sums(depth, channels_last):
    torch.manual_seed(0)
    conv = nn.Conv3d(3, 5, (depth, 7, 7), (1, 2, 2), (depth // 2, 3, 3), bias=False).double()
    x = torch.randn(2, 3, 6, 20, 28, dtype=torch.float64, requires_grad=True)
    if channels_last:
        conv.to(memory_format=torch.channels_last_3d)
    SafeConv3d.replace_in(conv)
    expected = conv(x)
    found = conv.folded(x, torch.float64)
    gradient = torch.randn_like(expected)
    for a, b in zip((found, *torch.autograd.grad(found, (x, conv.weight), gradient)),
                    (expected, *torch.autograd.grad(expected, (x, conv.weight), gradient))):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("net", NETS)
def test_only_the_stem_is_folded_and_only_under_autocast_on_a_gpu(net, monkeypatch):
    """With stand-ins for a map on a GPU and for both kernels."""
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(SafeConv3d, "folded", lambda conv, x, dtype: dtype)
    monkeypatch.setattr(nn.Conv3d, "forward", lambda conv, x: "plain")
    convs = [module for module in MultiLevelModel(net, 32, 16).backbone.modules() if isinstance(module, SafeConv3d)]
    for device, autocast, size in (("cuda", True, 112), ("cuda", True, 113), ("cuda", False, 112), ("cpu", False, 112)):
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda _, autocast=autocast: autocast)
        found = [conv(SimpleNamespace(shape=(2, 3, 16, size, size), device=torch.device(device), is_cuda=device == "cuda"))
                 for conv in convs]
        folded = (device, autocast, size) == ("cuda", True, 112)
        assert found == [torch.bfloat16 if folded else "plain"] + ["plain"] * (len(convs) - 1)


def test_no_kernel_is_told_of_padding_as_wide_as_its_map(monkeypatch):
    """Whatever kernels this CPU has: those of another may be wrong."""
    asked = []

    def conv3d(x, weight, bias, stride, padding, dilation, groups):
        asked.append((tuple(x.shape[2:]), tuple(padding)))
        return real(x, weight, bias, stride, padding, dilation, groups)

    real = F.conv3d
    monkeypatch.setattr(F, "conv3d", conv3d)
    conv = nn.Conv3d(4, 4, 3, padding=1)
    SafeConv3d.replace_in(conv)
    for size, wanted in (((2, 5, 5), ((4, 5, 5), (0, 1, 1))), ((8, 3, 4), ((8, 5, 4), (1, 0, 1))),
                         ((4, 4, 4), ((4, 4, 4), (1, 1, 1)))):
        for autocast in (True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                output = conv(torch.randn(1, 4, *size))
            assert output.shape[2:] == size
            assert asked.pop() == (wanted if autocast else (size, (1, 1, 1)))


def test_convolutions_differ_under_cpu_autocast_only():
    conv = nn.Conv3d(4, 4, 3, padding=1)
    x, state = torch.randn(2, 4, 2, 5, 5), conv.state_dict()
    expected = conv(x)
    SafeConv3d.replace_in(conv)
    assert torch.equal(conv(x), expected)
    assert all(torch.equal(value, state[name]) for name, value in conv.state_dict().items())
    assert torch.equal(copy.deepcopy(conv)(x), expected)
    assert conv.double()(x.double()).dtype == torch.float64
