"""Rules of layers that read what they made at the step before: LSTM, GRU and RNN, whole or step by step.

The hidden size h is one axis: of all gates, of biases, of states in and out, and, as h', of the inputs of the
recurrent weight, which reads the state. It is the same of all layers and directions that one op has, as the op
takes one size for all.
"""

from __future__ import annotations

from ..ir.graph import Op
from .registry import rule
from .wording import rank_of


@rule("recurrent")
def recurrent(op: Op) -> str:
    """(x, W, R, B, lengths, h, c, P) as ONNX has them, directions in an axis of their own: ``outputs`` says
    which there are of y [time, direction, batch, h] and the last states. ``gates``; ``time``: which axis of x
    that is."""
    many = op.attrs["gates"]
    gates, biases = f"(_:{many} h)", f"(_:{2 * many} h)"
    batched, state = ("n _ i", "n _ h") if op.attrs["time"] else ("_ n i", "_ n h")
    y = "n _ _ h" if op.attrs["time"] else "_ _ n h"
    ins = f"{batched}, _ {gates} i, _ {gates} h', _ {biases}, n, {state}, {state}, _ (_:3 h)"
    outs = [(y, state, state)[k] for k in op.attrs["outputs"]]
    return f"{ins} -> {', '.join(outs)} | hidden_size=h"


@rule("recurrent_layers")
def recurrent_layers(op: Op) -> str:
    """(x, states..., weights...) as torch has them: one or two ``states`` [layers x directions, batch, h], and
    for each of ``layers`` and ``directions`` an input and a recurrent weight, ``biases`` two vectors or none,
    and where ``projected`` a weight that makes the state p which is read of h. ``gates``; ``time``: which axis
    of x that is, None where steps are packed one after another."""
    gates, ways = f"(_:{op.attrs['gates']} h)", op.attrs["directions"]
    seen = "p" if op.attrs["projected"] else "h"
    lead = {None: "_", 0: "_ n", 1: "n _"}[op.attrs["time"]] if rank_of(op.inputs[0]) == 3 else "_"
    batch = "_ n" if rank_of(op.inputs[1]) == 3 else "_"
    states = [f"{batch} {seen}", f"{batch} h"][: op.attrs["states"]]
    ins = [f"{lead} i", *states]
    for number in range(op.attrs["layers"] * ways):
        inputs = "i" if number < ways else _joined(f"{seen}'", ways)
        ins += [f"{gates} {inputs}", f"{gates} {seen}'", *[gates] * op.attrs["biases"]]
        ins += [f"{seen} h'"] * op.attrs["projected"]
    return f"{', '.join(ins)} -> {', '.join([f'{lead} {_joined(seen, ways)}', *states])}"


@rule("recurrent_cell")
def recurrent_cell(op: Op) -> str:
    """(x, states..., input weight, recurrent weight, biases...): one step, to one or two ``states``. ``gates``."""
    gates, lead = f"(_:{op.attrs['gates']} h)", "n " * (rank_of(op.inputs[0]) - 1)
    states = [f"{lead}h"] * op.attrs["states"]
    return f"{lead}i, {', '.join(states)}, {gates} i, {gates} h', {gates}, {gates} -> {', '.join(states)}"


def _joined(name: str, ways: int) -> str:
    return f"(_:{ways} {name})" if ways > 1 else name
