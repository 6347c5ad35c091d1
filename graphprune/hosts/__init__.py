"""Who owns weights, literals and execution: torch.fx graph modules and ONNX models."""
