"""Loops that the schedule made vectors of, in C.

C has no vectors, and TVM writes a loop over the numbers of each. Its variable is given a name beforehand by which it is
found again and marked. To GCC the mark says that it is to leave the loop one (-O3 writes short loops out, number by
number, before it looks for vectors), and that no turn of it waits for another, which it would otherwise ask each time
the loop runs, or give up.

TVM is an extra and slow to import, so every import of it is inside a function.
"""

from __future__ import annotations

import re
from typing import Any

_NAME = "gp_lane"  # TVM numbers those of one name
_LOOP = re.compile(rf"\bfor \((?=\w+ {_NAME}(_\d+)? = )")

DEFINED = """\
#if defined(__GNUC__) && !defined(__clang__) && (defined(__SSE__) || defined(__ARM_NEON) || defined(__riscv_vector))
#define GP_LANES _Pragma("GCC ivdep") _Pragma("GCC unroll 1")
#else
#define GP_LANES
#endif
"""


def named(kernels: Any) -> Any:
    """A module of scheduled loops, the variables of those that are vectors named."""
    from tvm import IRModule

    return IRModule({name: _named(function) for name, function in kernels.functions_items()})


def _named(function: Any) -> Any:
    import tvm_ffi
    from tvm import ir, tirx

    names: dict[Any, Any] = {}

    def visit(loop: Any) -> None:
        if loop.kind == tirx.ForKind.VECTORIZED:
            names[loop.loop_var] = tirx.Var(_NAME, loop.loop_var.ty)

    tvm_ffi.structural_walk(function.body, (tirx.For, visit))
    renamed = tvm_ffi.structural_map(function.body, [(ir.Var, lambda var: names.get(var, var))])
    return function.with_body(renamed)


def marked(source: str) -> str:
    """C with those loops marked."""
    return _LOOP.sub("GP_LANES for (", source)
