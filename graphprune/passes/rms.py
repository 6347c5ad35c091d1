"""rms: LayerNorm as RMSNorm, so that the hidden size below it can be pruned with a proof."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..coupling.streams import Norm, Stream, multiplied, streams, tied, untied
from ..errors import ModelError
from ..ir.host import Host
from ..ir.program import Program
from ..pipeline.base import Pass


@dataclass(frozen=True)
class Rms(Pass):
    """Turn LayerNorms into RMS norms where that is exact: the hidden size below them is a group then."""

    name = "rms"
    rewrites = True
    opens = True

    untie: bool = False  # an embedding whose weight the head has too becomes one of its own: it is larger then

    def run(self, program: Program) -> Program:
        """Where norms alone read a residual stream, what writes it is centred (W less its mean over outputs), which
        LayerNorms do not see; then mean square and variance are one. Their bias goes into the layers that read them,
        which gain one where they have none, and is added where others read them (Jiang et al., Pre-RMSNorm and
        Pre-CRMSNorm Transformers, 2023, section 3; Ashkboos et al., SliceGPT, 2024, section 3.1). A stream that
        something else reads or writes stays, with a note. Raises ModelError where all that have LayerNorms do."""
        host, notes, done = program.host.copy(), list[str](), False
        host = untied(host, "layer_norm") if self.untie else host
        for stream in streams(host.lift()):
            if all(norm.kind != "layer_norm" for norm in stream.norms):
                continue
            why = stream.why or tied(stream, self.name) or _mixed(stream)
            if why:
                notes.append(f"`rms` leaves {stream.norms[0].where if stream.norms else 'a LayerNorm'} as it is: {why}")
                continue
            _rewrite(host, stream)
            done = True
        if not done and not notes:
            return program
        if not done:
            raise ModelError(
                "no LayerNorm can be an RMS norm" + "".join(f"\n    {note}" for note in notes[:5]),
                "those of a residual stream can, which is read by nothing else and written by layers and embeddings",
            )
        host.shapes()
        return program.rewrite(host).note(*notes)


def _mixed(stream: Stream) -> str:
    """An RMS norm sees the mean of what is written, and so does a layer."""
    other = next((norm for norm in stream.norms if norm.kind != "layer_norm"), None)
    if stream.plain:
        return f"{stream.plain[0].op.where} reads it, which is no norm"
    return f"{other.where} reads it too" if other is not None else ""


def _rewrite(host: Host, stream: Stream) -> None:
    size = int(stream.dim.size)
    multiplied(host, stream, np.eye(size) - 1 / size)
    for norm in stream.norms:
        layers = stream.readers[norm.name]
        if norm.bias is not None and layers is not None:
            beta = host.parameter(norm.bias).astype(np.float64).ravel()
            for layer in layers:
                host.add_bias(layer.op, layer.flat_matrix(host)[0] @ beta)
        if norm.within:
            _uncentre(host, norm, keeps_bias=layers is None)
        else:
            host.to_rms_norm(norm.op, keeps_bias=layers is None)


def _uncentre(host: Host, norm: Norm, keeps_bias: bool) -> None:
    """Leave out of a norm that is written out what takes the mean away, of what has none any more."""
    last = norm.within[-1]
    for op in norm.within:
        if op.attrs.get("function") == "sub":
            host.remove(op)
    for op in norm.within:
        if op.attrs.get("function") == "var":
            host.to_mean_square(op)
    if norm.bias is not None and not keeps_bias:
        host.remove(last, stays=next(k for k, value in enumerate(last.inputs) if value in norm.op.outputs))
