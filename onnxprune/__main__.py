"""`python -m onnxprune` is the `onnxprune` command."""

import sys

from onnxprune.cli import main

if __name__ == "__main__":
    sys.exit(main())
