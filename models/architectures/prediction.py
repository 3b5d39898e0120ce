"""Networks that predict maps: encoders and decoders, feature pyramids, parallel resolutions."""

# mypy: disable-error-code="no-any-return"

import functools
import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from .common import Module, Residual, architecture, conv, scaler

silu = functools.partial(conv, act=nn.SiLU)


def double(cin: int, cout: int) -> nn.Sequential:
    """Two 3x3 convolutions."""
    return nn.Sequential(conv(cin, cout), conv(cout, cout))


class UNet(nn.Module):
    """Encoder, decoder and skip concatenations; `up` doubles the resolution, from cin to cout channels."""

    def __init__(self, widths: tuple[int, ...], up: Module) -> None:
        super().__init__()
        self.down = nn.ModuleList(double(a, b) for a, b in zip((3, *widths), widths, strict=False))
        pairs = [*zip(widths[::-1], widths[-2::-1], strict=False)]
        self.up = nn.ModuleList(up(a, b) for a, b in pairs)
        self.merge = nn.ModuleList(double(2 * b, b) for _, b in pairs)
        self.out = nn.Conv2d(widths[0], 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for down in self.down:
            x = down(functional.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        return self.out(x)


class BilinearUp(nn.Sequential):
    """Bilinear upsampling and a 1x1 convolution."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False), nn.Conv2d(cin, cout, 1))


@architecture((3, 32, 32))
def unet_transpose(width: float) -> nn.Module:
    """U-Net with transposed convolutions (Ronneberger 2015)."""
    c = scaler(width)
    return UNet((c(16), c(32), c(64), c(96)), functools.partial(nn.ConvTranspose2d, kernel_size=2, stride=2))


@architecture((3, 32, 32))
def unet_bilinear(width: float) -> nn.Module:
    """U-Net with bilinear upsampling."""
    c = scaler(width)
    return UNet((c(16), c(32), c(64), c(96)), BilinearUp)


class C2f(nn.Module):
    """Split in two; a chain of bottlenecks on the second half; everything is concatenated."""

    def __init__(self, cin: int, cout: int, depth: int, shortcut: bool) -> None:
        super().__init__()
        half = cout // 2
        self.first, self.last = silu(cin, cout, 1), silu((2 + depth) * half, cout, 1)
        chain = [nn.Sequential(silu(half, half), silu(half, half)) for _ in range(depth)]
        self.chain = nn.ModuleList(Residual(block) if shortcut else block for block in chain)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for block in self.chain:
            parts.append(block(parts[-1]))
        return self.last(torch.cat(parts, 1))


class SPPF(nn.Module):
    """Three max poolings, one behind the other, concatenated with their input."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.first, self.last = silu(cin, cin // 2, 1), silu(cin * 2, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(functional.max_pool2d(parts[-1], 5, 1, 2))
        return self.last(torch.cat(parts, 1))


class Detect(nn.Module):
    """Boxes (16 bins a side, by a softmax and its expectation) and class logits of one level."""

    def __init__(self, cin: int, mid: int, classes: int = 5, bins: int = 16) -> None:
        super().__init__()
        self.bins = bins
        self.boxes = nn.Sequential(silu(cin, mid), silu(mid, mid), nn.Conv2d(mid, 4 * bins, 1))
        self.classes = nn.Sequential(silu(cin, mid), silu(mid, mid), nn.Conv2d(mid, classes, 1))
        self.positions = nn.Buffer(torch.arange(bins, dtype=torch.float32).view(1, bins, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        boxes = self.boxes(x).view(n, 4, self.bins, h * w).transpose(2, 1).softmax(1)
        boxes = functional.conv2d(boxes, self.positions).view(n, 4, h * w)
        return torch.cat([boxes, self.classes(x).flatten(2)], 1)


class Yolo(nn.Module):
    """Backbone, top-down and bottom-up neck, a head for each of three levels."""

    def __init__(self, c: tuple[int, int, int, int]) -> None:
        super().__init__()
        c1, c2, c3, c4 = c
        self.stage1 = nn.Sequential(silu(3, c1, 3, 2), silu(c1, c2, 3, 2), C2f(c2, c2, 1, True))
        self.stage2 = nn.Sequential(silu(c2, c3, 3, 2), C2f(c3, c3, 2, True))
        self.stage3 = nn.Sequential(silu(c3, c4, 3, 2), C2f(c4, c4, 1, True), SPPF(c4, c4))
        self.up2, self.up1 = C2f(c4 + c3, c3, 1, False), C2f(c3 + c2, c2, 1, False)
        self.down2, self.down3 = silu(c2, c2, 3, 2), silu(c3, c3, 3, 2)
        self.merge2, self.merge3 = C2f(c2 + c3, c3, 1, False), C2f(c3 + c4, c4, 1, False)
        self.heads = nn.ModuleList(Detect(each, c2) for each in (c2, c3, c4))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p1 = self.stage1(image)
        p2 = self.stage2(p1)
        p3 = self.stage3(p2)
        n2 = self.up2(torch.cat([functional.interpolate(p3, scale_factor=2.0), p2], 1))
        n1 = self.up1(torch.cat([functional.interpolate(n2, scale_factor=2.0), p1], 1))
        n2 = self.merge2(torch.cat([self.down2(n1), n2], 1))
        n3 = self.merge3(torch.cat([self.down3(n2), p3], 1))
        return self.heads[0](n1), self.heads[1](n2), self.heads[2](n3)


@architecture((3, 64, 64))
def yolo(width: float) -> nn.Module:
    """YOLOv8-like detector: C2f, SPPF, FPN and PAN, decoupled heads with binned boxes, three outputs."""
    c = scaler(width, 16)
    return Yolo((c(16), c(32), c(48), c(64)))


class Fuse(nn.Module):
    """Every resolution receives the sum of all, brought to its size and width."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.paths = nn.ModuleList(
            nn.ModuleList(self.path(widths, i, j) for j in range(len(widths))) for i in range(len(widths))
        )

    @staticmethod
    def path(widths: tuple[int, ...], to: int, source: int) -> nn.Module:
        """Nearest upsampling behind a 1x1, strided 3x3s, or nothing."""
        if source > to:
            return nn.Sequential(
                conv(widths[source], widths[to], 1, act=None), nn.Upsample(scale_factor=2 ** (source - to))
            )
        steps: list[nn.Module] = []
        for k in range(source, to):
            last = k == to - 1
            steps.append(conv(widths[source], widths[to if last else source], 3, 2, act=None if last else nn.ReLU))
        return nn.Sequential(*steps)

    def forward(self, streams: list[Tensor]) -> list[Tensor]:
        fused = []
        for paths in self.paths:
            first, *others = [path(x) for path, x in zip(paths.children(), streams, strict=True)]
            for other in others:
                first = first + other
            fused.append(functional.relu(first))
        return fused


class HRNet(nn.Module):
    """Three resolutions side by side, fused twice, concatenated at the highest."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, widths[0], 3, 2), conv(widths[0], widths[0]))
        self.down = nn.ModuleList(conv(a, b, 3, 2) for a, b in itertools.pairwise(widths))
        self.blocks = nn.ModuleList(
            nn.ModuleList(Residual(nn.Sequential(conv(w, w), conv(w, w, act=None)), act=nn.ReLU()) for w in widths)
            for _ in range(2)
        )
        self.fuse = nn.ModuleList(Fuse(widths) for _ in range(2))
        self.out = nn.Sequential(conv(sum(widths), sum(widths), 1), nn.Conv2d(sum(widths), 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        streams = [self.stem(x)]
        for down in self.down:
            streams.append(down(streams[-1]))
        for blocks, fuse in zip(self.blocks, self.fuse, strict=True):
            streams = fuse([block(x) for block, x in zip(blocks.children(), streams, strict=True)])
        size = streams[0].shape[2:]
        raised = [functional.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in streams[1:]]
        return self.out(torch.cat([streams[0], *raised], 1))


@architecture((3, 64, 64))
def hrnet(width: float) -> nn.Module:
    """HRNet-like: parallel resolutions with all-to-all fusion (Wang 2020)."""
    c = scaler(width)
    return HRNet((c(16), c(32), c(48)))


class ASPP(nn.Module):
    """Dilated convolutions side by side, and the average of the map, stretched again."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        dilated = [nn.Conv2d(cin, cout, 3, 1, rate, rate, bias=False) for rate in (2, 4)]
        branches = [nn.Sequential(layer, nn.BatchNorm2d(cout), nn.ReLU()) for layer in dilated]
        self.branches = nn.ModuleList([conv(cin, cout, 1), *branches])
        self.average = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(cin, cout, 1))
        self.last = conv(4 * cout, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        average = functional.interpolate(self.average(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.last(torch.cat([*(branch(x) for branch in self.branches), average], 1))


class DeepLab(nn.Module):
    """ASPP on coarse features, joined by fine ones, and the prediction in the image's size."""

    def __init__(self, c: tuple[int, int, int]) -> None:
        super().__init__()
        self.fine, self.coarse = conv(3, c[0], 3, 2), nn.Sequential(conv(c[0], c[1], 3, 2), conv(c[1], c[2], 3, 2))
        self.context, self.side = ASPP(c[2], c[1]), conv(c[0], c[0], 1)
        self.out = nn.Sequential(conv(c[1] + c[0], c[1]), nn.Conv2d(c[1], 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        context = self.context(self.coarse(fine))
        context = functional.interpolate(context, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        y = self.out(torch.cat([context, self.side(fine)], 1))
        return functional.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


@architecture((3, 32, 32))
def deeplab(width: float) -> nn.Module:
    """DeepLabv3+-like: dilated convolutions and image pooling side by side (Chen 2018)."""
    c = scaler(width)
    return DeepLab((c(16), c(32), c(64)))


@architecture((3, 32, 32))
def autoencoder(width: float) -> nn.Module:
    """Convolutional autoencoder with pixel unshuffle and pixel shuffle."""
    c = scaler(width, 16)
    return nn.Sequential(
        nn.PixelUnshuffle(2),
        conv(12, c(32)),
        conv(c(32), c(32)),
        nn.PixelUnshuffle(2),
        conv(4 * c(32), c(64)),
        conv(c(64), c(16), 1, act=nn.Tanh),
        conv(c(16), c(128)),
        nn.PixelShuffle(2),
        conv(c(128) // 4, c(48)),
        nn.Conv2d(c(48), 12, 3, 1, 1),
        nn.PixelShuffle(2),
    )
