"""Bypass: residual branches that went, each add being its other operand from then on."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any, Self

from ..coupling.branches import silence, silent
from ..errors import RecipeError
from ..ir.document import Entry
from ..ir.graph import Branch
from ..ir.liveness import dead
from ..ir.program import Edit, Parameters, Program


@dataclass(frozen=True)
class Bypass(Edit):
    """Branches that are gone, with all that only they were for."""

    kind = "bypass"

    branches: tuple[Branch, ...]

    def apply(self, program: Program) -> Program:
        self._fits(program)
        host, gone = program.host.copy(), dead(program.graph, self.branches)
        ops = {op.name: op for op in program.graph.ops}
        for branch in self.branches:
            if branch.op not in gone:  # else it is part of another that goes
                host.remove(ops[branch.op], 1 - branch.operand)
        host.own()
        return program.rewrite(host, self)

    def masked(self, program: Program, cut: Parameters) -> Program:
        """The last that each branch is multiplied by is zero: it adds nothing."""
        self._fits(program)
        host = program.host.copy()
        silence(program.graph, host, self.branches)
        return program.rewrite(host, self)

    def _fits(self, program: Program) -> None:
        """Whether the model has the branches. Raises RecipeError."""
        for branch in self.branches:
            if not silent(program.graph, branch):
                raise RecipeError(
                    f"the plan leaves out operand {branch.operand} of `{branch.op}`, which is no branch of this model",
                    "is it the same model?",
                )

    def content(self) -> dict[str, Any]:
        return {"branches": [list(astuple(branch)) for branch in self.branches]}

    @classmethod
    def read(cls, entry: Entry) -> Self:
        branches: dict[Branch, None] = {}
        for found in entry.table(("branches",))["branches"].entries():
            parts = found.entries()
            if len(parts) != 2:
                raise found.unlike("a branch: op, operand")
            branch = Branch(parts[0].text(), parts[1].whole(0, 1))
            if branch in branches:
                raise found.error("this branch is there already")
            branches[branch] = None
        return cls(tuple(branches))
