"""The registry of architectures, the settled random weights and the blocks that several families share."""

# mypy: disable-error-code="no-any-return"

import functools
import zlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Module = Callable[..., nn.Module]

ARCHITECTURES: dict[str, Module] = {}
INPUTS: dict[str, tuple[tuple[int, ...], ...]] = {}


def architecture(*shapes: tuple[int, ...]) -> Callable[[Callable[[float], nn.Module]], Module]:
    """Register a builder under its name; `shapes` are those of its inputs, without the batch."""

    def register(build: Callable[[float], nn.Module]) -> Module:
        name = build.__name__

        @functools.wraps(build)
        def made(width: float = 1.0) -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(zlib.crc32(name.encode()))
                model = build(width)
                settle(model, [torch.randn(8, *shape) for shape in shapes])
            return model.eval()

        ARCHITECTURES[name], INPUTS[name] = made, shapes
        return made

    return register


@torch.no_grad()
def settle(model: nn.Module, inputs: list[Tensor], weights: bool = True) -> None:
    """Make random weights resemble trained ones: no norm is the identity, activations keep their scale.

    Without `weights` only the norms are changed, and the statistics of BatchNorms measured on `inputs`.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for module in model.modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            if not weights:
                continue
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                module.bias.normal_(0, 0.1)
        elif isinstance(module, (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)):
            if module.weight is not None:
                module.weight.uniform_(0.5, 1.5)
            if module.bias is not None:
                module.bias.normal_(0, 0.2)
        elif isinstance(module, nn.PReLU):
            module.weight.uniform_(0.1, 0.4)
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        model.train()(*inputs)
    for norm in norms:
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.add_(0.1 * torch.randn_like(norm.running_mean) * norm.running_var.sqrt())
        norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.8, 1.25))


def scaler(width: float, multiple: int = 8) -> Callable[[int], int]:
    """Channel counts times `width`, rounded to a positive multiple."""
    return lambda channels: max(multiple, round(channels * width / multiple) * multiple)


def conv(
    cin: int,
    cout: int,
    kernel: int | tuple[int, int] = 3,
    stride: int = 1,
    groups: int = 1,
    act: Module | None = nn.ReLU,
    norm: Module = nn.BatchNorm2d,
) -> nn.Sequential:
    """Convolution, norm and activation, padded to keep the size."""
    padding = kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
    layers = [nn.Conv2d(cin, cout, kernel, stride, padding, groups=groups, bias=False), norm(cout)]
    return nn.Sequential(*layers, *([act()] if act else []))


def head(channels: int, classes: int = 10) -> nn.Sequential:
    """Global average pooling and a linear classifier."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Residual(nn.Module):
    """act(body(x) + shortcut(x)); the shortcut is the identity unless given."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, act: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut or nn.Identity(), act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.shortcut(x))


class SqueezeExcite(nn.Module):
    """A gate for each channel, from the average of all channels."""

    def __init__(self, channels: int, squeezed: int, act: Module = nn.ReLU, gate: Module = nn.Sigmoid) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            act(),
            nn.Conv2d(squeezed, channels, 1),
            gate(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class Concat(nn.Module):
    """The outputs of parallel branches, one behind the other along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)
