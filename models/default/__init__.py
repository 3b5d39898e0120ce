"""The small trained model that `onnxprune demo` prunes, with the data it needs."""
