"""Other ranks, several inputs, no convolution at all."""

import torch
from torch import Tensor, nn

from .common import Residual, architecture, conv, scaler


@architecture((8, 128))
def conv1d(width: float) -> nn.Module:
    """Signals: 1-D convolutions, dilated and depthwise, with a residual sum."""
    c = scaler(width)
    body = nn.Sequential(
        nn.Conv1d(c(64), c(64), 3, padding=2, dilation=2, groups=c(64)),
        nn.Conv1d(c(64), c(96), 1),
        nn.BatchNorm1d(c(96)),
        nn.LeakyReLU(0.1),
        nn.Conv1d(c(96), c(64), 3, padding=1),
    )
    return nn.Sequential(
        nn.Conv1d(8, c(64), 7, 2, 3, bias=False),
        nn.BatchNorm1d(c(64)),
        nn.ReLU(),
        Residual(body, act=nn.ReLU()),
        nn.MaxPool1d(2),
        nn.Conv1d(c(64), c(128), 3, padding=1),
        nn.ELU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(c(128), 10),
    )


@architecture((2, 8, 16, 16))
def conv3d(width: float) -> nn.Module:
    """Volumes: 3-D convolutions with a residual sum."""
    c = scaler(width)
    body = nn.Sequential(
        nn.Conv3d(c(24), c(32), 3, padding=1),
        nn.BatchNorm3d(c(32)),
        nn.ReLU(),
        nn.Conv3d(c(32), c(24), 3, padding=1),
    )
    return nn.Sequential(
        nn.Conv3d(2, c(24), 3, padding=1),
        nn.BatchNorm3d(c(24)),
        nn.ReLU(),
        nn.MaxPool3d(2),
        Residual(body, act=nn.ReLU()),
        nn.Conv3d(c(24), c(48), (3, 3, 3), (1, 2, 2), 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(c(48), 10),
    )


class TwoInputs(nn.Module):
    """An image, scaled and shifted for each channel by what a vector says; a label and a mask come out."""

    def __init__(self, c1: int, c2: int, hidden: int) -> None:
        super().__init__()
        self.image = nn.Sequential(conv(3, c1), conv(c1, c2, 3, 2))
        self.vector = nn.Sequential(nn.Linear(16, hidden), nn.ReLU(), nn.Linear(hidden, 2 * c2))
        self.shared = conv(c2, c2)
        self.label = nn.Sequential(nn.Linear(c2 + hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10))
        self.mask = nn.Sequential(nn.ConvTranspose2d(c2, c1, 4, 2, 1), nn.ReLU(), nn.Conv2d(c1, 1, 1))
        self.context = nn.Linear(16, hidden)

    def forward(self, image: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        x = self.image(image)
        scale, shift = self.vector(vector).chunk(2, 1)
        x = self.shared(x * scale[:, :, None, None] + shift[:, :, None, None])
        features = torch.cat([x.mean((2, 3)), torch.relu(self.context(vector))], 1)
        return self.label(features), torch.sigmoid(self.mask(x))


@architecture((3, 32, 32), (16,))
def two_inputs(width: float) -> nn.Module:
    """Two inputs, modulation of one by the other (FiLM, Perez 2018), two outputs."""
    c = scaler(width)
    return TwoInputs(c(32), c(64), c(64))


@architecture((64,))
def mlp(width: float) -> nn.Module:
    """Linear layers with BatchNorm, LayerNorm and a residual sum."""
    c = scaler(width)
    inner = nn.Sequential(nn.LayerNorm(c(160)), nn.Linear(c(160), c(320)), nn.GELU(), nn.Linear(c(320), c(160)))
    return nn.Sequential(
        nn.Linear(64, c(256)),
        nn.BatchNorm1d(c(256)),
        nn.ReLU(),
        nn.Linear(c(256), c(160)),
        Residual(inner),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(c(160), 10),
    )
