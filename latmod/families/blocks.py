"""Building blocks that several families share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

_IN_PLACE: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "hardsigmoid": nn.Hardsigmoid,
    "leaky": nn.LeakyReLU,
}
_ELSEWHERE: dict[str, Callable[[], nn.Module]] = {"sigmoid": nn.Sigmoid, "gelu": nn.GELU, "none": nn.Identity}


def activation(name: str, *, in_place: bool = True) -> nn.Module:
    """Return an activation by its name, in place where it can be, as published networks have it (torchvision, timm).

    In torch it shows: mobile networks with activations that write elsewhere take 8 % more (Zen 4). No graph tells.
    """
    return _IN_PLACE[name](inplace=in_place) if name in _IN_PLACE else _ELSEWHERE[name]()


class ConvUnit(nn.Sequential):
    """A convolution, a batch norm and an activation; `kernel` may be a pair, padding keeps the side."""

    def __init__(
        self,
        channels: int,
        filters: int,
        kernel: int | tuple[int, int] = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        act: str = "relu",
        norm: bool = True,
        padding: int | tuple[int, int] | None = None,
    ) -> None:
        """Map `channels` to `filters`."""
        high, wide = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        same = (dilation * (high // 2), dilation * (wide // 2))
        parts: list[nn.Module] = [
            nn.Conv2d(
                channels,
                filters,
                (high, wide),
                stride=stride,
                padding=same if padding is None else padding,
                groups=groups,
                dilation=dilation,
                bias=not norm,
            )
        ]
        if norm:
            parts.append(nn.BatchNorm2d(filters))
        if act != "none":
            parts.append(activation(act))
        super().__init__(*parts)


class Added(nn.Module):
    """Modules in a row, what comes of them scaled down or not, and a shortcut (Lim et al. 2017, arXiv:1707.02921)."""

    def __init__(self, *parts: nn.Module, scale: float = 1.0) -> None:
        """Take modules that keep the shape."""
        super().__init__()
        self.body, self.scale = nn.Sequential(*parts), scale

    def forward(self, x: Tensor) -> Tensor:
        """Run the modules."""
        y: Tensor = self.body(x)
        return x + (y if self.scale == 1.0 else y * self.scale)


class Residual(nn.Module):
    """Modules beside a shortcut, none where it is None, and an activation behind the sum (He et al. 2015)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None, act: str) -> None:
        """Take modules that map to the same shape; `act` may be "none"."""
        super().__init__()
        self.body, self.shortcut = body, shortcut
        self.act = nn.Identity() if act == "none" else activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        y: Tensor = self.body(x)
        output: Tensor = self.act(y if self.shortcut is None else y + self.shortcut(x))
        return output


def projection(channels: int, filters: int, stride: int) -> nn.Module:
    """Return a shortcut that maps `channels` to `filters`: nothing where shapes stay, else a 1x1 convolution."""
    if stride == 1 and channels == filters:
        return nn.Identity()
    return ConvUnit(channels, filters, 1, stride=stride, act="none")


def in_parts(x: Tensor, sizes: int | list[int], convolutions: nn.ModuleList) -> Tensor:
    """Convolve each part of the channels by itself, and put the parts together again; `sizes` are theirs."""
    parts = torch.split(x, sizes, dim=1)
    return torch.cat([conv(part) for conv, part in zip(convolutions, parts, strict=True)], dim=1)


class SqueezeExcite(nn.Module):
    """Weigh channels by what a small network makes of their means (Hu et al. 2018, arXiv:1709.01507).

    Not in place, as in torchvision.
    """

    def __init__(self, channels: int, squeezed: int, act: str = "relu", gate: str = "sigmoid") -> None:
        """Squeeze to `squeezed` channels in between."""
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = activation(act, in_place=False)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = activation(gate, in_place=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input, its channels weighed."""
        weights: Tensor = self.gate(self.expand(self.act(self.reduce(self.pool(x)))))
        return weights * x


class Head(nn.Module):
    """Pool globally and classify, through a hidden layer if `hidden` is given."""

    def __init__(self, channels: int, classes: int, *, hidden: int = 0, act: str = "relu", mean: bool = False) -> None:
        """Map `channels` to `classes`; `mean` pools by a mean instead of an adaptive pool."""
        super().__init__()
        self.mean = mean
        self.pool = nn.AdaptiveAvgPool2d(1)
        layers: list[nn.Module] = []
        if hidden:
            layers = [nn.Linear(channels, hidden), activation(act), nn.Dropout(0.2)]
        self.classifier = nn.Sequential(*layers, nn.Linear(hidden or channels, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, batch x classes."""
        flat = x.mean((2, 3)) if self.mean else torch.flatten(self.pool(x), 1)
        logits: Tensor = self.classifier(flat)
        return logits
