"""What `--data` gives: any supported source becomes a re-iterable stream of feeds that fit the model.

What does not fit is said in one line: which input of which file, and why.
"""

from onnxprune.data.preprocess import Preprocess
from onnxprune.data.reading import SYNTHETIC, Data, Feeds, read

__all__ = ["SYNTHETIC", "Data", "Feeds", "Preprocess", "read"]
