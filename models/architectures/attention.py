"""Convolutional networks with attention over channels or positions, and norms over channels."""

# mypy: disable-error-code="no-any-return"

import torch
from torch import Tensor, nn

from .common import Residual, architecture, conv, head, scaler


class ChannelsFirst(nn.Module):
    """LayerNorm over the channels of a map, between two transposes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, LayerNorm, two linear layers on channels-last maps, layer scale, residual sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, 1, 3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.scale = nn.Parameter(torch.empty(channels).uniform_(0.2, 0.6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.mlp(y) * self.scale).permute(0, 3, 1, 2)


@architecture((3, 32, 32))
def convnext(width: float) -> nn.Module:
    """ConvNeXt (Liu 2022)."""
    c = scaler(width)
    layers: list[nn.Module] = [nn.Conv2d(3, c(32), 2, 2), ChannelsFirst(c(32))]
    cin = c(32)
    for cout, depth in (32, 2), (64, 2), (96, 1):
        if c(cout) != cin:
            layers += [ChannelsFirst(cin), nn.Conv2d(cin, c(cout), 2, 2)]
            cin = c(cout)
        layers += [ConvNeXtBlock(cin) for _ in range(depth)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(cin), nn.Linear(cin, 10))


class CBAM(nn.Module):
    """A gate for channels from two poolings through shared weights, then one for positions."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, squeezed, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(squeezed, channels, 1, bias=False),
        )
        self.spatial = nn.Conv2d(2, 1, 7, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.sigmoid(self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.spatial(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))


class CoordinateAttention(nn.Module):
    """Gates for rows and for columns, squeezed together."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = conv(channels, squeezed, 1, act=nn.Hardswish)
        self.rows, self.columns = nn.Conv2d(squeezed, channels, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        strips = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)], 2)
        rows, columns = self.squeeze(strips).split([h, w], 2)
        return x * torch.sigmoid(self.rows(rows)) * torch.sigmoid(self.columns(columns.transpose(2, 3)))


def attended(width: float, attention: type[CBAM] | type[CoordinateAttention]) -> nn.Module:
    """A small ResNet with `attention` at the end of each block."""
    c = scaler(width)
    layers: list[nn.Module] = [conv(3, c(32))]
    cin = c(32)
    for cout, stride in (32, 1), (64, 2), (96, 2):
        body = nn.Sequential(
            conv(cin, c(cout), 3, stride),
            conv(c(cout), c(cout), act=None),
            attention(c(cout), max(8, c(cout) // 4)),
        )
        project = conv(cin, c(cout), 1, stride, act=None) if stride > 1 or cin != c(cout) else None
        layers.append(Residual(body, project, nn.ReLU()))
        cin = c(cout)
    return nn.Sequential(*layers, head(cin))


@architecture((3, 32, 32))
def cbam(width: float) -> nn.Module:
    """ResNet with CBAM: mean and maximum over the channels feed a convolution (Woo 2018)."""
    return attended(width, CBAM)


@architecture((3, 32, 32))
def coordinate_attention(width: float) -> nn.Module:
    """ResNet with coordinate attention (Hou 2021)."""
    return attended(width, CoordinateAttention)
