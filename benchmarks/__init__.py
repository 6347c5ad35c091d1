"""Benchmarks: each file is one command (``python -m benchmarks.NAME``); results go to docs/benchmarks.md."""
