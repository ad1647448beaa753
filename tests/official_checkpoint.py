"""A checkpoint in the names and shapes of the official code (r3d18), written out apart from our own model.

Shapes: K prototypes; the embeddings are 128 wide.
"""
from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import Tensor

EMBEDDING_DIM = 128


def official_shapes(num_prototypes: int) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter and buffer, by name."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{leaf}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    def linear(name: str, outputs: int, inputs: int, *kernel: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, *kernel)
        shapes[f"{name}.bias"] = (outputs,)

    shapes["backbone.conv1.weight"] = (64, 3, 7, 7, 7)
    norm("backbone.bn1", 64)
    inputs = 64
    for layer, width in enumerate((64, 128, 256, 512), start=1):
        for block in (0, 1):
            name = f"backbone.layer{layer}.{block}"
            shapes[f"{name}.conv1.weight"] = (width, inputs, 3, 3, 3)
            norm(f"{name}.bn1", width)
            shapes[f"{name}.conv2.weight"] = (width, width, 3, 3, 3)
            norm(f"{name}.bn2", width)
            if inputs != width:
                shapes[f"{name}.downsample.0.weight"] = (width, inputs, 1, 1, 1)
                norm(f"{name}.downsample.1", width)
            inputs = width
    for name, channels in (("backbone.melow.0", 128), ("backbone.memid.0", 256)):
        reduced = channels // 16
        shapes[f"{name}.conv1.weight"] = (reduced, channels, 1, 1)
        norm(f"{name}.bn1", reduced)
        shapes[f"{name}.conv2.weight"] = (reduced, 1, 3, 3)
        shapes[f"{name}.conv3.weight"] = (channels, reduced, 1, 1)
        norm(f"{name}.bn3", channels)
    linear("backbone.fc", 400, 512)
    for level, channels in (("", 512), ("_low", 128), ("_mid", 256)):
        for kind in ("", "_graph", "_fine"):
            linear(f"project{level}{kind}.0", channels, channels, 1)
            linear(f"project{level}{kind}.2", EMBEDDING_DIM, channels, 1)
    linear("project_global.0", 512, 512)
    norm("project_global.1", 512)
    linear("project_global.3", EMBEDDING_DIM, 512)
    shapes["prototype.weight"] = (num_prototypes, EMBEDDING_DIM)
    return shapes


def official_state(num_prototypes: int) -> dict[str, Tensor]:
    """Float64 weights, each drawn from a generator seeded by its name; prototypes of unit length."""
    state = {}
    for name, shape in official_shapes(num_prototypes).items():
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.long)
            continue
        if name.endswith("running_var"):
            values = generator.uniform(0.5, 1.5, shape)
        elif name.endswith("running_mean"):
            values = generator.normal(0, 0.1, shape)
        elif len(shape) >= 2:
            values = generator.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)
        elif name.endswith("weight"):
            values = generator.uniform(0.5, 1.5, shape)
        else:
            values = generator.normal(0, 0.1, shape)
        state[name] = torch.from_numpy(values)
    prototypes = state["prototype.weight"]
    state["prototype.weight"] = prototypes / prototypes.norm(dim=1, keepdim=True)
    return state
