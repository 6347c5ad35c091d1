"""What calibration data looks like that a network was hardly trained on: a remark, for nobody knows."""

from __future__ import annotations

import numpy as np

from ..ir.program import Program

FED = 20.0
"""Example inputs within these are no raw pixels."""


def one_sample(program: Program) -> str:
    """A remark where the samples of an input that varies are all one; else nothing."""
    if not program.data:
        return ""
    fixed = getattr(program.data, "fixed", ())
    for value, array in zip(program.graph.inputs, program.data[0], strict=True):
        if value.name not in fixed and array.ndim and len(array) > 1 and (array == array[:1]).all():
            return (
                f"calibration: the {len(array)} samples of `{value.name}` are all the same; what is measured on them "
                "says nothing of others"
            )
    return ""


def raw_pixels(program: Program) -> str:
    """A remark where an input gets whole numbers from 0 to 255, and neither its example does nor the network brings
    them to another scale itself; else nothing."""
    if not program.data:
        return ""
    batch, example = program.data[0], program.host.example()
    for value, array, fed in zip(program.graph.inputs, batch, example, strict=True):
        image = array.ndim == 4 and array.dtype.kind == "f" and {1, 3} & {array.shape[1], array.shape[3]}
        if not image or array.min() < 0 or not 100 < array.max() <= 255 or not np.array_equal(array, np.rint(array)):
            continue
        readers = [op for op in program.graph.ops if value in op.inputs]
        if np.abs(fed).max(initial=0) <= FED and all(op.kind in ("conv", "pad") for op in readers):
            return (
                f"calibration: `{value.name}` gets whole numbers from 0 to {array.max():g}, and its first layer takes "
                "them as they are: networks are mostly trained on normalised pixels; give the data as in training "
                "(of a folder of images --mean and --std say it)"
            )
    return ""
