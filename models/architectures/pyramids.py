"""Detectors on a feature pyramid: shared heads, best boxes picked by data, a second stage on what is inside of them."""

# mypy: disable-error-code="no-any-return"

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..detection_ops import nms, roi_align
from .common import Residual, architecture, conv, scaler
from .detectors import CLASSES, places

STRIDES = (4, 8, 16)
SIZE = 64


class FPN(nn.Module):
    """A small ResNet, and its last three stages brought to one width from the top down."""

    def __init__(self, c: tuple[int, int, int, int], wide: int) -> None:
        super().__init__()
        stages: list[nn.Module] = [conv(3, c[0], 3, 2)]
        for cin, cout in itertools.pairwise(c):
            body = nn.Sequential(conv(cin, cout, 3, 2), conv(cout, cout, act=None))
            stages.append(Residual(body, conv(cin, cout, 1, 2, act=None), nn.ReLU()))
        self.stem, self.stages = stages[0], nn.ModuleList(stages[1:])
        self.inner = nn.ModuleList(nn.Conv2d(each, wide, 1) for each in c[1:])
        self.outer = nn.ModuleList(nn.Conv2d(wide, wide, 3, 1, 1) for _ in c[1:])

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        above: Tensor | None = None
        made = []
        for inner, outer, level in [*zip(self.inner, self.outer, maps, strict=True)][::-1]:
            level = inner(level)
            if above is not None:
                level = level + functional.interpolate(above, size=level.shape[-2:])
            above = level
            made.append(outer(level))
        return made[::-1]


def tower(wide: int, depth: int = 2) -> nn.Sequential:
    """Convolutions with GroupNorm."""
    layers = [[nn.Conv2d(wide, wide, 3, 1, 1), nn.GroupNorm(4, wide), nn.ReLU()] for _ in range(depth)]
    return nn.Sequential(*(layer for block in layers for layer in block))


def rows(x: Tensor, wide: int) -> Tensor:
    """[N, A x wide, H, W] -> [N, H x W x A, wide]."""
    n, _, h, w = x.shape
    return x.view(n, -1, wide, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, wide)


def apply_deltas(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Anchors by centre and size, moved and stretched, as corners."""
    centre = anchors[..., :2] + deltas[..., :2] * 0.3 * anchors[..., 2:]
    half = anchors[..., 2:] * torch.exp((deltas[..., 2:] * 0.2).clamp(max=2.0)) / 2
    return torch.cat([centre - half, centre + half], -1).clamp(0.0, float(SIZE))


def anchors_of(h: int, w: int, stride: int) -> Tensor:
    """Two for each cell, by centre and size."""
    centre = places(h, w, stride).view(-1, 1, 2).expand(-1, 2, -1) + stride / 2
    size = torch.tensor([[3.0, 2.0], [2.0, 4.0]]) * stride
    return torch.cat([centre, size.expand(h * w, 2, 2)], 2).view(-1, 4)


class RetinaNet(nn.Module):
    """Towers and predictors are shared by all levels; the best of each level are decoded and suppressed."""

    def __init__(self, c: tuple[int, int, int, int], wide: int, best: int = 20) -> None:
        super().__init__()
        self.best, self.body = best, FPN(c, wide)
        plain = [nn.Sequential(conv(wide, wide), conv(wide, wide)) for _ in range(2)]
        self.class_tower, self.box_tower = plain
        self.classes, self.boxes = nn.Conv2d(wide, 2 * CLASSES, 3, 1, 1), nn.Conv2d(wide, 8, 3, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        boxes, scores = [], []
        for level, stride in zip(self.body(x), STRIDES, strict=True):
            logits = rows(self.classes(self.class_tower(level)), CLASSES)[0].flatten()
            deltas = rows(self.boxes(self.box_tower(level)), 4)[0]
            top, index = logits.sigmoid().topk(min(self.best, logits.shape[0]))
            place = torch.div(index, CLASSES, rounding_mode="floor")
            boxes.append(apply_deltas(deltas[place], anchors_of(level.shape[2], level.shape[3], stride)[place]))
            scores.append(top)
        found, values = torch.cat(boxes), torch.cat(scores)
        if self.training:  # a batch, to settle the norms
            return found, values
        kept = nms(found, values, 0.3)
        return found[kept], values[kept]


@architecture((3, SIZE, SIZE))
def retinanet(width: float) -> nn.Module:
    """RetinaNet-like: an FPN, shared heads, TopK of each level, NonMaxSuppression (Lin 2017)."""
    c = scaler(width)
    return RetinaNet((c(16), c(32), c(48), c(64)), c(32))


class FCOS(nn.Module):
    """Distances to the four sides, a scale for each level, classes weighted by how central a place is."""

    def __init__(self, c: tuple[int, int, int, int], wide: int) -> None:
        super().__init__()
        self.body, self.class_tower, self.box_tower = FPN(c, wide), tower(wide), tower(wide)
        self.classes, self.boxes = nn.Conv2d(wide, CLASSES, 3, 1, 1), nn.Conv2d(wide, 4, 3, 1, 1)
        self.centre = nn.Conv2d(wide, 1, 3, 1, 1)
        self.scales = nn.ParameterList(nn.Parameter(torch.tensor(0.2 + 0.1 * i)) for i in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        boxes, scores = [], []
        for level, scale, stride in zip(self.body(x), self.scales, STRIDES, strict=True):
            side = self.box_tower(level)
            distance = torch.exp(self.boxes(side) * scale).flatten(2).transpose(1, 2) * stride
            centre = places(level.shape[2], level.shape[3], stride).view(1, -1, 2) + stride / 2
            boxes.append(torch.cat([centre - distance[..., :2], centre + distance[..., 2:]], 2))
            score = self.classes(self.class_tower(level)).sigmoid() * self.centre(side).sigmoid()
            scores.append(score.sqrt().flatten(2).transpose(1, 2))
        return torch.cat(boxes, 1), torch.cat(scores, 1)


@architecture((3, SIZE, SIZE))
def fcos(width: float) -> nn.Module:
    """FCOS-like: no anchors, GroupNorm in shared towers, centerness (Tian 2019)."""
    c = scaler(width, 16)
    return FCOS((c(16), c(32), c(48), c(64)), c(32))


class CenterNet(nn.Module):
    """Peaks of a heat map, and what two other heads say there."""

    def __init__(self, c: tuple[int, int, int, int], wide: int, best: int = 10) -> None:
        super().__init__()
        self.best, self.body = best, FPN(c, wide)
        self.heat, self.size, self.shift = (
            nn.Sequential(conv(wide, wide), nn.Conv2d(wide, each, 1)) for each in (CLASSES, 2, 2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        level = self.body(x)[0]
        heat = self.heat(level).sigmoid()
        peaks = heat * (functional.max_pool2d(heat, 3, 1, 1) == heat).float()
        h, w = heat.shape[2:]
        scores, index = peaks.flatten(1).topk(self.best)
        index = (index % (h * w)).unsqueeze(2).expand(-1, -1, 2)
        said = [head(level).flatten(2).transpose(1, 2).gather(1, index) for head in (self.size, self.shift)]
        return torch.cat(said, 2), scores


@architecture((3, SIZE, SIZE))
def centernet(width: float) -> nn.Module:
    """CenterNet-like: peaks by max pooling, TopK, gathered sizes (Zhou 2019)."""
    c = scaler(width)
    return CenterNet((c(16), c(32), c(48), c(64)), c(32))


class MaskRCNN(nn.Module):
    """Proposals, pooled from the level that fits their size, then boxes, classes and masks of each."""

    def __init__(self, c: tuple[int, int, int, int], wide: int, proposals: int = 24) -> None:
        super().__init__()
        self.proposals, self.body, self.wide = proposals, FPN(c, wide), wide
        self.rpn = nn.Sequential(nn.Conv2d(wide, wide, 3, 1, 1), nn.ReLU())
        self.objects, self.deltas = nn.Conv2d(wide, 2, 1), nn.Conv2d(wide, 8, 1)
        self.box = nn.Sequential(nn.Linear(wide * 25, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU())
        self.classes, self.shift = nn.Linear(32, 1 + CLASSES), nn.Linear(32, 4 * (1 + CLASSES))
        self.mask = nn.Sequential(conv(wide, wide), conv(wide, wide), nn.ConvTranspose2d(wide, wide, 2, 2), nn.ReLU())
        self.masks = nn.Conv2d(wide, 1 + CLASSES, 1)

    def propose(self, levels: list[Tensor]) -> Tensor:
        """The best boxes of all levels."""
        shared = [self.rpn(level) for level in levels]
        scores = torch.cat([rows(self.objects(y), 1)[0] for y in shared])[:, 0]
        deltas = torch.cat([rows(self.deltas(y), 4)[0] for y in shared])
        anchors = torch.cat([anchors_of(y.shape[2], y.shape[3], s) for y, s in zip(levels, STRIDES, strict=True)])
        best, index = scores.topk(self.proposals)
        boxes = apply_deltas(deltas[index], anchors[index])
        return boxes[nms(boxes, best, 0.3)]

    def pool(self, levels: list[Tensor], boxes: Tensor) -> Tensor:
        """What is inside of the boxes; small ones are read off fine maps."""
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        fits = torch.bucketize(area.sqrt(), torch.tensor([16.0, 32.0]))
        pooled = boxes.new_zeros(boxes.shape[0], self.wide, 5, 5)
        for i, (level, stride) in enumerate(zip(levels, STRIDES, strict=True)):
            index = torch.nonzero(fits == i)[:, 0]
            pooled[index] = roi_align(level, boxes[index], 5, 1 / stride)
        return pooled

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        levels = self.body(x)
        if self.training:  # a batch, to settle the norms
            return levels[0], self.mask(levels[0]), self.rpn(levels[0])
        boxes = self.propose(levels)
        if torch.compiler.is_exporting():
            torch._check(boxes.shape[0] > 0)  # type: ignore[no-untyped-call]  # the best one always stays
        pooled = self.pool(levels, boxes)
        said = self.box(pooled.flatten(1))
        scores = self.classes(said).softmax(1)
        label = scores[:, 1:].argmax(1) + 1
        each = torch.arange(boxes.shape[0])
        centres = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
        shifted = apply_deltas(self.shift(said).view(-1, 1 + CLASSES, 4)[each, label], centres)
        return shifted, scores, self.masks(self.mask(pooled))[each, label].sigmoid()


@architecture((3, SIZE, SIZE))
def mask_rcnn(width: float) -> nn.Module:
    """Mask R-CNN-like: proposals by TopK and NonMaxSuppression, RoiAlign from three levels, two heads (He 2017)."""
    c = scaler(width)
    return MaskRCNN((c(16), c(32), c(48), c(64)), c(32))
