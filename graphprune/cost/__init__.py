"""What a network costs at any widths: parameters, multiply-accumulates, memory, latency."""
