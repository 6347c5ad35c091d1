"""Who owns weights, literals and execution: the handful of edits that passes ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..axes.dim import Size
from ..axes.index import Indices
from ..errors import ModelError
from .graph import Graph, Op, Piece, Site, Value

Array = NDArray[Any]

HALVES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
"""What hosts widen to float32, as they are stored."""

Batch = Sequence[Array]
"""One array per model input, in the model's order."""

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""``args, kwargs``."""


SUFFIXES = (".pt2", ".onnx")
"""Of the files that models are saved to, whatever their host."""


class Host(Protocol):
    """Who owns weights, literals and execution. Editing methods change the host they are called on:
    a pass edits a ``copy``, never the host it was given.

    What differs between hosts is asked of them: nothing outside ``hosts`` compares ``kind``.
    """

    kind: str  # "torch" or "onnx": what reports call it
    suffix: str  # of the file that ``save`` writes, one of SUFFIXES
    native_target: str  # the target whose code that file is: it runs the model as it is
    trainable: bool  # whether the model is an nn.Module, with gradients
    proof_dtype: str  # what pruned and masked model are compared in, as ``copy`` takes it
    notes: tuple[str, ...]  # what is read otherwise than it was given, for console and report
    tolerance: float  # how far they may be apart there, relative to the largest output

    @property
    def model(self) -> Any:
        """The fx.GraphModule or onnx_ir.Model."""

    def lift(self) -> Graph:
        """The thin graph, built anew, its axes related by ``rules.relate``."""

    def copy(self, dtype: str | None = None) -> Host:
        """An independent host that shares weight storage until edited; ``dtype`` casts every
        floating tensor (``"float64"``)."""

    def own(self) -> None:
        """Share no storage with the host this one was copied from: the result may be trained in place. Done to what a
        recipe or a plan gives; a pass that leaves it out takes less memory until then."""

    def parameter(self, name: str) -> Array:
        """The tensor as numpy (bf16 and fp16 widened to float32). Not to be written to."""

    def set_parameter(self, name: str, value: Array) -> None:
        """Replace a tensor; the dtype it has is kept."""

    def take(self, name: str, axis: int, keep: Indices) -> None:
        """Keep only ``keep`` of one axis of a tensor, in that order, exactly."""

    def zero(self, name: str, axis: int, drop: Indices) -> None:
        """Set the given slices of a tensor to zero, in a copy of its own. In a quantised tensor the zero
        point is what stands for zero."""

    def exclude(self, op: str, axis: int, drop: Indices) -> None:
        """Let the op of that name read minus infinity at the given positions of an axis of its first operand."""

    def narrow(self, name: str, axis: int, keep: Indices) -> None:
        """Keep only ``keep`` of an axis of an input or output of the model, in that order, and of the example.
        Inputs of the width that it had are still taken: what is not kept of them is left out."""

    def set_literal(self, op: Op, name: str, value: Any) -> None:
        """Set a literal of the op (rules.py says which ops have which): an int or a list of ints.
        In a list, None stands for a dynamic size, which stays what it was."""

    def add_bias(self, op: Op, bias: Array) -> None:
        """Add ``bias`` (one entry per output channel) to a conv's or linear's bias, making one if
        there is none."""

    def factor(self, ops: Sequence[Op], inner: Array, outers: Sequence[Array]) -> None:
        """Put a new op before ``ops``, which read the same: it has the weight ``inner``, no bias, and each of them
        reads it and has one of the weights ``outers`` in the place of its own. All are laid out as the weights were; of
        convolutions stride, padding and dilation along an axis go with the kernel along it. ``inner`` becomes the
        parameter `x.rank` of the first weight `x.weight`."""

    def to_rms_norm(self, op: Op, keeps_bias: bool) -> None:
        """Make a layer norm along one axis an RMS norm of the same weight and eps. Its bias goes, or is added after."""

    def to_mean_square(self, op: Op) -> None:
        """Make an op that takes a variance along one axis take the mean of squares. Nobody may read its mean, if it
        gives that as well. Only where ``lift`` finds such ops."""

    def untie(self, op: Op, operand: int) -> None:
        """Give an op a copy of its own of the parameter that it reads there."""

    def insert_linear(self, op: Op, operand: int, weight: Array, beside: str) -> None:
        """Put a linear layer without bias before an operand of an op, along its last axis. ``weight`` (outputs, inputs)
        becomes the parameter `x.shortcut`, where the parameter ``beside``, whose dtype it has, is `x.weight`."""

    def insert(self, before: Op | None, kind: str, inputs: Sequence[str], **attrs: Any) -> str:
        """Put a new op of ``kind`` before another, or (None) behind all; returns the name of what it makes of the
        values of these names. Kinds are those of rules.py with the attributes that such an op has there (``function``
        of one or two operands and a ``number``; shapes with -1 for what is open, and in ``expand`` for what stays), and
        ``constant``, an array, where it is of floats of the type of its operand; ``positions``, in order, of the
        ``best`` along the last axis, ``take`` of (x, ids) the positions along axis 1 of each sample, ``mark`` of (x,
        ids) ones there, ``where`` of (condition, x, y)."""

    def connect(self, op: Op, operand: int, value: str) -> None:
        """Let an op read another value as its operand of that number, which of attention may be one that it lacks: its
        mask."""

    def connect_output(self, number: int, value: str) -> None:
        """Let the output of the model of that number be another value."""

    def insert_reindex(self, site: Site) -> None:
        """Put an op of the kind ``reindex`` there. It changes nothing until ``set_reindex``."""

    def set_reindex(self, op: Op, pieces: Sequence[Piece]) -> None:
        """Replace a ``reindex`` op by the concatenation of ``pieces``: by nothing where that is all of its
        operand, a slice where it is a run, else by a gather."""

    def take_single(self, op: Op, at: Sequence[int]) -> None:
        """Let an op that takes single positions of an axis (select, unbind, a split or slice into ones), or that
        compares with the number of one, take these, one an output; -1 where nobody reads that output any more."""

    def join(self, op: Op, operands: Sequence[int]) -> None:
        """Let an op that joins its operands (stack, concat) join those of these numbers, in that order. What only the
        others were for goes along."""

    def remove(self, op: Op, stays: int = 0) -> None:
        """Drop an op; its readers read its input number ``stays`` instead, and what only the others were for, ops and
        parameters, goes along."""

    def undecided(self) -> Sequence[Value]:
        """All inputs, as the model declares them, where ``example`` has some that nobody has given; else none."""

    def suppose(self, samples: Batch) -> None:
        """Make the example of the first of these samples, where nobody gave another: one array per input."""

    def special_tokens(self) -> tuple[Sequence[int], int | None]:
        """Tokens that have a meaning of their own, as a configuration and a tokeniser say (of a folder of
        transformers), and the one that stands for what is unknown; none, and None, where nothing says so."""

    def tokens_within(self, tokens: Sequence[int]) -> Sequence[int]:
        """With these, in order, those that a tokeniser makes them of on the way."""

    def example(self) -> list[Array]:
        """Inputs of the right names, shapes and dtypes to run on."""

    def call_arguments(self, batch: Batch) -> Call:
        """One batch as the model is called with it: what ``load`` takes as ``{"args": ..., "kwargs": ...}``."""

    def run(self, batch: Batch) -> list[Array]:
        """The outputs for one batch of inputs."""

    def as_given(self) -> list[Array] | None:
        """The outputs for the example of the model itself that this was read from: None where it is no longer there as
        it was."""

    def watch(self, batch: Batch, names: Sequence[str], known: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Run once and return intermediate values by name. ``known`` values are taken as they are:
        nothing that only they depend on is computed."""

    def gradients(
        self, batch: Batch, loss: Callable[..., Any], rest: Batch, probe: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """The gradient of ``loss(output, *rest)``, a scalar, for every parameter; with ``probe`` v, a vector
        per parameter, v * (H v) entry by entry, H the Hessian. Raises GraphpruneError on a host that has
        no gradients."""

    def sizes(self) -> Mapping[str, int]:
        """What every open size of the graph's values, as their shapes spell it, comes to on the example."""

    def shapes(self) -> dict[str, tuple[Size, ...]]:
        """Every value's shape, inferred anew. Raises ShapeError naming the op that disagrees."""

    def save(self, path: Path, *, replace: bool = True, about: Mapping[str, str] = {}) -> None:
        """Write the model in the host's own format (``model.pt2``, ``model.onnx``), whole or not at all. Raises
        OutputError, also for a file that is there unless ``replace``. ``about``: what the file says of how it was
        made, beside what it says already."""

    def deployed(self, path: Path) -> Any:
        """The model in a file that ``save`` wrote, as its users call it: an nn.Module in eval mode, an
        onnxruntime.InferenceSession."""

    def save_onnx(self, path: Path, *, about: Mapping[str, str] = {}) -> None:
        """Write the model as an ONNX file, its names and open sizes as they are. Raises ModelError where ONNX
        cannot express it."""


def as_real(array: Array) -> Array:
    """Complex numbers as pairs of real ones, along a new last axis; what is real stays as it is."""
    if array.dtype.kind != "c":
        return array
    return np.stack([array.real, array.imag], -1)


def as_stored(array: Array, dtype: str) -> Array:
    """What ``Host.parameter`` gives of a parameter of that dtype, in as few bytes as the model has it."""
    return array.astype(HALVES[dtype]) if dtype in HALVES else array


def has_floats(array: Array) -> bool:
    """Whether it is of floating point numbers, of half precision too; numpy knows bfloat16 as bytes."""
    return array.dtype.kind == "f" or array.dtype in HALVES.values()


def random_array(rng: np.random.Generator, shape: Sequence[int], dtype: str) -> Array:
    """Example data of a dtype: normal floats, small non-negative integers, coin flips."""
    if dtype == "bool":
        return rng.random(tuple(shape)) < 0.5
    if dtype.startswith(("int", "uint")):
        return rng.integers(0, 2, tuple(shape)).astype(dtype)
    try:
        return rng.standard_normal(tuple(shape)).astype(dtype)
    except TypeError as error:
        raise ModelError(
            f"of {dtype} no example input can be made", "let the model take float32 and cast it"
        ) from error


def beside(weight: str, name: str) -> str:
    """What a parameter that comes beside a ``weight`` is called: `x.bias` beside `x.weight`."""
    stem, dot, leaf = weight.rpartition(".")
    return f"{stem}.{name}" if dot and leaf == "weight" else f"{weight}_{name}"
