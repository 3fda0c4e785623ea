"""The torch module of a residual network; parameters are named as in torchvision."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn


class Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        """Map `channels` to `planes`."""
        super().__init__()
        self.conv1 = _convolution(channels, planes, 3, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _convolution(planes, planes, 3)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += shortcut
        output: Tensor = self.relu(y)
        return output


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution and a shortcut; the 3x3 one has the stride, as in torchvision."""

    def __init__(self, channels: int, planes: int, stride: int, widen: float) -> None:
        """Map `channels` to `4 * planes`, through `planes * widen`."""
        super().__init__()
        inner = int(planes * widen)
        self.conv1 = _convolution(channels, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = _convolution(inner, inner, 3, stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = _convolution(inner, 4 * planes, 1)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels, 4 * planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += shortcut
        output: Tensor = self.relu(y)
        return output


class ResidualNetwork(nn.Module):
    """A stem, four stages of blocks and a linear head."""

    def __init__(
        self,
        *,
        block: Literal["basic", "bottleneck"],
        blocks: Sequence[int],
        width: int,
        widen: float,
        classes: int,
    ) -> None:
        """Build the network as its spec says."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        channels = width
        stages = []
        for stage, count in enumerate(blocks):
            planes, layer = width << stage, nn.Sequential()
            for position in range(count):
                stride = 2 if stage and not position else 1
                if block == "basic":
                    layer.append(Basic(channels, planes, stride))
                    channels = planes
                else:
                    layer.append(Bottleneck(channels, planes, stride, widen))
                    channels = 4 * planes
            stages.append(layer)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, batch x classes, of images, batch x 3 x side x side."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def _convolution(channels: int, filters: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, filters, kernel, stride=stride, padding=kernel // 2, bias=False)


def _shortcut(channels: int, filters: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels == filters:
        return None
    return nn.Sequential(_convolution(channels, filters, 1, stride), nn.BatchNorm2d(filters))
