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


def official_shapes(num_prototypes: int, width: int = 64) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter and buffer, by name; `width`: of the stem, in ratio to which all others are."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{leaf}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    def linear(name: str, outputs: int, inputs: int, *kernel: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, *kernel)
        shapes[f"{name}.bias"] = (outputs,)

    shapes["backbone.conv1.weight"] = (width, 3, 7, 7, 7)
    norm("backbone.bn1", width)
    inputs, low, mid, high = width, 2 * width, 4 * width, 8 * width
    for layer, outputs in enumerate((width, low, mid, high), start=1):
        for block in (0, 1):
            name = f"backbone.layer{layer}.{block}"
            shapes[f"{name}.conv1.weight"] = (outputs, inputs, 3, 3, 3)
            norm(f"{name}.bn1", outputs)
            shapes[f"{name}.conv2.weight"] = (outputs, outputs, 3, 3, 3)
            norm(f"{name}.bn2", outputs)
            if inputs != outputs:
                shapes[f"{name}.downsample.0.weight"] = (outputs, inputs, 1, 1, 1)
                norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    for name, channels in (("backbone.melow.0", low), ("backbone.memid.0", mid)):
        reduced = channels // 16
        shapes[f"{name}.conv1.weight"] = (reduced, channels, 1, 1)
        norm(f"{name}.bn1", reduced)
        shapes[f"{name}.conv2.weight"] = (reduced, 1, 3, 3)
        shapes[f"{name}.conv3.weight"] = (channels, reduced, 1, 1)
        norm(f"{name}.bn3", channels)
    linear("backbone.fc", 400, high)
    for level, channels in (("", high), ("_low", low), ("_mid", mid)):
        for kind in ("", "_graph", "_fine"):
            linear(f"project{level}{kind}.0", channels, channels, 1)
            linear(f"project{level}{kind}.2", EMBEDDING_DIM, channels, 1)
    linear("project_global.0", high, high)
    norm("project_global.1", high)
    linear("project_global.3", EMBEDDING_DIM, high)
    shapes["prototype.weight"] = (num_prototypes, EMBEDDING_DIM)
    return shapes


def official_state(num_prototypes: int, width: int = 64) -> dict[str, Tensor]:
    """Float64 weights, each drawn from a generator seeded by its name; prototypes of unit length."""
    state = {}
    for name, shape in official_shapes(num_prototypes, width).items():
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
