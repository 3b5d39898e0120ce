"""The target "lossless": remove exactly what does not change the function."""

from onnxprune.lossless.search import lossless

__all__ = ["lossless"]
