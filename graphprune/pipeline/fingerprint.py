"""Which weights a plan was made from."""

from __future__ import annotations

import hashlib

import numpy as np

from ..ir.graph import Value
from ..ir.host import Array
from ..ir.program import Program


def fingerprint(program: Program) -> str:
    """``sha256:`` and 64 digits over name, shape, dtype and bytes of every parameter that the graph reads,
    in whatever order; a quantised tensor as the numbers that it stands for."""
    return f"sha256:{hashlib.sha256(b''.join(sorted(digests(program).values()))).hexdigest()}"


def digests(program: Program) -> dict[str, bytes]:
    """The same of every parameter by itself, by name."""
    parameters = program.graph.parameters.values()
    return {value.name: _digest(value, program.host.parameter(value.name)) for value in parameters}


def _digest(value: Value, array: Array) -> bytes:
    found = hashlib.sha256(repr((value.name, value.dtype, array.shape, str(array.dtype))).encode())
    if array.dtype.hasobject:  # strings: an array of them holds pointers
        found.update(repr(array.tolist()).encode())
    else:
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.digest()
