"""Networks that are trained or loaded here, in torch: small classifiers of Fashion-MNIST, and a sentence encoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 32  # of the small classifiers' images, of one channel


def conv(inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1, act: type[nn.Module] = nn.ReLU):
    """Convolution, batch normalisation, activation."""
    layer = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outer), act())


class Basic(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(inner, outer, 3, stride), conv(outer, outer, 3, act=nn.Identity))
        same = inner == outer and stride == 1
        self.short = nn.Identity() if same else conv(inner, outer, 1, stride, act=nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.short(x))


def resnet20() -> nn.Module:
    """Of three stages, 16, 32 and 64 wide."""
    widths, blocks = [16, *[16] * 3, *[32] * 3, *[64] * 3], list[nn.Module]()
    for inner, outer in pairwise(widths):
        blocks.append(Basic(inner, outer, 1 if inner == outer else 2))
    return nn.Sequential(conv(1, 16, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Gate(nn.Module):
    """Squeeze and excitation (Hu et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = max(8, width // 4)
        layers = nn.Conv2d(width, narrow, 1), nn.ReLU(), nn.Conv2d(narrow, width, 1), nn.Hardsigmoid()
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(1), *layers)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.body(x)


class Inverted(nn.Module):
    """An inverted residual of MobileNetV3 (Howard et al. 2019)."""

    def __init__(self, inner: int, wide: int, outer: int, kernel: int, stride: int, gate: bool, hard: bool) -> None:
        super().__init__()
        act = nn.Hardswish if hard else nn.ReLU
        layers = [conv(inner, wide, 1, act=act), conv(wide, wide, kernel, stride, wide, act)]
        self.body = nn.Sequential(*layers, *[Gate(wide)] * gate, conv(wide, outer, 1, act=nn.Identity))
        self.same = inner == outer and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.same else self.body(x)


def mobilenetv3() -> nn.Module:
    """MobileNetV3-Small for small images: two strides of two fewer."""
    rows = [  # inner, wide, outer, kernel, stride, gate, hard
        (16, 16, 16, 3, 1, True, False), (16, 72, 24, 3, 2, False, False), (24, 88, 24, 3, 1, False, False),
        (24, 96, 40, 5, 2, True, True), (40, 240, 40, 5, 1, True, True), (40, 120, 48, 5, 1, True, True),
        (48, 144, 48, 5, 1, True, True), (48, 288, 96, 5, 2, True, True), (96, 576, 96, 5, 1, True, True),
    ]  # fmt: skip
    body = [Inverted(*row) for row in rows]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(576, 256), nn.Hardswish(), nn.Linear(256, 10)]
    return nn.Sequential(conv(1, 16, 3, act=nn.Hardswish), *body, conv(96, 576, 1, act=nn.Hardswish), *head)


def trained(build: Callable[[], nn.Module], images: np.ndarray, labels: np.ndarray, epochs: int) -> nn.Module:
    """Trained on [n, 1, SIDE, SIDE] with mirror images, by SGD with one cycle of rates and momentum (Smith 2018)."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the same sums, the same weights
    net, x, y = build(), torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))
    optimizer = torch.optim.SGD(net.parameters(), momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * (len(x) // 128)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(x))[: len(x) // 128 * 128].split(128):
            some = x[batch].flip(3) if torch.rand(()) < 0.5 else x[batch]
            optimizer.zero_grad()
            functional.cross_entropy(net(some), y[batch], label_smoothing=0.1).backward()
            optimizer.step()
            rate.step()
    return net.eval()


class Encoder(nn.Module):
    """BERT from the tensors of a checkpoint, by their names: token ids -> [batch, tokens, width]."""

    def __init__(self, tensors: dict[str, Tensor], heads: int = 12) -> None:
        super().__init__()
        self.heads, self.layers = heads, 1 + max(int(name.split(".")[2]) for name in tensors if ".layer." in name)
        for name, value in tensors.items():
            if "pooler" not in name and "position_ids" not in name:
                self.register_buffer(name.replace(".", "_"), value)

    def part(self, name: str) -> Tensor:
        return getattr(self, name.replace(".", "_"))

    def linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self.part(f"{name}.weight"), self.part(f"{name}.bias"))

    def norm(self, x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.part(f"{name}.weight"), self.part(f"{name}.bias"), 1e-12)

    def attended(self, x: Tensor, mask: Tensor, name: str) -> Tensor:
        q, k, v = (
            self.linear(x, f"{name}.self.{each}").unflatten(2, (self.heads, -1)).transpose(1, 2)
            for each in ("query", "key", "value")
        )
        weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[3]) + mask, dim=3)
        return self.linear((weights @ v).transpose(1, 2).flatten(2), f"{name}.output.dense")

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        tables = [self.part(f"embeddings.{kind}_embeddings.weight") for kind in ("word", "position", "token_type")]
        x = tables[0][input_ids] + tables[1][: input_ids.shape[1]] + tables[2][token_type_ids]
        x = self.norm(x, "embeddings.LayerNorm")
        mask = (1.0 - attention_mask[:, None, None].to(x.dtype)) * -1e4
        for layer in range(self.layers):
            name = f"encoder.layer.{layer}"
            x = self.norm(x + self.attended(x, mask, f"{name}.attention"), f"{name}.attention.output.LayerNorm")
            wide = functional.gelu(self.linear(x, f"{name}.intermediate.dense"))
            x = self.norm(x + self.linear(wide, f"{name}.output.dense"), f"{name}.output.LayerNorm")
        return x


def export(net: nn.Module, example: tuple[Tensor, ...], names: list[str], path: Path, axes: list[str]) -> None:
    """As ONNX, with the first axes of all inputs open."""
    shapes = [{axis: torch.export.Dim(name) for axis, name in enumerate(axes)} for _ in example]
    torch.onnx.export(
        net, example, str(path), input_names=names, opset_version=18, dynamo=True, external_data=False,
        dynamic_shapes=tuple(shapes), verbose=False,
    )  # fmt: skip
