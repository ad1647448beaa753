"""S3D, the separable Inception network of Xie et al. 2018, as torchvision builds it.

Shapes: M clips, 3 colors, T frames, H and W pixels.
"""
from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torchvision.models.video import s3d as torchvision_s3d

from models.levels import LevelFeatures
from models.numerics import SafeConv3d, run_blocks

# Number of torchvision's `features` up to block 3c, up to block 4f; block 5c is the last.
END_LOW, END_MID = 7, 13


class S3D(nn.Module):
    """Feature maps after blocks 3c (480 channels), 4f (832) and 5c (1024).

    Deviation from torchvision: batch norms keep running statistics with momentum 0.1, not 0.001, which would need
    thousands of steps to forget its start, and convolutions start from Kaiming normal (fan-out) like the ResNets.
    `checkpoint_activations`: see `models.numerics.run_blocks`.
    """

    checkpoint_activations = False

    channels = {"low": 480, "mid": 832, "high": 1024}
    layers = {"low": "block 3c", "mid": "block 4f", "high": "block 5c"}

    def __init__(self) -> None:
        super().__init__()
        self.features = torchvision_s3d(norm_layer=partial(nn.BatchNorm3d, eps=0.001)).features
        SafeConv3d.replace_in(self)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, clips: Tensor) -> LevelFeatures:
        """Returns low [M, 480, T/2, .., ..], mid [M, 832, T/4, .., ..], high [M, 1024, T/8, .., ..] of [M, 3, T, H, W]."""
        recompute = self.checkpoint_activations
        low = run_blocks(self.features[:END_LOW], clips, recompute)
        mid = run_blocks(self.features[END_LOW:END_MID], low, recompute)
        return LevelFeatures(low, mid, run_blocks(self.features[END_MID:], mid, recompute))
