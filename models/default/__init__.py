"""The small trained model that `onnxprune demo` prunes, with the data it needs.

A classifier of 28 x 28 pictures of clothes, 1000 labelled test pictures (`sample`) and 200 unlabelled
pictures from the training set (`calibration`). Pictures are float32, N x 1 x 28 x 28, normalised as the model
wants them, so both archives serve as `--data` too. models/train_default.py made all three files.
"""

from importlib.resources import files
from pathlib import Path

import numpy as np

Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]

LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def model_path() -> Path:
    """The ONNX file."""
    return _path("default.onnx")


def sample() -> tuple[Array, Array]:
    """Test images and their labels (int64)."""
    with np.load(_path("sample.npz")) as archive:
        return archive["image"], archive["label"]


def calibration() -> Array:
    """Training images without labels, disjoint from the sample."""
    with np.load(_path("calibration.npz")) as archive:
        image: Array = archive["image"]
        return image


def _path(name: str) -> Path:
    return Path(str(files(__name__) / name))
