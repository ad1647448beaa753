"""3D ResNets: R3D-10/18/34/50 with a 7x7x7 stem, and R(2+1)D-18 of Tran et al. 2018.

R3D has the stem of the official code, whose max-pool is over space. That of Hara et al. 2018 (3D-ResNets-PyTorch) pools over
time too, which gives other features with the same weights: `r3d18_time_pool`, `r3d34_time_pool`, `r3d50_time_pool`.

Blocks and layers are torchvision's; the stem, the depths and the three outputs are defined here.

Shapes: M clips, 3 colors, T frames, H and W pixels; C channels, t timestamps, h and w positions of a feature map.
"""
from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torchvision.models.video.resnet import (BasicBlock, Bottleneck, Conv2Plus1D, Conv3DSimple, R2Plus1dStem,
                                             VideoResNet)

from models.levels import LevelFeatures
from models.numerics import SafeConv3d, run_blocks


class PooledStem(nn.Sequential):
    """7x7x7 convolution over space and time, stride 2 in space alone, then a 3x3 max-pool over space."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv3d(3, 64, kernel_size=7, stride=(1, 2, 2), padding=3, bias=False),
            nn.BatchNorm3d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool3d(kernel_size=(1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        )


class TimePooledStem(PooledStem):
    """The same with a 3x3x3 max-pool of stride 2 over time and space: every level has half as many timestamps."""

    def __init__(self) -> None:
        super().__init__()
        self[3] = nn.MaxPool3d(kernel_size=3, stride=2, padding=1)


class ResNet3D(VideoResNet):
    """Feature maps after layer2, layer3 and layer4 of a video ResNet, without its classifier.

    `channels` gives the width of each level. Convolutions start from Kaiming normal (fan-out), batch norms from
    weight 1 and bias 0, as VideoResNet sets them. `checkpoint_activations`: see `models.numerics.run_blocks`.
    """

    checkpoint_activations = False
    layers = {"low": "layer2", "mid": "layer3", "high": "layer4"}

    def __init__(self, block: type[nn.Module], conv: type[nn.Module], depths: list[int],
                 stem: type[nn.Module] = PooledStem) -> None:
        super().__init__(block, [conv] * 4, depths, stem, num_classes=1)
        del self.avgpool, self.fc
        SafeConv3d.replace_in(self)
        self.channels = {level: width * block.expansion for level, width in
                         (("low", 128), ("mid", 256), ("high", 512))}

    def forward(self, clips: Tensor) -> LevelFeatures:
        """Returns low [M, C, T/2, .., ..], mid [M, 2C, T/4, .., ..], high [M, 4C, T/8, .., ..] of clips [M, 3, T, H, W].

        With a TimePooledStem T/4, T/8 and T/16.
        """
        recompute = self.checkpoint_activations
        low = run_blocks([self.stem, *self.layer1, *self.layer2], clips, recompute)
        mid = run_blocks(self.layer3, low, recompute)
        return LevelFeatures(low, mid, run_blocks(self.layer4, mid, recompute))


RESNETS = {
    "r3d10": partial(ResNet3D, BasicBlock, Conv3DSimple, [1, 1, 1, 1]),
    "r3d18": partial(ResNet3D, BasicBlock, Conv3DSimple, [2, 2, 2, 2]),
    "r3d34": partial(ResNet3D, BasicBlock, Conv3DSimple, [3, 4, 6, 3]),
    "r3d50": partial(ResNet3D, Bottleneck, Conv3DSimple, [3, 4, 6, 3]),
    "r2plus1d18": partial(ResNet3D, BasicBlock, Conv2Plus1D, [2, 2, 2, 2], R2Plus1dStem),  # torchvision's r2plus1d_18
}
RESNETS |= {f"{net}_time_pool": partial(RESNETS[net], stem=TimePooledStem) for net in ("r3d18", "r3d34", "r3d50")}
