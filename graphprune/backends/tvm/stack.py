"""Buffers of scope `local`, which a schedule keeps in registers, on the stack.

TVM lets small buffers of its common scope share the memory of large ones that are done with, and asks its runtime for
memory of any other scope. What a tile adds up must be neither: a compiler keeps a number in a register through a loop
only where nothing that the loop writes can be that number, and GCC believes that of arrays on the stack alone. So such
a buffer has a scope of its own until TVM has shared out memory, and then the common one.

TVM is an extra and slow to import, so every import of it is inside a function.
"""

from __future__ import annotations

from functools import cache
from typing import Any

SCOPE = "local"


@cache
def registered() -> None:
    """Make it part of how TVM builds scheduled loops, in this process."""
    from tvm import ir, s_tir, tirx

    def pipeline() -> Any:
        lower, host, device = s_tir.pipeline.default_s_tir_pipeline()
        return lower, lambda: ir.transform.Sequential([_placed(), host()]), device

    tirx.compilation_pipeline.register_tir_pipeline("s_tir", pipeline)


def _placed() -> Any:
    """The pass: one buffer that may be on the stack for each that is local."""
    import tvm_ffi
    from tvm import ir, tirx

    def run(function: Any, *_: Any) -> Any:
        made: dict[Any, Any] = {}

        def placed(var: Any) -> Any:
            if not tirx.buffer.is_buffer_var(var) or var.scope() != SCOPE:
                return var
            if var not in made:
                made[var] = tirx.decl_buffer(var.shape, var.dtype, var.name)
            return made[var]

        return function.with_body(tvm_ffi.structural_map(function.body, [(ir.Var, placed)]))

    return tirx.transform.prim_func_pass(run, opt_level=0, name="graphprune.stack")
