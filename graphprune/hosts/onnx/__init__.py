"""The ONNX host: an onnx_ir Model, run by ONNX Runtime."""
