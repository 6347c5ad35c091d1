"""What compensation cannot fit: said, not passed over."""

from __future__ import annotations

from ..coupling.contractions import contractions, counted
from ..coupling.groups import everything
from ..coupling.relate import role
from ..ir.facts import Keep
from ..ir.program import Program
from ..pipeline.edits import original

SHOWN = 3


def left_out(program: Program, keep: Keep, weights: bool) -> str:
    """A note of the ops that read what was cut with weights of their own and are no Contraction (einsum,
    weights on the left, transposed convolutions); and, where ``weights`` are fitted, of those whose weight cannot be
    (it is shared, or computed from what is stored): their means are met at most; and of those for as many rows as data
    says, which need not be those of the original. Empty where there is none."""
    graph = original(program).lift()
    index = keep.index(everything(graph))
    own = {found.op.name: found.own for found in contractions(graph)}
    said = counted(program.graph)
    rows = [found.op.where for found in contractions(program.graph) if found.out.name in said]
    left, none, means = {op.name for op in program.graph.ops}, list[str](), list[str]()
    for op in graph.ops:
        if op.name not in left or op.where in rows or (op.name in own and (own[op.name] or not weights)):
            continue
        relation = graph.relations[op.name]
        cut = (name for name, dim in relation.dims.items() if index.touches(dim))
        if any(role(op, relation, name) == "reader" for name in cut):
            (means if op.name in own else none).append(op.where)
    notes = {
        "`compensate` leaves as they are, for it cannot fit them": none,
        "`compensate` fits no weight that is shared or computed": means,
        "`compensate` fits no layer whose rows data chooses": rows,
    }
    return "; ".join(f"{text}: {_some(names)}" for text, names in notes.items() if names)


def _some(names: list[str]) -> str:
    names = [*dict.fromkeys(names)]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
