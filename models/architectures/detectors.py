"""Detectors in one stage: heads on the levels of a pyramid, decoded in the graph."""

# mypy: disable-error-code="no-any-return"

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional

from .common import Residual, architecture, conv, scaler
from .prediction import SPPF, silu

CLASSES = 5


def places(h: int, w: int, stride: int) -> Tensor:
    """The corners [h, w, 2] of a level's cells, in the image."""
    ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([xs, ys], 2).float() * stride


class C3(nn.Module):
    """Two 1x1 convolutions side by side, one with a chain of bottlenecks behind it."""

    def __init__(self, cin: int, cout: int, depth: int = 1, shortcut: bool = True) -> None:
        super().__init__()
        half = cout // 2
        self.left, self.right, self.last = silu(cin, half, 1), silu(cin, half, 1), silu(2 * half, cout, 1)
        chain = [nn.Sequential(silu(half, half, 1), silu(half, half)) for _ in range(depth)]
        self.chain = nn.Sequential(*(Residual(block) if shortcut else block for block in chain))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([self.chain(self.left(x)), self.right(x)], 1))


class Focus(nn.Module):
    """Every second row and column, four times, as channels."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.conv = silu(4 * cin, cout)

    def forward(self, x: Tensor) -> Tensor:
        rows = x[..., ::2, :], x[..., 1::2, :]
        return self.conv(torch.cat([row[..., start::2] for start in (0, 1) for row in rows], 1))


class CSPPyramid(nn.Module):
    """Three levels behind CSP stages, top-down and bottom-up; `block(cin, cout, depth, shortcut)`."""

    def __init__(self, c: tuple[int, int, int, int], block: type[nn.Module], stem: nn.Module, top: nn.Module) -> None:
        super().__init__()
        c1, c2, c3, c4 = c
        self.stage1 = nn.Sequential(stem, silu(c1, c2, 3, 2), block(c2, c2, 1, True))
        self.stage2 = nn.Sequential(silu(c2, c3, 3, 2), block(c3, c3, 2, True))
        self.stage3 = nn.Sequential(silu(c3, c4, 3, 2), block(c4, c4, 1, True), top)
        self.lateral2, self.lateral1 = silu(c4, c3, 1), silu(c3, c2, 1)
        self.up2, self.up1 = block(2 * c3, c3, 1, False), block(2 * c2, c2, 1, False)
        self.down2, self.down3 = silu(c2, c2, 3, 2), silu(c3, c3, 3, 2)
        self.merge2, self.merge3 = block(2 * c2, c3, 1, False), block(2 * c3, c4, 1, False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p1 = self.stage1(x)
        p2 = self.stage2(p1)
        t3 = self.lateral2(self.stage3(p2))
        n2 = self.up2(torch.cat([functional.interpolate(t3, scale_factor=2.0), p2], 1))
        t2 = self.lateral1(n2)
        n1 = self.up1(torch.cat([functional.interpolate(t2, scale_factor=2.0), p1], 1))
        m2 = self.merge2(torch.cat([self.down2(n1), t2], 1))
        return n1, m2, self.merge3(torch.cat([self.down3(m2), t3], 1))


class AnchorHead(nn.Module):
    """Boxes relative to three anchors a cell, an objectness and classes, decoded."""

    def __init__(self, cin: int, stride: int) -> None:
        super().__init__()
        self.out, self.stride, self.wide = nn.Conv2d(cin, 3 * (5 + CLASSES), 1), stride, 5 + CLASSES
        self.anchors = nn.Buffer(torch.tensor([[1.0, 1.5], [2.0, 1.0], [3.0, 3.0]]).view(1, 3, 1, 1, 2) * stride)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        y = self.out(x).view(n, 3, self.wide, h, w).permute(0, 1, 3, 4, 2).sigmoid()
        xy, wh, rest = y.split((2, 2, self.wide - 4), 4)
        xy = xy * 2 * self.stride + places(h, w, self.stride)
        return torch.cat([xy, (wh * 2) ** 2 * self.anchors, rest], 4).view(n, -1, self.wide)


class Levels(nn.Module):
    """A head for each level; what they say is concatenated."""

    def __init__(self, body: nn.Module, heads: list[nn.Module]) -> None:
        super().__init__()
        self.body, self.heads = body, nn.ModuleList(heads)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([head(level) for head, level in zip(self.heads, self.body(x), strict=True)], 1)


@architecture((3, 64, 64))
def yolov5(width: float) -> nn.Module:
    """YOLOv5-like: C3, SPPF, PAN, heads with anchors, decoded boxes."""
    c = scaler(width, 16)
    widths = c(16), c(32), c(48), c(64)
    stem = nn.Sequential(nn.Conv2d(3, widths[0], 6, 2, 2, bias=False), nn.BatchNorm2d(widths[0]), nn.SiLU())
    body = CSPPyramid(widths, C3, stem, SPPF(widths[3], widths[3]))
    return Levels(body, [AnchorHead(w, s) for w, s in zip(widths[1:], (4, 8, 16), strict=True)])


class DecoupledHead(nn.Module):
    """A stem, and a tower each for classes and for boxes with their objectness."""

    def __init__(self, cin: int, mid: int, stride: int) -> None:
        super().__init__()
        self.stride, self.stem = stride, silu(cin, mid, 1)
        self.classes = nn.Sequential(silu(mid, mid), silu(mid, mid), nn.Conv2d(mid, CLASSES, 1))
        self.tower = nn.Sequential(silu(mid, mid), silu(mid, mid))
        self.boxes, self.objects = nn.Conv2d(mid, 4, 1), nn.Conv2d(mid, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        tower = self.tower(stem)
        parts = [self.boxes(tower), self.objects(tower).sigmoid(), self.classes(stem).sigmoid()]
        h, w = x.shape[2:]
        y = torch.cat(parts, 1).flatten(2).permute(0, 2, 1)
        grid = places(h, w, self.stride).view(1, -1, 2)
        return torch.cat([y[..., :2] * self.stride + grid, (y[..., 2:4] * 0.2).exp() * self.stride, y[..., 4:]], 2)


@architecture((3, 64, 64))
def yolox(width: float) -> nn.Module:
    """YOLOX-like: a Focus stem, decoupled heads without anchors."""
    c = scaler(width, 16)
    widths = c(16), c(32), c(48), c(64)
    body = CSPPyramid(widths, C3, Focus(3, widths[0]), SPPF(widths[3], widths[3]))
    return Levels(body, [DecoupledHead(w, c(32), s) for w, s in zip(widths[1:], (4, 8, 16), strict=True)])


class C3k2(nn.Module):
    """Split in two; a small C3 on the second half; all three parts are concatenated."""

    def __init__(self, cin: int, cout: int, depth: int = 1, shortcut: bool = True) -> None:
        super().__init__()
        half = cout // 2
        self.first, self.last = silu(cin, cout, 1), silu(3 * half, cout, 1)
        self.inner = C3(half, half, depth, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).chunk(2, 1)
        return self.last(torch.cat([left, right, self.inner(right)], 1))


class PositionAttention(nn.Module):
    """Attention between positions; q and k of a head are half as wide as v, all made by one convolution."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.wide = heads, channels // heads
        self.qkv = conv(channels, 2 * channels, 1, act=None)
        self.places = conv(channels, channels, 3, groups=channels, act=None)
        self.project = conv(channels, channels, 1, act=None)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        key = self.wide // 2
        q, k, v = self.qkv(x).view(n, self.heads, 2 * self.wide, h * w).split([key, key, self.wide], 2)
        scores = (q.transpose(-2, -1) @ k * key**-0.5).softmax(-1)
        y = (v @ scores.transpose(-2, -1)).view(n, c, h, w) + self.places(v.reshape(n, c, h, w))
        return self.project(y)


class C2PSA(nn.Module):
    """Half of the channels goes through attention and a feed-forward."""

    def __init__(self, channels: int, heads: int = 2) -> None:
        super().__init__()
        half = channels // 2
        self.first, self.last = silu(channels, channels, 1), silu(channels, channels, 1)
        self.attend = Residual(PositionAttention(half, heads))
        self.feed = Residual(nn.Sequential(silu(half, channels, 1), conv(channels, half, 1, act=None)))

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).chunk(2, 1)
        return self.last(torch.cat([left, self.feed(self.attend(right))], 1))


class BinnedHead(nn.Module):
    """Distances by the expectation over bins, and classes behind depthwise separable convolutions."""

    def __init__(self, cin: int, mid: int, stride: int, bins: int = 16) -> None:
        super().__init__()
        self.bins, self.stride = bins, stride
        self.boxes = nn.Sequential(silu(cin, mid), silu(mid, mid), nn.Conv2d(mid, 4 * bins, 1))
        separable = [silu(cin, cin, 3, groups=cin), silu(cin, mid, 1), silu(mid, mid, 3, groups=mid), silu(mid, mid, 1)]
        self.classes = nn.Sequential(*separable, nn.Conv2d(mid, CLASSES, 1))
        self.dfl = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        bins = self.boxes(x).view(n, 4, self.bins, h * w).transpose(2, 1).softmax(1)
        near, far = self.dfl(bins).view(n, 4, h * w).chunk(2, 1)
        centre = places(h, w, 1).view(1, -1, 2).transpose(1, 2) + 0.5
        low, high = centre - near, centre + far
        boxes = torch.cat([(low + high) / 2, high - low], 1) * self.stride
        return torch.cat([boxes, self.classes(x).flatten(2).sigmoid()], 1).transpose(1, 2)


@architecture((3, 64, 64))
def yolo11(width: float) -> nn.Module:
    """YOLO11-like: C3k2, C2PSA, separable class towers, decoded boxes from bins."""
    c = scaler(width, 16)
    widths = c(16), c(32), c(48), c(64)
    top = nn.Sequential(SPPF(widths[3], widths[3]), C2PSA(widths[3]))
    body = CSPPyramid(widths, C3k2, silu(3, widths[0], 3, 2), top)
    return Levels(body, [BinnedHead(w, c(32), s) for w, s in zip(widths[1:], (4, 8, 16), strict=True)])


class Scaled(nn.Module):
    """Each position brought to length one over its channels, and a scale for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(channels).uniform_(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x) * self.scale.view(1, -1, 1, 1)


class SSD(nn.Module):
    """Predictors on maps of falling size; class probabilities, and boxes decoded around default ones."""

    def __init__(self, c: tuple[int, int, int], boxes: int = 4) -> None:
        super().__init__()
        block = functools.partial(conv, norm=nn.BatchNorm2d)
        self.first = nn.Sequential(block(3, c[0]), nn.MaxPool2d(2), block(c[0], c[1]), block(c[1], c[1]))
        self.rest = nn.ModuleList(
            [
                nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), block(c[1], c[2]), block(c[2], c[2], 1)),
                nn.Sequential(block(c[2], c[0], 1), block(c[0], c[1], 3, 2)),
                nn.Sequential(block(c[1], c[0], 1), block(c[0], c[1], 3, 2)),
            ]
        )
        self.scaled = Scaled(c[1])
        wide = c[1], c[2], c[1], c[1]
        self.boxes = nn.ModuleList(nn.Conv2d(w, boxes * 4, 3, 1, 1) for w in wide)
        self.classes = nn.ModuleList(nn.Conv2d(w, boxes * (1 + CLASSES), 3, 1, 1) for w in wide)
        self.defaults = nn.Buffer(torch.rand(boxes * (256 + 64 + 16 + 4), 4) + 0.1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        maps = [self.scaled(x)]
        for step in self.rest:
            x = step(x)
            maps.append(x)
        said = []
        for heads, wide in ((self.boxes, 4), (self.classes, 1 + CLASSES)):
            rows = [
                head(y).permute(0, 2, 3, 1).reshape(y.shape[0], -1, wide) for head, y in zip(heads, maps, strict=True)
            ]
            said.append(torch.cat(rows, 1))
        centre = said[0][..., :2] * 0.1 * self.defaults[:, 2:] + self.defaults[:, :2]
        size = torch.exp(said[0][..., 2:] * 0.2) * self.defaults[:, 2:]
        return torch.cat([centre - size / 2, centre + size / 2], 2), said[1].softmax(2)


@architecture((3, 32, 32))
def ssd(width: float) -> nn.Module:
    """SSD-like: a plain backbone, an L2 norm over channels, predictors on four maps (Liu 2016)."""
    c = scaler(width)
    return SSD((c(16), c(32), c(48)))
