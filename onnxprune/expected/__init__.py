"""Expected values of channels, without data: from the statistics in normalisations, through what follows them."""

from onnxprune.expected.fold import fold_expected

__all__ = ["fold_expected"]
