"""The program after a pass, as text: what ``graphprune compile --print-after`` shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import RecipeError, nearest
from ..ir.program import Program
from ..pipeline.base import Pass, passes
from .facts import summary
from .units import count, duration


@dataclass(frozen=True)
class PrintAfter:
    """An Instrument that shows the graph and what is known of it after the passes ``names`` (``all``: after
    each). Raises RecipeError for a pass that there is not."""

    names: Sequence[str]
    show: Callable[[str], None]

    def __post_init__(self) -> None:
        for name in self.names:
            if name != "all" and name not in passes():
                raise RecipeError(f"unknown pass `{name}` to print after", nearest(name, [*passes(), "all"]))

    def before(self, step: Pass, program: Program) -> None:
        pass

    def after(self, step: Pass, program: Program, seconds: float) -> None:
        if step.name in self.names or "all" in self.names:
            self.show(text(step, program, seconds))


def text(step: Pass, program: Program, seconds: float) -> str:
    """A line with the pass and its time, the facts as comments, the graph."""
    size = program.history[-1].params
    head = f"after {step.text()}: {duration(1e3 * seconds)}, {len(program.graph.ops)} ops, {count(size)} parameters"
    return "\n".join([f"# {line}" for line in (head, *summary(program))] + [program.graph.text(), ""])
