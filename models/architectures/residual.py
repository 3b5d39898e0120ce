"""Networks around a residual stream: ResNet and its relatives, with each kind of norm."""

# mypy: disable-error-code="no-any-return"

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional

from .common import Module, Residual, SqueezeExcite, architecture, conv, head, scaler


def bottleneck(
    cin: int, mid: int, cout: int, stride: int, groups: int = 1, squeezed: int = 0, act: Module = nn.ReLU
) -> Residual:
    """1x1, 3x3 (grouped or not), an optional gate, 1x1, and a projection where the shape changes."""
    gate = [SqueezeExcite(mid, squeezed)] if squeezed else []
    body = nn.Sequential(
        conv(cin, mid, 1, act=act),
        conv(mid, mid, 3, stride, groups, act),
        *gate,
        conv(mid, cout, 1, act=None),
    )
    return Residual(body, conv(cin, cout, 1, stride, act=None) if cin != cout or stride > 1 else None, act())


def basic(cin: int, cout: int, stride: int, norm: Module = nn.BatchNorm2d, act: Module = nn.ReLU) -> Residual:
    """Two 3x3 convolutions, and a projection where the shape changes."""
    body = nn.Sequential(conv(cin, cout, 3, stride, act=act, norm=norm), conv(cout, cout, act=None, norm=norm))
    project = conv(cin, cout, 1, stride, act=None, norm=norm) if cin != cout or stride > 1 else None
    return Residual(body, project, act())


@architecture((3, 64, 64))
def resnet(width: float) -> nn.Module:
    """ResNet with bottlenecks (He 2016)."""
    c = scaler(width)
    return nn.Sequential(
        conv(3, c(32), 7, 2),
        nn.MaxPool2d(3, 2, 1),
        bottleneck(c(32), c(16), c(64), 1),
        bottleneck(c(64), c(16), c(64), 1),
        bottleneck(c(64), c(32), c(128), 2),
        bottleneck(c(128), c(32), c(128), 1),
        bottleneck(c(128), c(64), c(256), 2),
        head(c(256)),
    )


@architecture((3, 32, 32))
def resnext(width: float) -> nn.Module:
    """ResNeXt: the bottleneck's 3x3 convolution is grouped (Xie 2017)."""
    c = scaler(width, 16)
    return nn.Sequential(
        conv(3, c(32), 3, 2),
        bottleneck(c(32), c(64), c(128), 1, groups=8),
        bottleneck(c(128), c(64), c(128), 1, groups=8),
        bottleneck(c(128), c(128), c(256), 2, groups=16),
        head(c(256)),
    )


@architecture((3, 32, 32))
def regnet(width: float) -> nn.Module:
    """RegNetY-like: fixed group width, squeeze-and-excite inside the bottleneck (Radosavovic 2020)."""
    c = scaler(width, 16)
    layers: list[nn.Module] = [conv(3, 32, 3, 2)]
    cin = 32
    for cout, stride in (48, 1), (48, 1), (96, 2), (96, 1), (160, 2):
        layers.append(bottleneck(cin, c(cout), c(cout), stride, c(cout) // 16, squeezed=max(4, cin // 4)))
        cin = c(cout)
    return nn.Sequential(*layers, head(cin))


@architecture((3, 32, 32))
def resnet_groupnorm(width: float) -> nn.Module:
    """ResNet with GroupNorm of 8 groups."""
    c = scaler(width, 16)
    norm = functools.partial(nn.GroupNorm, 8)
    blocks = [basic(c(32), c(32), 1, norm), basic(c(32), c(64), 2, norm), basic(c(64), c(96), 2, norm)]
    return nn.Sequential(conv(3, c(32), norm=norm), *blocks, head(c(96)))


@architecture((3, 32, 32))
def resnet_instancenorm(width: float) -> nn.Module:
    """ResNet with affine InstanceNorm and a PReLU slope for each channel."""
    c = scaler(width)
    norm = functools.partial(nn.InstanceNorm2d, affine=True)
    layers: list[nn.Module] = [conv(3, c(32), norm=norm, act=functools.partial(nn.PReLU, c(32)))]
    for cin, cout, stride in (c(32), c(32), 1), (c(32), c(64), 2), (c(64), c(96), 2):
        layers.append(basic(cin, cout, stride, norm, functools.partial(nn.PReLU, cout)))
    return nn.Sequential(*layers, head(c(96)))


class PreActivation(nn.Module):
    """Norm and activation come before each convolution; the projection reads the activated input."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(cin)
        self.body = nn.Sequential(conv(cin, cout, 3, stride), nn.Conv2d(cout, cout, 3, 1, 1, bias=False))
        self.project = nn.Conv2d(cin, cout, 1, stride, bias=False) if cin != cout or stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm(x))
        return self.body(y) + (self.project(y) if self.project else x)


@architecture((3, 32, 32))
def preact_resnet(width: float) -> nn.Module:
    """Pre-activation ResNet: BatchNorms after a sum, which no convolution absorbs (He 2016b)."""
    c = scaler(width)
    return nn.Sequential(
        nn.Conv2d(3, c(32), 3, 1, 1, bias=False),
        PreActivation(c(32), c(32), 1),
        PreActivation(c(32), c(64), 2),
        PreActivation(c(64), c(64), 1),
        PreActivation(c(64), c(128), 2),
        nn.BatchNorm2d(c(128)),
        nn.ReLU(),
        head(c(128)),
    )


class StandardisedConv(nn.Conv2d):
    """A convolution whose weight is standardised for each filter as the network runs, times a gain."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1) -> None:
        super().__init__(cin, cout, kernel, stride, kernel // 2)
        self.gain = nn.Parameter(torch.empty(cout, 1, 1, 1).uniform_(0.7, 1.4))

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        scale = (w.square().sum((1, 2, 3), keepdim=True) + 1e-4).rsqrt() * self.gain
        return functional.conv2d(x, w * scale, self.bias, self.stride, self.padding)


class NormFree(nn.Module):
    """project(y) + body(y) * alpha for y = gelu(x) * beta: scalar constants in place of norms."""

    def __init__(self, cin: int, cout: int, stride: int, beta: float, alpha: float = 0.2) -> None:
        super().__init__()
        self.beta, self.alpha = beta, alpha
        self.body = nn.Sequential(StandardisedConv(cin, cout, 3, stride), nn.GELU(), StandardisedConv(cout, cout, 3))
        self.project = StandardisedConv(cin, cout, 1, stride) if cin != cout or stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = functional.gelu(x) * self.beta
        return self.project(y) + self.body(y) * self.alpha


@architecture((3, 32, 32))
def nfnet(width: float) -> nn.Module:
    """Normaliser-free network: the graph computes weights, unless the exporter folds them (Brock 2021)."""
    c = scaler(width)
    blocks = [NormFree(c(32), c(32), 1, 1.7), NormFree(c(32), c(64), 2, 1.5), NormFree(c(64), c(96), 2, 1.4)]
    return nn.Sequential(StandardisedConv(3, c(32), 3), *blocks, nn.GELU(), head(c(96)))
