"""The share of the default model's labelled sample that a model answers rightly.

Usage: python tools/evaluate_default.py MODEL
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from onnxprune.default import sample
from onnxprune.runtime import run, session

BATCH = 250

if __name__ == "__main__":
    images, labels = sample()
    ready = session(Path(sys.argv[1]))
    starts = range(0, len(images), BATCH)
    hits = sum(
        int((run(ready, {"image": images[s : s + BATCH]})["logits"].argmax(1) == labels[s : s + BATCH]).sum())
        for s in starts
    )
    print(hits / len(labels))
