"""The steps of an LSTM layer in one kernel.

TVM's frontends write every step out: ten kernels each, whose recurrent product makes one gate after the other and goes
through memory before the gates are joined. Here a step goes over blocks of hidden units, a vector of them at a time.
The four gates of a block are computed together, in registers, from weights stored in the order in which they are read,
and become the block's new state before the next one begins. Threads share the blocks of a step that is long enough to
wake them for, each always the same ones, whose weights stay in its cache; what a block becomes does not depend on how
many there are.

TVM is an extra and slow to import, so every import of it is inside a function.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from ...ir.host import Array
from .stack import SCOPE

GATES = 4  # input, forget, cell, output
SHARED = 300_000  # multiply-adds of a step, 3 us: a thread is woken in 0.5, or 1.7 where caches are not shared
READ = 2  # multiply-adds that take as long as reading their weight from the second cache does


@dataclass(frozen=True)
class Steps:
    """One direction of a layer, and how it is cut. ``lanes``: floats in a vector; ``sums``: how many a register tile
    may hold of each gate; ``threads``: that share a step, 0 where TVM's runtime says how many there are."""

    steps: int
    batch: int
    hidden: int
    backward: bool
    lanes: int
    sums: int
    threads: int = 1

    @property
    def blocks(self) -> int:
        return -(-self.hidden // self.lanes)

    @property
    def wide(self) -> int:
        """Hidden units in whole blocks. Those that fill up have no weights: their state stays zero."""
        return self.blocks * self.lanes

    @property
    def shared(self) -> bool:
        """Whether a step is long enough to wake threads for."""
        return self.threads != 1 and GATES * self.hidden**2 * max(self.batch, READ) >= SHARED

    @property
    def rows(self) -> int:
        """Of the batch, computed together: weights are loaded once for all of them."""
        tiles = -(-self.batch // self.sums)
        return -(-self.batch // tiles)

    @property
    def parts(self) -> int:
        """Sums that a dot product is cut into where rows are few: one would wait for its last addition."""
        return 2 if 2 * self.rows <= self.sums else 1

    @property
    def deep(self) -> int:
        """Hidden units read, in whole parts."""
        return -(-self.hidden // self.parts) * self.parts

    def input_weights(self, weight: Array) -> Array:
        """From [gates x hidden, inputs] to [inputs, blocks x gates x lanes], so that one product makes the inputs of
        all steps; a bias the same."""
        whole = np.zeros((GATES, self.wide, *weight.shape[1:]), np.float32)
        whole[:, : self.hidden] = weight.reshape(GATES, self.hidden, *weight.shape[1:])
        blocks = whole.reshape(GATES, self.blocks, self.lanes, *weight.shape[1:]).swapaxes(0, 1)
        return np.ascontiguousarray(blocks.reshape(-1, *weight.shape[1:]).T)

    def recurrent_weights(self, weight: Array) -> Array:
        """From [gates x hidden, hidden] to [blocks, deep, gates, lanes]."""
        whole = np.zeros((GATES, self.wide, self.deep), np.float32)
        whole[:, : self.hidden, : self.hidden] = weight.reshape(GATES, self.hidden, self.hidden)
        blocks = whole.reshape(GATES, self.blocks, self.lanes, self.deep)
        return np.ascontiguousarray(blocks.transpose(1, 3, 0, 2))

    def function(self) -> Any:
        """The kernel: of inputs [steps, batch, blocks, gates, lanes], two states [batch, hidden] and recurrent weights
        the states of all steps [steps, batch, hidden] and both last ones."""
        from tvm.script.ir_builder import IRBuilder
        from tvm.tirx.script.builder import ir as T

        states = (self.batch, self.hidden)
        shapes = {
            "inputs": (self.steps, self.batch, self.blocks, GATES, self.lanes),
            "first": states,
            "first_cell": states,
            "weight": (self.blocks, self.deep, GATES, self.lanes),
            "out": (self.steps, *states),
            "last": states,
            "last_cell": states,
        }
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
            given = {name: T.arg(name, T.buffer(shape, layout=None)) for name, shape in shapes.items()}
            with T.sblock("root"), T.sblock("lstm_steps"):  # a function without a block in it TVM's passes refuse
                _Body(self, given).write()
        return builder.get()


class _Body:
    """The statements of the kernel. The hidden state is there twice: one is read, the other written, in turns."""

    def __init__(self, sizes: Steps, given: Mapping[str, Any]) -> None:
        from tvm.tirx.script.builder import ir as T

        self.sizes, self.given = sizes, given
        self.hidden = T.sblock_alloc_buffer((2, sizes.batch, sizes.wide), layout=None)
        self.cell = T.sblock_alloc_buffer((sizes.batch, sizes.wide), layout=None)
        self.sums = T.sblock_alloc_buffer((sizes.rows, sizes.parts, GATES, sizes.lanes), scope=SCOPE, layout=None)

    def write(self) -> None:
        from tvm.tirx.script.builder import ir as T

        sizes, given = self.sizes, self.given
        self._begin()
        tasks = self._tasks()
        with T.serial(0, sizes.steps) as step:
            at = sizes.steps - 1 - step if sizes.backward else step
            with (T.parallel if sizes.shared else T.serial)(0, tasks) as task:
                first, end = (k * sizes.blocks // tasks for k in (task, task + 1))
                with T.serial(0, end - first) as turn:
                    self._block(step, at, first + _to_and_fro(step, turn, end - first))
            self._copy(self.hidden, [(step + 1) % 2], given["out"], [at])
        self._copy(self.hidden, [sizes.steps % 2], given["last"], [])
        self._copy(self.cell, [], given["last_cell"], [])

    def _tasks(self) -> Any:
        """How many runs of blocks a step is: one for each thread."""
        from tvm.tirx.script.builder import ir as T

        if not self.sizes.shared:
            return 1
        return self.sizes.threads or T.bind(T.call_packed("runtime.NumThreads"))

    def _begin(self) -> None:
        """The first states, zero behind the last unit."""
        from tvm.tirx.script.builder import ir as T

        if self.sizes.wide > self.sizes.hidden:
            for buffer, at in ((self.hidden, [0]), (self.hidden, [1]), (self.cell, [])):
                with T.grid(self.sizes.batch, self.sizes.wide) as (row, unit):
                    T.buffer_store(buffer, T.float32(0), [*at, row, unit])
        self._copy(self.given["first"], [], self.hidden, [0])
        self._copy(self.given["first_cell"], [], self.cell, [])

    def _copy(self, source: Any, at: list[Any], to: Any, there: list[Any]) -> None:
        from tvm.tirx.script.builder import ir as T

        with T.grid(self.sizes.batch, self.sizes.hidden) as (row, unit):
            T.buffer_store(to, source[(*at, row, unit)], [*there, row, unit])

    def _block(self, step: Any, at: Any, block: Any) -> None:
        """One block of hidden units, for all rows of the batch. ``at``: which of the inputs is the step's."""
        from tvm.tirx.script.builder import ir as T

        rows, (whole, rest) = self.sizes.rows, divmod(self.sizes.batch, self.sizes.rows)
        with T.serial(0, whole) as tile:
            self._tile(step, at, block, [tile * rows + k for k in range(rows)])
        if rest:
            self._tile(step, at, block, [whole * rows + k for k in range(rest)])

    def _tile(self, step: Any, at: Any, block: Any, rows: list[Any]) -> None:
        from tvm.tirx.script.builder import ir as T

        sums, parts, weight = self.sums, self.sizes.parts, self.given["weight"]
        tile = [(k, row, gate) for k, row in enumerate(rows) for gate in range(GATES)]
        for part in range(parts):
            for k, row, gate in tile:
                with self._lanes() as lane:
                    begun = T.float32(0) if part else self.given["inputs"][at, row, block, gate, lane]
                    T.buffer_store(sums, begun, [k, part, gate, lane])
        length = self.sizes.deep // parts
        with T.serial(0, length) as turn:
            for part in range(parts):
                # One row waits for weights alone: its sums read them in two places, both of which caches fetch ahead.
                unit = part * length + turn if self.sizes.rows == 1 else turn * parts + part
                for k, row, gate in tile:
                    with self._lanes() as lane:
                        more = self.hidden[step % 2, row, unit] * weight[block, unit, gate, lane]
                        T.buffer_store(sums, sums[k, part, gate, lane] + more, [k, part, gate, lane])
        for k, row in enumerate(rows):
            self._states(step, block, k, row)

    def _states(self, step: Any, block: Any, k: int, row: Any) -> None:
        """Both states of a block after a step, from the sums of its gates."""
        from tvm.tirx import sigmoid, tanh
        from tvm.tirx.script.builder import ir as T

        def gate(number: int) -> Any:
            return reduce(add, (self.sums[k, part, number, lane] for part in range(self.sizes.parts)))

        with self._lanes() as lane:
            unit = block * self.sizes.lanes + lane
            kept, new = sigmoid(gate(1)) * self.cell[row, unit], sigmoid(gate(0)) * tanh(gate(2))
            T.buffer_store(self.cell, kept + new, [row, unit])
        with self._lanes() as lane:
            unit = block * self.sizes.lanes + lane
            T.buffer_store(self.hidden, sigmoid(gate(3)) * tanh(self.cell[row, unit]), [(step + 1) % 2, row, unit])

    def _lanes(self) -> Any:
        from tvm.tirx.script.builder import ir as T

        return T.vectorized(0, self.sizes.lanes)


def _to_and_fro(step: Any, turn: Any, count: Any) -> Any:
    """Blocks from either end in turns: what the cache still has of the last step's weights is read first."""
    from tvm import tirx

    return tirx.Select(tirx.EQ(step % 2, 0), turn, count - 1 - turn)
