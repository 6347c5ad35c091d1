"""The user's own class at the new widths: what is written for it, and making it here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import GraphpruneError, ModelError
from ..ir.program import Program


def write_widths(folder: Path, program: Program, values: bool = True) -> str | None:
    """Write ``widths.json``, ``weights.pt`` (a state dict; with ``values``) and ``rebuild.py``, with which plain torch
    makes the user's own class at the new widths. Returns why nothing was written where the class has no place for what
    was made."""
    import torch

    from ..hosts.torch import rebuild
    from ..hosts.torch.widths import widths
    from ..hosts.torch.written import written

    try:
        found = widths(program)
    except ModelError as error:
        return error.message
    (folder / "widths.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if values:
        with written(folder / "weights.pt") as file:
            torch.save(weights(program, found), file)
    (folder / "rebuild.py").write_text(Path(rebuild.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    return None


def rebuilt(program: Program, module: Any, sizes: Any = None) -> Any:
    """``module`` at the widths of ``program`` and with its weights, proven to compute the same on the example inputs.
    ``sizes``: those of widths.json, where the program has no source to compare with. Raises ModelError."""
    from ..hosts.torch.configuration import configure
    from ..hosts.torch.pretrained import is_pretrained
    from ..hosts.torch.widths import widths
    from ..train.inplace import compare

    filled(program, module, widths(program) if sizes is None else sizes)
    if is_pretrained(module):
        tuple(configure(module))
    compare(module, program.origin, program, "rebuilt")
    return module


def filled(program: Program, module: Any, sizes: Any, assign: bool = False) -> Any:
    """``module`` at the sizes of widths.json and with the weights of ``program``, copies or (``assign``) the same
    tensors. Raises ModelError."""
    from ..hosts.torch.rebuild import resized

    try:
        resized(module, sizes).load_state_dict(weights(program, sizes), assign=assign)
    except GraphpruneError:
        raise
    except Exception as error:  # whatever the class's own attributes raise
        raise ModelError(
            f"{type(module).__name__} cannot be rebuilt: {' '.join(str(error).split())[:300]}",
            "give a fresh instance of the class that was compiled, made with the same arguments",
        ) from error
    return module


def weights(program: Program, sizes: Any) -> dict[str, Any]:
    """What the rebuilt class holds: nothing in what became an identity."""
    state = program.model.state_dict()
    return {name: tensor for name, tensor in state.items() if name.rpartition(".")[0] not in sizes["identity"]}
