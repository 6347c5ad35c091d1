"""ONNX Runtime: a target, and what its ops take."""
