"""Train the small default model that `onnxprune demo` prunes, and write models/default/.

    python models/train_default.py FOLDER        # the folder of Debian's dataset-fashion-mnist

The network is tiny, but it couples channels in most of the ways that real networks do: a residual sum with a
projection, an inverted residual with a depthwise convolution, a concatenation and a squeeze-and-excite gate.

Training puts a group lasso on the BatchNorm scales and shifts of coupled channels (network slimming, Liu
2017, over whole units; on the weaker half of each group, as in growing regularisation, Wang 2021), so that
half of the channels end near zero. That is deliberate, and ordinary practice for a network that is to be
pruned: it lets the demo, which has neither retraining nor recovery, show a network that survives. One
trained without it (`--lasso 0`) needs recovery.

Seed and threads are fixed: the result repeats on the same kind of machine with the same version of torch.
"""

import argparse
import gzip
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent / "default"
MEAN, STD = 0.286, 0.353
TEST_IMAGES, CALIBRATION_IMAGES = 1000, 200
EPOCHS, LASSO = 6, 3e-3
LICENCE = """Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist
The MIT License (MIT)

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation
the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and
to permit persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of
the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO
THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF
CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS
IN THE SOFTWARE.
"""


def read_idx(path: Path) -> np.ndarray:
    """The array in a gzipped IDX file of unsigned bytes."""
    data = gzip.decompress(path.read_bytes())
    rank = data[3]
    shape = np.frombuffer(data, ">i4", rank, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def load(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (float32, N x 1 x 28 x 28, normalised) and labels (int64) of `train` or `t10k`."""
    images = read_idx(folder / f"{split}-images-idx3-ubyte.gz")[:, None]
    labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz")
    return ((images / np.float32(255) - MEAN) / STD).astype(np.float32), labels.astype(np.int64)


class ConvBN(nn.Sequential):
    """Convolution and BatchNorm, which the export folds into one Conv."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(cout))

    @property
    def affine(self) -> list[Tensor]:
        """BatchNorm's scale and shift: zero in both, and the channel is gone."""
        return [self[1].weight, self[1].bias]


class Net(nn.Module):
    """About 140 thousand parameters and 15 million MACs on a 28 x 28 image."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = ConvBN(1, 32, 3, stride=2)
        self.conv1, self.conv2, self.projection = ConvBN(32, 64, 3), ConvBN(64, 64, 3), ConvBN(32, 64, 1)
        self.expand = ConvBN(64, 128, 1)
        self.depthwise = ConvBN(128, 128, 3, groups=128)
        self.project = ConvBN(128, 64, 1)
        self.branch1, self.branch3 = ConvBN(64, 64, 1), ConvBN(64, 64, 3)
        self.squeeze, self.excite = nn.Conv2d(128, 32, 1), nn.Conv2d(32, 128, 1)
        self.head = ConvBN(128, 128, 1)
        self.classifier = nn.Linear(128, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.relu(self.stem(image))
        x = functional.relu(self.conv2(functional.relu(self.conv1(x))) + self.projection(x))
        x = functional.max_pool2d(x, 2)
        x = x + self.project(functional.relu6(self.depthwise(functional.relu6(self.expand(x)))))
        x = torch.cat([functional.relu(self.branch1(x)), functional.relu(self.branch3(x))], 1)
        x = x * torch.sigmoid(self.excite(functional.relu(self.squeeze(functional.adaptive_avg_pool2d(x, 1)))))
        x = functional.relu(self.head(x))
        return self.classifier(functional.adaptive_avg_pool2d(x, 1).flatten(1))

    def units(self) -> list[list[Tensor]]:
        """For each group of coupled channels, the tensors whose first axis counts them."""
        return [
            self.stem.affine,
            self.conv1.affine,
            self.conv2.affine + self.projection.affine + self.project.affine,
            self.expand.affine + self.depthwise.affine,
            [*self.branch1.affine, self.excite.weight[:64, :, 0, 0]],
            [*self.branch3.affine, self.excite.weight[64:, :, 0, 0]],
            [self.squeeze.weight[:, :, 0, 0], self.squeeze.bias],
            self.head.affine,
        ]

    def sparsity(self) -> Tensor:
        """The sum of the norms of the weaker half of the units of each group."""
        total = torch.zeros(())
        for group in self.units():
            norms = torch.cat([t.reshape(len(t), -1) for t in group], 1).norm(dim=1)
            total = total + norms.topk(len(norms) // 2, largest=False).values.sum()
        return total


def batches(images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled, shifted and mirrored batches."""
    for rows in torch.randperm(len(images)).split(size)[: len(images) // size]:
        batch = images[rows]
        if torch.rand(()) < 0.5:
            batch = batch.flip(3)
        down, right = torch.randint(0, 5, (2,)).tolist()
        batch = functional.pad(batch, (2, 2, 2, 2), value=-MEAN / STD)
        yield batch[:, :, down : down + 28, right : right + 28], labels[rows]


def train(images: Tensor, labels: Tensor, epochs: int, lasso: float, seed: int = 0) -> Net:
    """Train a network with SGD, one cosine cycle and the group lasso."""
    torch.manual_seed(seed)
    net = Net().to(memory_format=torch.channels_last)
    size = 128
    steps = epochs * (len(images) // size)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    ramp = steps // 10
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min((k + 1) / ramp, 0.5 + 0.5 * math.cos(math.pi * k / steps))
    )
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        for x, y in batches(images, labels, size):
            loss = functional.cross_entropy(net(x), y)
            total += loss.item()
            optimizer.zero_grad()
            (loss + (lasso * net.sparsity() if epoch else 0.0)).backward()
            optimizer.step()
            schedule.step()
        mean, seconds = total / (len(images) // size), time.perf_counter() - start
        print(f"epoch {epoch + 1}/{epochs}: loss {mean:.3f}, {seconds:.0f} s", flush=True)
    return net.eval()


@torch.no_grad()
def accuracy(net: Net, images: Tensor, labels: Tensor) -> float:
    """The fraction of the images that the network labels rightly."""
    return float(torch.cat([net(x).argmax(1) for x in images.split(500)]).eq(labels).float().mean())


def write(net: Net, folder: Path) -> None:
    """The model as `default.onnx`, BatchNorms folded, with a dynamic batch N."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this exporter is the old one
        torch.onnx.export(
            net.to(memory_format=torch.contiguous_format),
            (torch.zeros(1, 1, 28, 28),),
            str(folder / "default.onnx"),
            dynamo=False,
            opset_version=17,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the default model and write models/default/.")
    parser.add_argument("folder", type=Path, help="where the four IDX files of Fashion-MNIST are")
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="default: models/default")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--lasso", type=float, default=LASSO, help="0 trains an ordinary dense network")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    images, labels = load(args.folder, "train")
    test_images, test_labels = load(args.folder, "t10k")
    net = train(torch.from_numpy(images), torch.from_numpy(labels), args.epochs, args.lasso)
    hit = accuracy(net, torch.from_numpy(test_images), torch.from_numpy(test_labels))
    print(f"accuracy on the {len(test_images)} test images: {hit:.4f}")

    args.output.mkdir(parents=True, exist_ok=True)
    write(net, args.output)
    first = slice(TEST_IMAGES)
    sample = {"image": test_images[first], "label": test_labels[first], "licence": np.array(LICENCE)}
    np.savez_compressed(args.output / "sample.npz", allow_pickle=False, **sample)
    calibration = {"image": images[:CALIBRATION_IMAGES], "licence": np.array(LICENCE)}
    np.savez_compressed(args.output / "calibration.npz", allow_pickle=False, **calibration)
    for name in ("default.onnx", "sample.npz", "calibration.npz"):
        print(f"{name}: {(args.output / name).stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
