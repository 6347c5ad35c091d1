"""What torch.export says where it cannot trace a module, folded to the user's own line and what to change there."""

from __future__ import annotations

import linecache
import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch

from ...errors import ModelError, first_line

_OURS = Path(__file__).parents[2]
_FOREIGN = (Path(torch.__file__).parent, _OURS, Path(sysconfig.get_paths()["stdlib"]))
_FRAME = re.compile(r'File "?([^",:]+)"?(?:, line |:)(\d+),? in (\w+)')

_HINTS = (
    (
        r"must be tuple of ints, ?but got FakeTensor|_VF.lstm|pack_padded|PackedSequence",
        "a packed sequence has sizes that are values of a tensor, of which torch.export has no form: run the layer on "
        "the padded sequence and read it by length (`y[range(n), lengths - 1]`): in one direction its steps up to "
        "there are the same",
    ),
    (
        r"transformers.cache_utils.\w+'> in output",
        "leave `use_cache=True` out of the example: what is traced hands out no key-value cache; the class itself, cut "
        "in place or rebuilt, generates with one as before",
    ),
    (
        r"data-dependent|unbacked|specialized integer|_local_scalar_dense|slice indices must be integers",
        "what it does there depends on values of tensors: choose with torch.where or torch.cond, and say with "
        "torch._check(n <= size) what a number from `.item()` can be",
    ),
    (
        r"[Cc]onstraints violated|specialized|dynamic_shapes",
        "a size that is to stay open is fixed there: give dynamic_shapes, or an example of the sizes that you use",
    ),
    (
        r"does not require grad|requires_grad|backward",
        "leave gradients out of forward: `backward` and `requires_grad_` belong to training",
    ),
    (
        r"missing \w+ required|takes \d+ positional|unexpected keyword|positional argument",
        "the example inputs are not what forward takes: a tensor, a tuple, a mapping of its arguments by name, or "
        '{"args": ..., "kwargs": ...}',
    ),
    (
        r"Unsupported input type <class 'numpy",
        "the example inputs are arrays, and a module takes tensors: torch.from_numpy(array)",
    ),
    (
        r"reduction dim|must match|size mismatch|[Ee]xpected input|expected .*channels|Given groups|Invalid channel",
        "the example inputs have other sizes than the module takes: run it on them once",
    ),
    (
        r"not supported|Unsupported|numpy|ScriptModule|ScriptMethod|fake impl|DataParallel",
        "torch.export has no form of that: write it in torch ops, give the module inside, or an ONNX file",
    ),
)
"""What to change, by what torch says: the first that is found."""

_OTHERWISE = "run the module on the example; torch.export.export on it shows the whole trace; or give an ONNX file"


def refusal(module: torch.nn.Module, failure: BaseException) -> ModelError:
    """One error: the module, the user's line, what torch says in a line, and what to change."""
    said = _said(failure)
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, str(failure))), _OTHERWISE)
    checks = str(Path(torch.distributions.__file__).parent)
    if any(file.startswith(checks) for file, _, _ in _frames(failure.__traceback__)):
        hint = "make the distribution with validate_args=False: its checks look at values"
    where = place(failure)
    return ModelError(f"{type(module).__name__}: torch.export could not trace it{where} ({said})", hint)


def place(failure: BaseException) -> str:
    """`` at file:line, in name: `source``` for the innermost line that is the user's; nothing where none is."""
    frames = [*_frames(failure.__traceback__), *_written(str(failure))]
    own = [frame for frame in frames if not any(_within(frame[0], folder) for folder in _FOREIGN)]
    if not own:
        return ""
    file, line, name = own[-1]
    source = linecache.getline(file, line).strip()
    return f" at {file}:{line}, in {name}" + (f": `{source[:120]}`" if source else "")


def _frames(trace: TracebackType | None) -> Iterator[tuple[str, int, str]]:
    yield from ((frame.filename, frame.lineno or 0, frame.name) for frame in traceback.extract_tb(trace))


def _written(text: str) -> Iterator[tuple[str, int, str]]:
    """The frames that torch writes into its message, of code that is traced in another way."""
    yield from ((file, int(line), name) for file, line, name in _FRAME.findall(text))


def _within(file: str, folder: Path) -> bool:
    return file.startswith(("<", str(folder)))


def _said(failure: BaseException) -> str:
    """The first line, without torch's own names of symbols."""
    line = first_line(failure)
    line = re.sub(r"\s*\((unhinted|Size-like symbols)[^()]*(\([^()]*\))?[^()]*\)\.?", "", line)
    return line.strip().removesuffix(".").strip()
