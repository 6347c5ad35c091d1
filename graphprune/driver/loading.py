"""A model and its data, as the user gives them, as a program that is checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..calibration import batches as calibration
from ..calibration.images import Images
from ..calibration.losses import labels_of
from ..calibration.suspect import one_sample, raw_pixels
from ..errors import DataError, ModelError
from ..hosts.given import PREFIX
from ..ir.host import Host
from ..ir.program import Loss, Program


def with_data(
    host: Host,
    data: Any,
    fixed: Sequence[str],
    images: Images | None,
    loss: Callable[..., Any] | None,
    seed: int,
    *,
    sized: bool,
) -> Program:
    """The program of a model and its data; ``sized``: its example inputs were given, and images are as large."""
    if data is not None and (inputs := host.undecided()):
        samples, data = calibration.first(data, inputs, fixed, images)
        host.suppose(samples)
    program = Program(host=host, source=host, seed=seed)
    _check_axes(program)  # which reads it
    program = program.note(*host.notes, *_never_read(program))
    inputs = program.graph.inputs
    if data is None:
        if loss is not None:
            raise DataError("a loss needs calibration data with labels", "give data too: an .npz with `labels`")
        return program
    sizes = host.sizes() if sized else None
    if loss is not None:
        found, rest = calibration.with_rest(data, inputs, fixed, sizes, images)
        return replace(program, data=found, loss=Loss(loss, rest)).note(*_in_order(found))
    program = replace(program, data=calibration.batches(data, inputs, fixed, sizes, images))
    program = program.note(*_in_order(program.data))
    program = program.note(*filter(None, (raw_pixels(program), one_sample(program), calibration.unread(data, inputs))))
    same = [value.name for value in inputs if value.shape and value.name in getattr(program.data, "fixed", ())]
    detected = [name for name in same if name not in fixed]
    return program.note(f"calibration: the same for every sample: {', '.join(detected)}") if detected else program


@contextmanager
def naming(data: Any) -> Iterator[None]:
    """What is wrong with data is said of its file."""
    try:
        yield
    except DataError as error:
        if isinstance(data, (str, os.PathLike)) and os.fspath(data) not in error.message:
            error.message = f"{os.fspath(data)}: {error.message}"
        raise


def _never_read(program: Program) -> tuple[str, ...]:
    """A remark on inputs that no op reads and no output is."""
    graph = program.graph
    read = {value.name for op in graph.ops for value in op.inputs if value is not None}
    read |= {value.name for value in graph.outputs}
    unread = [value.name for value in graph.inputs if value.name not in read]
    return (f"the network never reads {', '.join(f'`{name}`' for name in unread)}",) if unread else ()


def _in_order(data: Any) -> tuple[str, ...]:
    order = getattr(data, "order", ())
    return (f"calibration: no name is an input's, so arrays are taken in order: {', '.join(order)}",) if order else ()


def text_as_tokens(model: Any, data: Any) -> Any:
    """Calibration data; of a text file the tokens, for a network that has a tokeniser in its folder."""
    if not isinstance(data, (str, os.PathLike)) or Path(data).suffix != ".txt":
        return data
    if not (isinstance(model, str) and model.startswith(PREFIX)):
        raise DataError(
            f"{data}: text, of which no tokeniser makes inputs", f"a folder with one is given as {PREFIX}FOLDER"
        )
    from ..hosts.torch.pretrained import tokenised

    return tokenised(Path(model.removeprefix(PREFIX)), Path(data))


def first_samples(model: Any, data: Any) -> dict[str, Any] | None:
    """Of arrays by name, two samples each, for a folder of transformers; what cannot be read is told of later."""
    if not (isinstance(model, str) and model.startswith(PREFIX)):
        return None
    import numpy as np

    with suppress(Exception):
        if isinstance(data, (str, os.PathLike)) and Path(data).suffix == ".npz":
            with np.load(data) as file:
                data = dict(file)
        if isinstance(data, Mapping):
            labels = labels_of([*data], [])  # with which the class would compute a loss
            first = {name: array[:2] for name, array in data.items() if hasattr(array, "shape") and name not in labels}
            return first if all(array.ndim > 1 and len(array) for array in first.values()) else None
    return None


def check_sizes(example_inputs: Any, samples: Mapping[str, Any] | None) -> None:
    """Raises ModelError where sizes that are given for inputs of a folder are not those of its data."""
    given = example_inputs if isinstance(example_inputs, Mapping) else {}
    for name, array in (samples or {}).items():
        if isinstance(size := given.get(name), tuple) and size[1:] != array.shape[1:]:
            said, has = ("x".join(map(str, ["N", *sizes[1:]])) for sizes in (size, array.shape))
            raise ModelError(
                f"example inputs: `{name}` is to be {said}, and the data has {has}",
                "leave --input (example_inputs) out: a folder is traced at the sizes of its data",
            )


def _check_axes(program: Program) -> None:
    """No empty axis."""
    for value in (*program.graph.inputs, *program.graph.parameters.values()):
        if value.shape is not None and 0 in value.shape and value.shape != (0,):  # how caches begin
            raise ModelError(f"`{value.name}` has an axis of size zero: {'x'.join(map(str, value.shape))}")


def check_weights(program: Program) -> None:
    """No NaN weight."""
    import numpy as np

    for name, value in program.graph.parameters.items():
        if "float" in value.dtype:
            weight = program.host.parameter(name)
            bad = int(np.isnan(weight).sum()) if np.isnan(np.min(weight, initial=0.0)) else 0
            if bad:
                raise ModelError(
                    f"weight `{name}` has {bad} NaN of {weight.size} numbers",
                    "a model with NaN weights computes nothing",
                )
