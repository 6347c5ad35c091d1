"""The user's own class at the new widths: what is written for it, and making it here."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from ..errors import GraphpruneError, ModelError
from ..ir.program import Program
from ..report.next_steps import UNWRITTEN


def write_widths(folder: Path, program: Program, values: bool = True) -> str | None:
    """Write ``widths.json``, ``weights.pt`` (a state dict; with ``values``) and ``rebuild.py``, with which plain torch
    makes the user's own class at the new widths. Returns why nothing was written where the class has no place for what
    was made or, tried on the module that was given, does not compute it."""
    import torch

    from ..hosts.torch import rebuild
    from ..hosts.torch.widths import of_the_whole, widths
    from ..hosts.torch.written import written

    try:
        found = widths(program)
        if values and (module := _as_given(program)) is not None:
            rebuilt(program, module, found, assign=True)
    except ModelError as error:
        return error.message
    (folder / "widths.json").write_text(json.dumps(of_the_whole(program, found), indent=1) + "\n", encoding="utf-8")
    if values:
        with written(folder / "weights.pt") as file:
            torch.save(weights(program, found), file)
    (folder / "rebuild.py").write_text(Path(rebuild.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    return None


def why_not(folder: Path) -> str:
    """What the report of a folder without widths.json says of that."""
    report = folder / "report.json"
    notes = json.loads(report.read_text(encoding="utf-8")).get("notes", ()) if report.is_file() else ()
    return next((note for note in notes if UNWRITTEN in note), "")


def _as_given(program: Program) -> Any:
    """A twin of the module that was given; None where there is none, it has none, it is not as it was, or what it
    computes is no two times the same."""
    from ..train.unread import tensors

    given = getattr(program.origin, "module", None)
    if given is None or program.graph.draws:
        return None
    then, now = (
        {name: (tensor.shape, tensor.dtype, tensor.device) for name, tensor in tensors(module)}
        for module in (program.origin.model, given)
    )
    if any(then[name] != now[name] for name in then.keys() & now.keys()):
        return None  # cut in place since, or moved
    try:
        return twin(given)
    except Exception:  # a class may hold what cannot be copied, a lock
        return None


def twin(module: Any) -> Any:
    """A copy on the same tensors, but for those that removing a parametrization writes into."""
    from ..train.unread import tensors

    shared = [tensor for name, tensor in tensors(module) if "parametrizations" not in name.split(".")]
    shared += [value for part in module.modules() for value in vars(part).values() if hasattr(value, "data_ptr")]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in shared})


def rebuilt(program: Program, module: Any, sizes: Any = None, assign: bool = False) -> Any:
    """``module`` at the widths of ``program`` and with its weights, proven to compute the same on the example inputs.
    ``sizes``: those of widths.json, where the program has no source to compare with; ``assign`` as for ``filled``.
    Raises ModelError."""
    from ..hosts.torch.configuration import networks
    from ..hosts.torch.export import check_loaded
    from ..hosts.torch.own_configuration import configure
    from ..hosts.torch.widths import keeps, widths
    from ..train.inplace import compare

    if not assign:
        check_loaded(module)  # before it is changed
    filled(program, module, widths(program) if sizes is None else sizes, assign)
    for prefix, network in networks(module):
        tuple(configure(network, keeps(program, network.state_dict(), prefix)))
    compare(module, program.origin, program, "rebuilt")
    return module


def filled(program: Program, module: Any, sizes: Any, assign: bool = False) -> Any:
    """``module`` at the sizes of widths.json and with the weights of ``program``, copies or (``assign``) the same
    tensors. Raises ModelError."""
    from ..hosts.torch.rebuild import resized

    fresh = "give a fresh instance of the class that was compiled, made with the same arguments"
    literal = (
        "make it one (`self.eps`), `group{freeze=...}` the hidden size, or keep the network, torch.save(program.model)"
    )
    try:
        resized(module, sizes).load_state_dict(weights(program, sizes), assign=assign)
    except GraphpruneError:
        raise
    except Exception as error:  # whatever the class's own attributes raise
        raise ModelError(
            f"{type(module).__name__} cannot be rebuilt: {' '.join(str(error).split())[:300]}",
            literal if isinstance(error, ValueError) else fresh,
        ) from error
    return module


def weights(program: Program, sizes: Any) -> dict[str, Any]:
    """What the rebuilt class holds: nothing in what became an identity."""
    state = program.model.state_dict()
    return {name: tensor for name, tensor in state.items() if name.rpartition(".")[0] not in sizes["identity"]}
