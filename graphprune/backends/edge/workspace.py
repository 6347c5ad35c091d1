"""What kernels ask malloc for beside the arena: what they keep between two of their own loops."""

from __future__ import annotations

from typing import Any

BESIDE = 8 + 63  # bytes that TVMBackendAllocWorkspace of device/runtime.c adds: a pointer, and what aligns to 64


class Workspace:
    """Reads it off the code of kernels as they are built: ``instrument`` is one of TVM's passes, ``bytes`` the most
    that one of them has at once, on one thread (in a parallel loop every thread has its own)."""

    def __init__(self) -> None:
        from tvm.ir.instrument import pass_instrument

        self.bytes = 0
        workspace = self

        @pass_instrument
        class Reader:
            def run_after_pass(self, module: Any, info: Any) -> None:
                if info.name == "tirx.LowerTVMBuiltin":  # which turns buffers into these calls
                    workspace.bytes = max(map(_most, module.functions.values()), default=0)

        self.instrument = Reader()


def _most(function: Any) -> int:
    """What a kernel frees is what it asked for last."""
    import tvm_ffi
    from tvm import ir

    has: list[int] = []
    most = 0

    def visit(call: Any) -> None:
        nonlocal most
        name = getattr(call.op, "name", "")
        if name == "tirx.TVMBackendAllocWorkspace":
            has.append(int(call.args[2]) + BESIDE)
            most = max(most, sum(has))
        elif name == "tirx.TVMBackendFreeWorkspace":
            has.pop()

    tvm_ffi.structural_walk(function.body, (ir.Call, visit))
    return most
