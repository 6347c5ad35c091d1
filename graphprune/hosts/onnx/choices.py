"""Which branch of an ``If`` runs, as far as that is known, and whether both can be looked into.

A condition is known where it is computed from constants, from a value that the caller gave of an input, or from sizes
that are not open. Its branch is written in its place. Of any other ``If`` both branches are computed side by side to
learn their shapes, where they can be; else it stays closed, and what is in it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...errors import ShapeError
from ...ir.host import Array
from ..example import Given
from .control_flow import (
    Closed,
    flat,
    graphs_of,
    key,
    known_conditions,
    name_apart,
    nodes_of,
    opens,
    shut,
    take,
    why_not_run,
)
from .functions import without_functions
from .inputs import holes
from .loops import is_loop, why_unlike
from .run import Session
from .shape_probe import Seen, Watcher
from .size_flow import Flow, Sizes

_ROUNDS = 64  # of choices that wait for one another


def opened(model: ir.Model) -> tuple[ir.Model, tuple[str, ...]]:
    """The model as it is read: without functions of its own, every name there once; and what to say of it."""
    notes = []
    nodes = [node for graph in graphs_of(model.graph) for node in graph]
    called = {node.op_type for node in nodes if node.op_identifier() in model.functions}
    if called:
        notes.append(f"functions of the model are written out where they are called: {_listed(sorted(called))}")
        model = without_functions(model)
    if len(graphs_of(model.graph)) > 1:
        model = model.clone()
        name_apart(model)
    return model, tuple(notes)


def take_known(model: ir.Model, start: Given) -> tuple[str, ...]:
    """Write branches in the place of every ``If`` whose condition depends on constants or on inputs of one element
    that are given (in place); what to say of it."""
    flags = {hole.name: (_flag(start, hole.name), hole.dtype) for hole in holes(model)}
    values = {name: np.asarray(flag, dtype) for name, (flag, dtype) in flags.items() if flag is not None}
    notes: dict[str, None] = {}
    for _ in range(_ROUNDS):
        known = known_conditions(model, values)
        if not known:
            break
        at = {key(node): node for node in nodes_of(model.graph)}
        conditions = {name: str(value.name) for name in known if (value := at[name].inputs[0]) is not None}
        wanted = sorted({*conditions.values()} - set(values))
        made: dict[str, Array] = dict(values)
        if wanted:
            session = Session(flat(model, shut(model)), wanted, known=sorted(values))
            made.update(zip(session.outputs, session.run(values), strict=True))
        choices = {name: bool(np.asarray(made[condition]).ravel()[0]) for name, condition in conditions.items()}
        for name, inputs in known.items():
            said = ", ".join(f"`{one}` = {values[one].ravel()[0]}" for one in sorted(inputs))
            what = f"{at[name].name or name} (If): its branch for {said} stands in its place"
            notes.update({f"{what}; the model is right for no other value": None} if inputs else {})
        take(model, choices)
    return tuple(notes)


def _flag(start: Given, name: str) -> Array | None:
    """The value of an input that is a flag or a number: of one element, and whole or a scalar."""
    item = start.get(name)
    if item is None or isinstance(item, tuple) or item.size != 1:
        return None
    return item if item.ndim == 0 or item.dtype.kind in "biu" else None


@dataclass(frozen=True)
class Look:
    """What running a model showed: which of its subgraphs stay closed, and why; shapes and sizes; the inputs it ran
    on; what to say of it."""

    closed: Closed
    seen: Seen
    feed: Mapping[str, Array]
    notes: tuple[str, ...]


def look(model: ir.Model, running: Callable[[], ir.Model], starts: Sequence[Given], closed: Closed | None) -> Look:
    """Run a model, from the first of ``starts`` that it takes. Where it is not known yet (None) which of its ``If``
    nodes and loops stay closed, that is found, and branches that sizes choose are written in their places (in place).
    ``running``: the model as ONNX Runtime runs it. Raises ShapeError where it does not."""
    settled = closed is not None
    closed = shut(model) if closed is None else closed
    while True:
        flow = Flow(model, closed)
        try:
            watcher = Watcher(flat(running(), closed), flow.to_watch(), starts)
            seen = watcher.see()
        except ShapeError:
            more = {} if settled else _not_both(model, running, starts, closed)
            if not more:
                raise
            closed = {**closed, **more}
            continue
        starts = (watcher.first_feed,)
        unlike = {} if settled else _unlike(flow, seen)
        if unlike:
            closed = {**closed, **unlike}
            continue
        choices = {} if settled else Sizes(flow, seen).decided()
        if not choices:
            return Look(closed, seen, watcher.first_feed, () if settled else tuple(_counted(flow)))
        take(model, choices)


def _not_both(
    model: ir.Model, running: Callable[[], ir.Model], starts: Sequence[Given], closed: Closed
) -> dict[str, str]:
    """The outermost ``If`` nodes whose branches do not both run on what the model itself runs on, and loops of which
    no iteration does by itself; all of them where each alone does. Raises ShapeError where the model does not run."""
    outermost = {key(node): why_not_run(model, node) for node in model.graph if opens(node, closed)}
    start = Watcher(running(), (), starts).start() if outermost else {}
    failing = []
    for name in outermost:
        others = {**closed, **{other: why for other, why in outermost.items() if other != name}}
        try:
            Watcher(flat(running(), others), (), [start]).start()
        except ShapeError:
            failing.append(name)
    return {name: outermost[name] for name in failing or outermost}


def _unlike(flow: Flow, seen: Seen) -> dict[str, str]:
    """The loops of which one iteration does not stand for all."""
    loops = [node for node, begins in flow.order if begins]
    found = {key(node): why_unlike(node, seen.shapes) for node in loops}
    return {name: why for name, why in found.items() if why is not None}


def _counted(flow: Flow) -> Iterator[str]:
    """How what loops compute counts."""
    for node in flow.nodes:
        if is_loop(node) and flow.weighs(node):
            many = (
                "once in MACs and latencies, and data show one iteration of it" if flow.opened(node) else "for nothing"
            )
            yield f"{node.name or key(node)} ({node.op_type}): what is in its body counts {many}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
