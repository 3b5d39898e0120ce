"""Detectors with transformers: queries attend to a map and say one box each."""

# mypy: disable-error-code="no-any-return"

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from .common import architecture, conv, scaler
from .detectors import CLASSES


class Attention(nn.Module):
    """Attention with heads; queries, keys and values by layers of their own."""

    def __init__(self, wide: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(wide, wide) for _ in range(4))

    def split(self, x: Tensor) -> Tensor:
        """[N, L, C] -> [N, heads, L, C / heads]."""
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = self.split(self.q(q)), self.split(self.k(k)), self.split(self.v(v))
        scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(3)
        return self.out((scores @ v).transpose(1, 2).flatten(2))


def feed_forward(wide: int) -> nn.Sequential:
    """Two linear layers."""
    return nn.Sequential(nn.Linear(wide, 4 * wide), nn.ReLU(), nn.Linear(4 * wide, wide))


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward, each followed by a norm."""

    def __init__(self, wide: int, heads: int) -> None:
        super().__init__()
        self.attend, self.feed = Attention(wide, heads), feed_forward(wide)
        self.norm1, self.norm2 = nn.LayerNorm(wide), nn.LayerNorm(wide)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        q = x + places
        x = self.norm1(x + self.attend(q, q, x))
        return self.norm2(x + self.feed(x))


class DecoderLayer(nn.Module):
    """Queries attend to each other, then to the map."""

    def __init__(self, wide: int, heads: int) -> None:
        super().__init__()
        self.own, self.cross, self.feed = Attention(wide, heads), Attention(wide, heads), feed_forward(wide)
        self.norms = nn.ModuleList(nn.LayerNorm(wide) for _ in range(3))

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, places: Tensor) -> Tensor:
        x = self.norms[0](x + self.own(x + queries, x + queries, x))
        x = self.norms[1](x + self.cross(x + queries, memory + places, memory))
        return self.norms[2](x + self.feed(x))


def backbone(c: tuple[int, int, int, int]) -> nn.Sequential:
    """Strided convolutions."""
    pairs = [(3, c[0]), *itertools.pairwise(c)]
    return nn.Sequential(*(nn.Sequential(conv(a, b, 3, 2), conv(b, b)) for a, b in pairs))


def mlp(wide: int, out: int) -> nn.Sequential:
    """Three linear layers, for boxes."""
    return nn.Sequential(nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, out))


class DETR(nn.Module):
    """A backbone, an encoder on its positions, and learned queries."""

    def __init__(self, c: tuple[int, int, int, int], wide: int, queries: int = 10, heads: int = 4) -> None:
        super().__init__()
        self.body, self.project = backbone(c), nn.Conv2d(c[3], wide, 1)
        self.rows, self.columns = (nn.Parameter(torch.rand(4, wide // 2)) for _ in range(2))
        self.queries = nn.Parameter(torch.randn(queries, wide))
        self.encoder, self.decoder = EncoderLayer(wide, heads), DecoderLayer(wide, heads)
        self.classes, self.boxes = nn.Linear(wide, 1 + CLASSES), mlp(wide, 4)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.project(self.body(image))
        h, w = x.shape[2:]
        columns = self.columns[:w].unsqueeze(0).repeat(h, 1, 1)
        rows = self.rows[:h].unsqueeze(1).repeat(1, w, 1)
        places = torch.cat([columns, rows], 2).flatten(0, 1).unsqueeze(0)
        memory = self.encoder(x.flatten(2).permute(0, 2, 1), places)
        start = torch.zeros_like(self.queries).unsqueeze(0).repeat(x.shape[0], 1, 1)
        y = self.decoder(start, self.queries.unsqueeze(0), memory, places)
        return self.classes(y), self.boxes(y).sigmoid()


@architecture((3, 64, 64))
def detr(width: float) -> nn.Module:
    """DETR-like: encoder, decoder, learned queries (Carion 2020)."""
    c = scaler(width)
    return DETR((c(16), c(32), c(48), c(64)), c(64))


class DeformableAttention(nn.Module):
    """Each query reads the map of each head at a few places of its own."""

    def __init__(self, wide: int, heads: int, points: int = 3) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.value, self.out = nn.Linear(wide, wide), nn.Linear(wide, wide)
        self.offsets, self.weights = nn.Linear(wide, heads * points * 2), nn.Linear(wide, heads * points)

    def forward(self, query: Tensor, centre: Tensor, memory: Tensor, h: int, w: int) -> Tensor:
        n, count, wide = query.shape
        value = self.value(memory).transpose(1, 2).reshape(n * self.heads, wide // self.heads, h, w)
        grid = self.offsets(query).view(n, count, self.heads, self.points, 2).tanh() * 0.3 + centre[:, :, None, None]
        grid = grid.transpose(1, 2).flatten(0, 1)
        read = functional.grid_sample(value, grid * 2 - 1, align_corners=False)
        weights = self.weights(query).view(n, count, self.heads, self.points).softmax(3)
        weights = weights.transpose(1, 2).reshape(n * self.heads, 1, count, self.points)
        return self.out((read * weights).sum(3).view(n, wide, count).transpose(1, 2))


class RTDETR(nn.Module):
    """The best places of the map become queries, which read it by deformable attention."""

    def __init__(self, c: tuple[int, int, int, int], wide: int, queries: int = 6, heads: int = 4) -> None:
        super().__init__()
        self.queries, self.body, self.project = queries, backbone(c), conv(c[3], wide, 1, act=None)
        self.scores, self.places = nn.Linear(wide, CLASSES), mlp(wide, 4)
        self.own, self.read, self.feed = Attention(wide, heads), DeformableAttention(wide, heads), feed_forward(wide)
        self.norms = nn.ModuleList(nn.LayerNorm(wide) for _ in range(3))
        self.classes, self.boxes = nn.Linear(wide, CLASSES), mlp(wide, 4)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.project(self.body(image))
        h, w = x.shape[2:]
        memory = x.flatten(2).transpose(1, 2)
        index = self.scores(memory).amax(2).topk(self.queries, 1)[1].unsqueeze(2)
        y = memory.gather(1, index.expand(-1, -1, memory.shape[2]))
        boxes = self.places(memory).gather(1, index.expand(-1, -1, 4)).sigmoid()
        y = self.norms[0](y + self.own(y, y, y))
        y = self.norms[1](y + self.read(y, boxes[..., :2], memory, h, w))
        y = self.norms[2](y + self.feed(y))
        return self.classes(y), (self.boxes(y) + boxes).sigmoid()


@architecture((3, 64, 64))
def rt_detr(width: float) -> nn.Module:
    """RT-DETR-like: queries picked by TopK, deformable attention by GridSample (Zhao 2024)."""
    c = scaler(width)
    return RTDETR((c(16), c(32), c(48), c(64)), c(64))
