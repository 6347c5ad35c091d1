"""A plan as C: tables that device/runtime.c walks, and the line that builds them."""

from __future__ import annotations

import re
import shlex
import shutil
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import TargetError
from ..boards import Board
from . import lanes
from .call_sequence import Buffer, Plan

_SOURCES = Path(__file__).with_name("device")
MOST_ARGUMENTS = 256  # GP_MOST_ARGUMENTS of device/runtime.h
MOST_BUFFERS = 2**16  # numbers of buffers are uint16_t there
_CODES = {"int": 0, "uint": 1, "float": 2, "bool": 6}  # DLDataTypeCode


def write(plan: Plan, kernels: Any, board: Board, folder: Path) -> None:
    """The sources, the weights, the kernels' code and ``build.sh`` into ``folder``."""
    for path in sorted(_SOURCES.iterdir()):
        shutil.copyfile(path, folder / path.name)
    (folder / "weights.bin").write_bytes(plan.packed())
    (folder / "model.h").write_text(_HEADER.format(weights=_IN_PLACE if board.bare else ""), encoding="utf-8")
    (folder / "model.c").write_text(_tables(plan), encoding="utf-8")
    if board.code == "c":
        (folder / "kernels.c").write_text(_portable(kernels.inspect_source()), encoding="utf-8")
    else:
        kernels.write_to_file(str(folder / "kernels.o"), "o")
    if board.bare:
        (folder / "run.c").unlink()
        (folder / "weights.s").write_text(_WEIGHTS, encoding="utf-8")
    (folder / "build.sh").write_text(_build(board), encoding="utf-8")
    (folder / "build.sh").chmod(0o755)


_HEADER = """\
/* The network. See runtime.h for gp_run. */
#ifndef GP_MODEL_H
#define GP_MODEL_H
#include "runtime.h"
#ifdef __cplusplus
extern "C" {{
#endif
extern const gp_model model;
{weights}#ifdef __cplusplus
}}
#endif
#endif
"""

_IN_PLACE = """\
extern const unsigned char gp_weights[]; /* model.weights_bytes of them, for gp_run: read where they lie */
"""

_WEIGHTS = """\
    .section .rodata
    .balign 64
    .global gp_weights
gp_weights:
    .incbin "weights.bin"
"""


def _tables(plan: Plan) -> str:
    """model.c: every buffer once, every call as a kernel and the buffers' numbers."""
    buffers = {buffer: None for _, used in plan.calls for buffer in used}
    number = {buffer: k for k, buffer in enumerate(buffers)}
    shapes = {b.shape: None for b in (*buffers, *plan.inputs, *plan.outputs)}
    names = {shape: f"shape{k}" for k, shape in enumerate(shapes)}
    kernels = dict.fromkeys(kernel for kernel, _ in plan.calls if kernel is not None)
    lines = ['#include "model.h"', ""]
    lines += [f"static const int64_t {name}[] = {{{_row(shape or (1,))}}};" for shape, name in names.items()]
    lines += ["", *(f"int32_t __tvm_ffi_{kernel}(void *, void *, int32_t, void *);" for kernel in kernels), ""]
    lines += [_array("gp_tensor tensors", [_tensor(buffer, names) for buffer in buffers])]
    lines += [f"static const uint16_t args{k}[] = {{{_row(number[b] for b in used)}}};" for k, (_, used) in
              enumerate(plan.calls)]  # fmt: skip
    calls = [
        f"{{{f'__tvm_ffi_{kernel}' if kernel else 'NULL'}, {len(used)}, args{k}}}"
        for k, (kernel, used) in enumerate(plan.calls)
    ]
    lines += ["", _array("gp_call calls", calls)]
    for what, ends in (("inputs", plan.inputs), ("outputs", plan.outputs)):
        lines += [_array(f"gp_tensor {what}", [_tensor(buffer, names) for buffer in ends])]
    lines += [
        "const gp_model model = {tensors, calls, "
        f"{len(calls)}, inputs, outputs, {len(plan.inputs)}, {len(plan.outputs)}, "
        f"{plan.weights_bytes}, {plan.arena_bytes}, {zlib.crc32(plan.packed())}u}};",
        "",
    ]
    return "\n".join(lines)


def check(plan: Plan, label: str) -> None:
    """Raises TargetError for what the tables of the runtime cannot hold. ``label``: the target's."""
    hint = "use the target `tvm` or `onnx`, or split the op in the model"
    for kernel, used in plan.calls:
        if len(used) > MOST_ARGUMENTS:
            said = f"`{kernel}` reads and writes {len(used)} tensors, the device's runtime takes {MOST_ARGUMENTS}"
            raise TargetError(f"target `{label}`: {said}", hint)
    buffers = len({buffer for _, used in plan.calls for buffer in used})
    if buffers > MOST_BUFFERS:
        said = f"the network has {buffers} buffers, the device's runtime takes {MOST_BUFFERS}"
        raise TargetError(f"target `{label}`: {said}", hint)


def _array(declared: str, rows: Sequence[str]) -> str:
    kind, name = declared.split()
    return f"static const {kind} {name}[] = {{\n" + "".join(f"  {row},\n" for row in rows or ["{0}"]) + "};"


def _tensor(buffer: Buffer, names: dict[tuple[int, ...], str]) -> str:
    match = re.fullmatch(r"([a-z]+)(\d*)", buffer.dtype)
    assert match is not None, buffer.dtype
    dtype = f"{{{_CODES[match[1]]}, {match[2] or 8}, 1}}"
    shape = names[buffer.shape]
    return f"{{GP_{buffer.place.upper()}, {buffer.at}, {buffer.bytes}, {dtype}, {len(buffer.shape)}, {shape}}}"


def _row(numbers: Any) -> str:
    return ", ".join(map(str, numbers))


def _portable(source: str) -> str:
    """TVM's C without TVM's headers."""
    body = re.sub(r"^#(include|define TVM_EXPORTS).*\n", "", source, flags=re.MULTILINE)
    body = re.sub(r"\b(inf|nan)f?\b", lambda found: _NUMBERS[found[1]], body)  # as C++'s streams write them
    body = re.sub(r"\.v_(ptr|int64|float64)\b", r".v.v_\1", body)  # C99 has no unnamed unions
    body = re.sub(r'^#ifdef __cplusplus\nextern "C"\n#endif\n', "", body, flags=re.MULTILINE)
    body = _CONDITION.sub(lambda found: found[0].replace("&&", "&"), body)
    return _PROLOGUE + lanes.DEFINED + lanes.marked(body)


_CONDITION = re.compile(r"^ *if \([^\[\n]+\) \{$", re.MULTILINE)
"""What asks indices alone, which may be asked all at once. GCC takes one question out of a loop and few of several."""

_NUMBERS = {"inf": "INFINITY", "nan": "NAN"}  # of <math.h>


@cache
def functions() -> None:
    """Give TVM, in this process, the functions of <math.h> that it has no form of in C."""
    from tvm import tirx

    def call(name: str) -> Callable[[Any], Any]:
        def lower(of: Any) -> Any:
            single = str(of.ty.dtype) == "float32"
            return tirx.call_pure_extern(of.ty.dtype, f"{name}f" if single else name, *of.args)

        return lower

    # Not fma, of which TVM makes every product that something is added to: a call, where the CPU has no instruction.
    for name in ("exp2", "fabs", "fmod"):
        tirx.register_intrin_lowering(f"tirx.{name}", target="c", f=call(name))


_PROLOGUE = """\
#ifdef __GNUC__ /* generated: every kernel gets what some kernels use */
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wunused-variable"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"
#endif
#include <math.h>
#include <stdbool.h>
#include <string.h>
#include "runtime.h"
#define TVM_DLL
void *TVMBackendAllocWorkspace(int device, int id, uint64_t bytes, int code, int bits);
int TVMBackendFreeWorkspace(int device, int id, void *memory);
"""


def _build(board: Board) -> str:
    kernels = "kernels.c" if board.code == "c" else "kernels.o"
    flags = " ".join(shlex.quote(flag) for flag in board.flags)
    return (_BARE if board.bare else _SCRIPT).format(cc=board.cc, flags=f" {flags}" if flags else "", kernels=kernels)


_SCRIPT = """\
#!/bin/sh
# Builds libmodel.so and the program `run`. On the device itself: CC=cc sh build.sh
set -e
cd "$(dirname "$0")"
: "${{CC:={cc}}}" "${{CFLAGS:=-O3 -ffp-contract=fast -fopenmp}}"
$CC $CFLAGS -std=c99{flags} -fPIC -shared model.c runtime.c {kernels} -o libmodel.so -lm
$CC $CFLAGS -std=c99{flags} run.c -o run -L. -lmodel -lm -Wl,-rpath,'$ORIGIN'
"""


_BARE = """\
#!/bin/sh
# Builds libmodel.a, the network and its weights.
set -e
cd "$(dirname "$0")"
: "${{CC:={cc}}}" "${{CFLAGS:=-O3 -ffp-contract=fast}}"
case $CC in *-gcc) : "${{AR:=${{CC%gcc}}ar}}" ;; *) : "${{AR:=ar}}" ;; esac
$CC $CFLAGS -std=c99{flags} -c model.c runtime.c {kernels} weights.s
rm -f libmodel.a
$AR rcs libmodel.a model.o runtime.o kernels.o weights.o
"""


def no_compiler(label: str, board: Board) -> TargetError:
    package = board.cc.replace("_", "-") if board.cc.endswith("-gcc") else "gcc"
    install = f"gcc-{package.removesuffix('-gcc')}" if package != "gcc" else "gcc"
    return TargetError(
        f"target `{label}`: no `{board.cc}` on the PATH to link with",
        f"Debian: apt-get install {install}; or the option link=false, and run build.sh on the device",
    )
