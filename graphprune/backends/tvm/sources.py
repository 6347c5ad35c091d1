"""Which schedules these are: a number for the sources that shape code, so that no latency measured with others is
taken for theirs."""

from __future__ import annotations

import ast
from functools import cache
from hashlib import sha256
from pathlib import Path

SHAPING = ("channel_selection", "cuda", "lower", "lstm", "lstm_steps", "planes", "rewrites", "schedule",
           "schedule_bands", "schedule_concat", "schedule_rows", "separable", "stack", "tiles", "time_ops",
           "torch_ops", "transposed", "vector_math", "winograd")  # fmt: skip
"""Modules that decide what code an op becomes, or how one op alone is timed."""

OTHERS = ("__init__", "records", "rpc", "search_space", "sources", "target", "tune", "vm_profile", "worker")
"""Modules that do not: they search, store, send or report."""


@cache
def schedules() -> str:
    """Sixteen hex digits that change when what the sources say changes, comments and docstrings apart."""
    folder = Path(__file__).parent
    said = [fingerprint((folder / f"{name}.py").read_text(encoding="utf-8")) for name in SHAPING]
    return sha256("".join(said).encode()).hexdigest()[:16]


def fingerprint(source: str) -> str:
    """Of a module's statements."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            node.body = [each for each in node.body if not _text(each)]
    return sha256(ast.dump(tree).encode()).hexdigest()


def _text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
