"""Vocabulary: tokens that go, with their rows of the embedding and of the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ..coupling.vocabulary import Vocabulary as Found
from ..coupling.vocabulary import vocabulary
from ..errors import RecipeError
from ..ir.document import Entry
from ..ir.host import Array, Host
from ..ir.program import Edit, Parameters, Program

LOWEST = "-inf"


@dataclass(frozen=True)
class Vocabulary(Edit):
    """The tokens ``keep``, in order, stay; any other is read as the token ``unknown``, and what the head gives for it
    is the constant ``fill``, one number or one for each token that goes. Inputs and outputs are as they were."""

    kind = "vocabulary"
    drops = True
    fitted = True

    embedding: str
    keep: tuple[int, ...]
    unknown: int
    fill: float | Array

    @property
    def opens(self) -> bool:
        return True

    def apply(self, program: Program) -> Program:
        """Lookups read what a table makes of numbers of tokens; behind the head its outputs are put in their places
        among the constants."""
        found, host = self._found(program), program.host.copy()
        keep = np.array(self.keep, np.intp)
        self._map(host, found, self.renumbered(found.size))
        places = np.zeros(found.size, np.int64)
        places[keep] = np.arange(len(keep))
        self._fill(host, found, program, places)
        for name, axis in found.axes:
            host.take(name, axis, keep)
        host.shapes()
        return program.rewrite(host, self)

    def masked(self, program: Program, cut: Parameters) -> Program:
        """All rows stay; numbers of tokens that go are the unknown's, and behind the head are the constants."""
        found, host = self._found(program), program.host.copy()
        table = np.full(found.size, self.unknown, np.int64)
        table[list(self.keep)] = self.keep
        self._map(host, found, table)
        self._fill(host, found, program, None)
        return program.rewrite(host, self)

    def renumbered(self, size: int) -> Array:
        """By token the number that it has among those that stay, int64; of those that go the unknown's."""
        table = np.full(size, self.keep.index(self.unknown), np.int64)
        table[list(self.keep)] = np.arange(len(self.keep))
        return table

    def _map(self, host: Host, found: Found, table: Array) -> None:
        made = ""  # one table, before the first that reads it
        for op in found.lookups:
            ids = op.inputs[1]
            assert ids is not None
            made = made or host.insert(op, "constant", [ids.name], value=table)
            host.connect(op, 1, host.insert(op, "gather", [made, ids.name], axis=0))

    def _fill(self, host: Host, found: Found, program: Program, places: Array | None) -> None:
        ops, stays = program.graph.ops, np.zeros(found.size, bool)
        stays[list(self.keep)] = True
        values = np.zeros(found.size)
        values[~stays] = self.fill
        for head in found.heads:
            out, at = head.out, ops.index(head.op)
            anchor = ops[at + 1] if at + 1 < len(ops) else None
            x = out.name
            if places is not None:
                x = host.insert(
                    anchor, "gather", [x, host.insert(anchor, "constant", [x], value=places)], axis=len(out.dims) - 1
                )
            kept, fill = (host.insert(anchor, "constant", [out.name], value=value) for value in (stays, values))
            made = host.insert(anchor, "where", [kept, x, fill])
            for op in program.graph.users(out):
                for operand, value in enumerate(op.inputs):
                    if value is out:
                        host.connect(op, operand, made)
            for number, value in enumerate(program.graph.outputs):
                if value is out:
                    host.connect_output(number, made)

    def _found(self, program: Program) -> Found:
        found = vocabulary(program.graph, self.embedding)
        gone = found.size - len(self.keep)
        if self.keep[-1] >= found.size or (isinstance(self.fill, np.ndarray) and self.fill.shape != (gone,)):
            raise RecipeError(f"the plan's tokens are not those of the {found.size} here", "is it the same model?")
        return found

    def content(self) -> dict[str, Any]:
        said: dict[str, Any] = {"embedding": self.embedding, "keep": list(self.keep), "unknown": self.unknown}
        if isinstance(self.fill, np.ndarray):
            return {**said, "weights": {"fill": self.fill}}
        return {**said, "fill": LOWEST if self.fill == -np.inf else self.fill}

    @classmethod
    def read(cls, entry: Entry) -> Self:
        parts = entry.table(("embedding", "keep", "unknown"), ("fill", "weights"))
        if ("fill" in parts) == ("weights" in parts):
            raise entry.error("`fill` is a number, or among the weights")
        keep, unknown = parts["keep"].places(), parts["unknown"].whole()
        if list(keep) != sorted(keep) or unknown not in keep:
            raise parts["keep"].error("tokens that stay are in order, and the unknown one is among them")
        fill: float | Array
        if "weights" in parts:
            fill = parts["weights"].table(("fill",))["fill"].array()
        else:
            fill = -np.inf if parts["fill"].value == LOWEST else parts["fill"].number()
        return cls(parts["embedding"].text(), keep, unknown, fill)
