"""Time reversal and motion excitation, which prepare low- and mid-level features for contrast.

Shapes: M feature maps, C channels, t timestamps, h and w positions; r = 16 reduces the channels.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

REDUCTION = 16


def reverse_time(features: Tensor) -> Tensor:
    """Returns [2M, C, t, h, w]: the M maps [M, C, t, h, w] in natural order, then reversed along time.

    The reversal acts on features; the backbone never sees a reversed clip.
    """
    return torch.cat([features, features.flip(2)])


class MotionExcitation(nn.Module):
    """Feature maps re-weighted by channel according to the motion at each timestamp.

    y = x + g * x with the gate g = sigmoid(BN(conv1x1(m))) - 0.5 per channel and timestamp, where m_tau is the
    spatial mean of z'_{tau+1} - z_tau for every tau but the last, and 0 for the last; z = BN(conv1x1(x)) has C / r
    channels and z' = depthwise conv3x3(z). No convolution has a bias. Without motion g is not exactly 0: z' differs from
    z, and the second BN has a bias.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = channels // REDUCTION
        self.squeeze = nn.Conv2d(channels, reduced, kernel_size=1, bias=False)
        self.squeeze_norm = nn.BatchNorm2d(reduced)
        self.shift = nn.Conv2d(reduced, reduced, kernel_size=3, padding=1, groups=reduced, bias=False)
        self.expand = nn.Conv2d(reduced, channels, kernel_size=1, bias=False)
        self.expand_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x [M, C, t, h, w], re-weighted."""
        m, c, t, h, w = x.shape
        frames = x.transpose(1, 2).reshape(m * t, c, h, w)
        z = self.squeeze_norm(self.squeeze(frames))                              # [M*t, C/r, h, w]
        z_next = self.shift(z).unflatten(0, (m, t))[:, 1:]                       # [M, t-1, C/r, h, w]
        motion = (z_next - z.unflatten(0, (m, t))[:, :-1]).mean(dim=(3, 4))      # [M, t-1, C/r]
        motion = torch.cat([motion, torch.zeros_like(motion[:, :1])], dim=1)     # [M, t, C/r]
        gate = self.expand_norm(self.expand(motion.flatten(0, 1)[:, :, None, None])).sigmoid() - 0.5
        gate = gate.view(m, t, c, 1, 1).transpose(1, 2)                          # [M, C, t, 1, 1]
        return x + gate * x
