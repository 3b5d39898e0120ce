"""The target "lossless": remove exactly what does not change the function."""

from onnxprune.lossless.aligned import aligned
from onnxprune.lossless.search import joined, lossless

__all__ = ["aligned", "joined", "lossless"]
