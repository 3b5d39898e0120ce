"""Networks for small devices: depthwise convolutions, gates, shuffles and cheap channels."""

import torch
from torch import Tensor, nn

from .common import Module, Residual, SqueezeExcite, architecture, conv, head, scaler


def inverted(
    cin: int,
    expanded: int,
    cout: int,
    kernel: int,
    stride: int,
    act: Module,
    gate: nn.Module | None = None,
) -> nn.Module:
    """Expand, depthwise, an optional gate, project; a residual sum where the shape stays."""
    layers = [conv(cin, expanded, 1, act=act)] if expanded != cin else []
    layers.append(conv(expanded, expanded, kernel, stride, expanded, act))
    body = nn.Sequential(*layers, *([gate] if gate else []), conv(expanded, cout, 1, act=None))
    return Residual(body) if stride == 1 and cin == cout else body


@architecture((3, 32, 32))
def mobilenet_v2(width: float) -> nn.Module:
    """MobileNetV2: inverted residuals with ReLU6 (Sandler 2018)."""
    c = scaler(width)
    layers: list[nn.Module] = [conv(3, c(16), 3, 2, act=nn.ReLU6)]
    cin = c(16)
    for ratio, cout, stride in (1, 16, 1), (6, 24, 2), (6, 24, 1), (6, 32, 2), (6, 32, 1), (6, 48, 1):
        layers.append(inverted(cin, ratio * cin, c(cout), 3, stride, nn.ReLU6))
        cin = c(cout)
    return nn.Sequential(*layers, conv(cin, c(256), 1, act=nn.ReLU6), head(c(256)))


@architecture((3, 32, 32))
def mobilenet_v3(width: float) -> nn.Module:
    """MobileNetV3: hard-swish and gates of hard sigmoids; a hidden layer behind the pooling (Howard 2019)."""
    c = scaler(width)
    layers: list[nn.Module] = [conv(3, c(16), 3, 2, act=nn.Hardswish)]
    cin = c(16)
    for kernel, ratio, cout, gated, act, stride in (
        (3, 1, 16, True, nn.ReLU, 1),
        (3, 4, 24, False, nn.ReLU, 2),
        (5, 4, 24, True, nn.Hardswish, 1),
        (5, 6, 40, True, nn.Hardswish, 2),
        (5, 6, 40, True, nn.Hardswish, 1),
    ):
        expanded = ratio * cin
        gate = SqueezeExcite(expanded, max(8, expanded // 4), gate=nn.Hardsigmoid) if gated else None
        layers.append(inverted(cin, expanded, c(cout), kernel, stride, act, gate))
        cin = c(cout)
    tail = [
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(c(160), c(128)),
        nn.Hardswish(),
        nn.Linear(c(128), 10),
    ]
    return nn.Sequential(*layers, conv(cin, c(160), 1, act=nn.Hardswish), *tail)


@architecture((3, 32, 32))
def efficientnet(width: float) -> nn.Module:
    """EfficientNet: inverted residuals with SiLU; gates as wide as a quarter of the input (Tan 2019)."""
    c = scaler(width)
    layers: list[nn.Module] = [conv(3, c(16), 3, 2, act=nn.SiLU)]
    cin = c(16)
    blocks = (3, 1, 16, 1), (3, 6, 24, 2), (3, 6, 24, 1), (5, 6, 40, 2), (5, 6, 40, 1)
    for kernel, ratio, cout, stride in blocks:
        gate = SqueezeExcite(ratio * cin, max(4, cin // 4), act=nn.SiLU)
        layers.append(inverted(cin, ratio * cin, c(cout), kernel, stride, nn.SiLU, gate))
        cin = c(cout)
    return nn.Sequential(*layers, conv(cin, c(160), 1, act=nn.SiLU), head(c(160)))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of the groups."""
    n, channels, h, w = x.shape
    return x.view(n, groups, channels // groups, h, w).transpose(1, 2).reshape(n, channels, h, w)


class ShuffleV2(nn.Module):
    """Half of the channels pass by; concat and shuffle. With a stride both halves see the whole input."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        half, seen = cout // 2, cin if stride > 1 else cout // 2
        self.stride = stride
        self.main = nn.Sequential(conv(seen, half, 1), conv(half, half, 3, stride, half, act=None), conv(half, half, 1))
        self.side = nn.Sequential(conv(cin, cin, 3, stride, cin, act=None), conv(cin, half, 1)) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        if self.side is None:
            passed, x = x.chunk(2, 1)
        else:
            passed = self.side(x)
        return channel_shuffle(torch.cat([passed, self.main(x)], 1), 2)


@architecture((3, 32, 32))
def shufflenet_v2(width: float) -> nn.Module:
    """ShuffleNetV2: split, concat and channel shuffle (Ma 2018)."""
    c = scaler(width, 16)
    layers: list[nn.Module] = [conv(3, c(32))]
    cin = c(32)
    for cout, stride in (64, 2), (64, 1), (64, 1), (128, 2), (128, 1), (128, 1):
        layers.append(ShuffleV2(cin, c(cout), stride))
        cin = c(cout)
    return nn.Sequential(*layers, conv(cin, c(256), 1), head(c(256)))


class ShuffleV1(nn.Module):
    """Grouped 1x1, shuffle, depthwise, grouped 1x1; with a stride the pooled input is concatenated."""

    def __init__(self, cin: int, cout: int, stride: int, groups: int) -> None:
        super().__init__()
        self.stride, self.groups = stride, groups
        mid, out = cout // 2, cout - cin if stride > 1 else cout
        self.first = conv(cin, mid, 1, groups=groups)
        self.second = nn.Sequential(
            conv(mid, mid, 3, stride, mid, act=None), conv(mid, out, 1, groups=groups, act=None)
        )
        self.pool = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(channel_shuffle(self.first(x), self.groups))
        return torch.relu(torch.cat([self.pool(x), y], 1) if self.stride > 1 else x + y)


@architecture((3, 32, 32))
def shufflenet_v1(width: float) -> nn.Module:
    """ShuffleNet: grouped 1x1 convolutions with a shuffle between them (Zhang 2018)."""
    base = scaler(width)(32)
    layers: list[nn.Module] = [conv(3, base)]
    cin = base
    for ratio, stride in (4, 2), (4, 1), (8, 2), (8, 1):
        layers.append(ShuffleV1(cin, ratio * base, stride, groups=4))
        cin = ratio * base
    return nn.Sequential(*layers, head(cin))


class Ghost(nn.Module):
    """Half of the channels come from a convolution, the others from a depthwise one over these."""

    def __init__(self, cin: int, cout: int, act: Module | None = nn.ReLU) -> None:
        super().__init__()
        primary = (cout + 1) // 2
        self.cout = cout
        self.primary = conv(cin, primary, 1, act=act)
        self.cheap = conv(primary, primary, 3, groups=primary, act=act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.primary(x)
        return torch.cat([y, self.cheap(y)], 1)[:, : self.cout]


def ghost_block(cin: int, mid: int, cout: int, stride: int) -> Residual:
    """Two ghosts around an optional depthwise convolution and a gate."""
    middle: list[nn.Module] = [conv(mid, mid, 3, stride, mid, act=None)] if stride > 1 else []
    middle.append(SqueezeExcite(mid, max(4, mid // 4), gate=nn.Hardsigmoid))
    shortcut = None
    if stride > 1 or cin != cout:
        shortcut = nn.Sequential(conv(cin, cin, 3, stride, cin, act=None), conv(cin, cout, 1, act=None))
    return Residual(nn.Sequential(Ghost(cin, mid), *middle, Ghost(mid, cout, act=None)), shortcut)


@architecture((3, 32, 32))
def ghostnet(width: float) -> nn.Module:
    """GhostNet: a convolution and its depthwise echo, concatenated and sliced (Han 2020)."""
    c = scaler(width)
    return nn.Sequential(
        conv(3, c(16), 3, 2),
        ghost_block(c(16), c(48), c(16), 1),
        ghost_block(c(16), c(72) - 1, c(40), 2),
        ghost_block(c(40), c(120), c(40), 1),
        ghost_block(c(40), c(160), c(80), 2),
        conv(c(80), c(320), 1),
        head(c(320)),
    )
