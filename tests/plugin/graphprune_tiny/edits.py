"""A pass that changes weights, and the edit by which a plan does it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from graphprune.ir.document import Entry
from graphprune.ir.program import Edit, Parameters, Program
from graphprune.pipeline.base import Pass


@dataclass(frozen=True)
class Negated(Edit):
    """A parameter with the other sign."""

    kind = "negated"

    parameter: str

    def apply(self, program: Program) -> Program:
        host = program.host.copy()
        host.set_parameter(self.parameter, -host.parameter(self.parameter))
        return program.rewrite(host, self)

    def masked(self, program: Program, cut: Parameters) -> Program:
        return self.apply(program)

    def content(self) -> dict[str, Any]:
        return {"parameter": self.parameter}

    @classmethod
    def read(cls, entry: Entry) -> Self:
        return cls(entry.table(("parameter",))["parameter"].text())


@dataclass(frozen=True)
class Negate(Pass):
    """Turn the sign of one parameter."""

    name = "negate"
    rewrites = True

    parameter: str = "out.bias"

    def run(self, program: Program) -> Program:
        return Negated(self.parameter).apply(program)
