"""Who owns weights, literals and execution: torch.fx from torch.export, or onnx_ir."""
