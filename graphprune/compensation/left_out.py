"""What compensation cannot fit: said, not passed over."""

from __future__ import annotations

from ..coupling.contractions import contractions
from ..coupling.groups import everything
from ..coupling.relate import role
from ..ir.facts import Keep
from ..ir.program import Program
from ..pipeline.edits import original

SHOWN = 3


def left_out(program: Program, keep: Keep) -> str:
    """A note of the ops that read what was cut with weights of their own and are no Contraction (einsum,
    weights on the left, transposed convolutions); empty where there is none."""
    graph = original(program).lift()
    index = keep.index(everything(graph))
    fitted = {found.op.name for found in contractions(graph)}
    left, names = {op.name for op in program.graph.ops}, []
    for op in graph.ops:
        if op.name not in left:
            continue
        relation = graph.relations[op.name]
        cut = (name for name, dim in relation.dims.items() if index.touches(dim))
        if op.name not in fitted and any(role(op, relation, name) == "reader" for name in cut):
            names.append(op.where)
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"`compensate` leaves as they are, for it cannot fit them: {', '.join(names[:SHOWN])}{more}"
