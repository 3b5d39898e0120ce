"""Feed-forward networks of branches, concatenations and large classifiers."""

import torch
from torch import Tensor, nn

from .common import Concat, architecture, conv, head, scaler


@architecture((3, 32, 32))
def vgg_bn(width: float) -> nn.Module:
    """VGG with BatchNorm: the last maps are flattened into the first linear layer (Simonyan 2015)."""
    c = scaler(width)
    layers: list[nn.Module] = []
    cin = 3
    for cout in (32, 32), (64, 64), (96, 96), (128,):
        for each in cout:
            layers.append(conv(cin, c(each)))
            cin = c(each)
        layers.append(nn.MaxPool2d(2))
    dense = [nn.Linear(cin * 4, c(128)), nn.ReLU(), nn.Dropout(), nn.Linear(c(128), c(64)), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), *dense, nn.Dropout(), nn.Linear(c(64), 10))


class DenseLayer(nn.Module):
    """Its new channels behind its input; each BatchNorm cuts across the outputs of all layers before."""

    def __init__(self, cin: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(cin),
            nn.ReLU(),
            conv(cin, 4 * growth, 1),
            nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


@architecture((3, 32, 32))
def densenet(width: float) -> nn.Module:
    """DenseNet: every layer reads all before, by BatchNorms that no convolution absorbs (Huang 2017)."""
    c = scaler(width)
    growth, cin = c(16), c(32)
    layers: list[nn.Module] = [nn.Conv2d(3, cin, 3, 1, 1, bias=False)]
    for stage, depth in enumerate((3, 4, 4)):
        if stage:
            layers += [
                nn.BatchNorm2d(cin),
                nn.ReLU(),
                nn.Conv2d(cin, cin // 2, 1, bias=False),
                nn.AvgPool2d(2),
            ]
            cin //= 2
        for _ in range(depth):
            layers.append(DenseLayer(cin, growth))
            cin += growth
    return nn.Sequential(*layers, nn.BatchNorm2d(cin), nn.ReLU(), head(cin))


@architecture((3, 32, 32))
def inception(width: float) -> nn.Module:
    """Inception-v3-like: average-pooled branches, factorised convolutions, nested branches (Szegedy 2016)."""
    c = scaler(width)
    small = Concat(
        conv(c(64), c(32), 1),
        nn.Sequential(conv(c(64), c(24), 1), conv(c(24), c(32), 5)),
        nn.Sequential(conv(c(64), c(32), 1), conv(c(32), c(48)), conv(c(48), c(48))),
        nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(c(64), c(16), 1)),
    )
    cin = c(32) + c(32) + c(48) + c(16)
    down = Concat(conv(cin, c(64), 3, 2), nn.MaxPool2d(3, 2, 1))
    cin += c(64)
    long = Concat(
        conv(cin, c(48), 1),
        nn.Sequential(conv(cin, c(32), 1), conv(c(32), c(32), (1, 7)), conv(c(32), c(48), (7, 1))),
        nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv(cin, c(32), 1)),
    )
    split = Concat(conv(c(48), c(48), (1, 3)), conv(c(48), c(48), (3, 1)))
    cin = 2 * c(48) + c(32)
    wide = Concat(conv(cin, c(64), 1), nn.Sequential(conv(cin, c(48), 1), split))
    return nn.Sequential(conv(3, c(32)), conv(c(32), c(64), 3, 2), small, down, long, wide, head(c(64) + 2 * c(48)))


@architecture((3, 32, 32))
def googlenet(width: float) -> nn.Module:
    """GoogLeNet-like: four branches, one of them max-pooled, without BatchNorm (Szegedy 2015)."""
    c = scaler(width)
    layers: list[nn.Module] = [nn.Conv2d(3, c(32), 5, 2, 2), nn.ReLU(), nn.LocalResponseNorm(5)]
    cin = c(32)
    for one, reduce3, three, reduce5, five, pooled in (32, 32, 48, 8, 16, 16), (64, 48, 96, 16, 32, 32):
        layers.append(
            Concat(
                nn.Sequential(nn.Conv2d(cin, c(one), 1), nn.ReLU()),
                nn.Sequential(
                    nn.Conv2d(cin, c(reduce3), 1),
                    nn.ReLU(),
                    nn.Conv2d(c(reduce3), c(three), 3, 1, 1),
                    nn.ReLU(),
                ),
                nn.Sequential(
                    nn.Conv2d(cin, c(reduce5), 1),
                    nn.ReLU(),
                    nn.Conv2d(c(reduce5), c(five), 5, 1, 2),
                    nn.ReLU(),
                ),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(cin, c(pooled), 1), nn.ReLU()),
            )
        )
        cin = c(one) + c(three) + c(five) + c(pooled)
        layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
    return nn.Sequential(*layers, nn.Dropout(0.2), head(cin))


@architecture((3, 32, 32))
def squeezenet(width: float) -> nn.Module:
    """SqueezeNet: fire modules; the classifier is a convolution before the pooling (Iandola 2016)."""
    c = scaler(width)
    layers: list[nn.Module] = [nn.Conv2d(3, c(32), 3, 2), nn.ReLU()]
    cin = c(32)
    for squeezed, out, pooled in (16, 48, False), (16, 48, True), (32, 64, True), (32, 96, False):
        expand1 = nn.Sequential(nn.Conv2d(c(squeezed), c(out), 1), nn.ReLU())
        expand3 = nn.Sequential(nn.Conv2d(c(squeezed), c(out), 3, 1, 1), nn.ReLU())
        layers += [nn.Conv2d(cin, c(squeezed), 1), nn.ReLU(), Concat(expand1, expand3)]
        cin = 2 * c(out)
        if pooled:
            layers.append(nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*layers, nn.Dropout(), nn.Conv2d(cin, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
