"""Cutting the user's own nn.Module, so that existing training code goes on unchanged.

A GraphModule always computes the right thing; the user's class does where its forward reads sizes from its
tensors, or from the attributes of torch's own layers. So the class is cut, run beside the GraphModule that the
same plan makes, and put back as it was, with the reason, where the two differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ..axes.dim import find, leaves
from ..coupling.groups import everything
from ..errors import ModelError
from ..hosts.torch.configuration import networks
from ..hosts.torch.export import check_loaded, evaluated, unwrapped
from ..hosts.torch.host import TorchHost
from ..hosts.torch.own_configuration import configure
from ..hosts.torch.state import kept
from ..hosts.torch.widths import all_tokens, keeps
from ..ir.graph import Graph
from ..ir.host import Host
from ..ir.program import Plan, Program
from ..pipeline.compare import relative
from ..pipeline.edits import kept as kept_of
from ..pipeline.factoring import Factor
from ..pipeline.replay import apply_plan
from .identity import bypassed, identities, leave_out, refuse_uncounted
from .unread import refuse_unread, tensors, training_error

Keep = Mapping[str, Mapping[int, Tensor]]
"""Parameter -> axis -> the original indices kept."""

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4}


def cut(
    plan: Plan,
    module: nn.Module,
    inputs: Any,
    optimizer: torch.optim.Optimizer | None = None,
    allow_unread: Sequence[str] = (),
    allow_other_weights: bool = False,
) -> Program:
    """Cut ``module`` as ``plan`` says, and every state of ``optimizer`` that is shaped like a parameter
    (momentum, Adam's moments) along with it. Returns the program whose GraphModule it was compared with.

    Parameters become new tensors: what else holds the old ones (DistributedDataParallel, an average of
    weights) is to be made anew. Raises ModelError where the module's forward would be wrong, where it holds
    tensors of a width that is cut and that the traced graph does not read (but for ``allow_unread``), or the
    optimizer has state that cannot be cut; module and optimizer are then as they were.
    """
    if isinstance(module, nn.parallel.DistributedDataParallel):
        raise ModelError(
            "DistributedDataParallel holds on to the parameters it was made with",
            "cut the module inside (`.module`), and wrap it anew",
        )
    module = unwrapped(module)
    check_loaded(module)
    host = TorchHost.export(module, inputs)
    done = apply_plan(plan, host, allow_other_weights=allow_other_weights)
    all_tokens(done)
    if any(edit.layers for edit in done.plan.of(Factor)):
        raise ModelError(
            "`factor` made two layers of one, which the module's own class has no place for", "take the GraphModule"
        )
    keep = {
        name: {int(axis): torch.tensor(entry["keep"]) for axis, entry in axes.items()}
        for name, axes in done.plan.parameters.items()
    }
    graph, gone = host.lift(), bypassed(done)
    norms = _norms(module, graph, done.graph)
    parts = identities(module, graph, gone) if gone else []
    for _, network in networks(module):
        refuse_uncounted(network, parts, module)
    _check_steps(module, host, done, parts)
    _check_baked(module, host, done)
    refuse_unread(module, graph, _widths(host, done), allow_unread)
    args, kwargs = host.call_arguments(host.example())
    trains = training_error(module, args, kwargs) is None
    states = _cut_states(module, optimizer, keep) if optimizer is not None else {}
    unused = [parameter for path in parts for parameter in module.get_submodule(path).parameters()]
    undo = [
        *leave_out(module, parts),
        *_replace_tensors(module, done, keep),
        *_resize_layers(module, done),
        *_set(norms),
    ]
    try:
        touched = {id(owner) for owner, _, _ in undo}
        for prefix, network in networks(module):
            if any(id(part) in touched for part in network.modules()):
                undo += configure(network, keeps(done, network.state_dict(), prefix))
        compare(module, host, done)
        args, kwargs = done.host.call_arguments(done.host.example())
        if trains and (error := training_error(module, args, kwargs)):
            raise _unfit(module, host, done, f"in training mode its forward now raises {error}")
    except ModelError:
        for owner, name, old in reversed(undo):
            setattr(owner, name, old)
            if getattr(type(owner), name, None) is old:  # it was the class's, not the layer's own
                delattr(owner, name)
        raise
    if optimizer is not None:
        new = {id(old): getattr(owner, name) for owner, name, old in undo if isinstance(old, nn.Parameter)}
        _move(optimizer, new, states)
        _forget(optimizer, unused)
    return done


def _check_steps(module: nn.Module, host: TorchHost, done: Program, parts: Sequence[str]) -> None:
    """What was added or removed, the class does not know of, but for ``parts`` that become identities."""
    before, after = ({name for name, _ in tensors(model)} for model in (host.model, done.model))
    before = {name for name in before if not name.startswith(tuple(f"{part}." for part in parts))}
    for names, what in ((after - before, "adds"), (before - after, "removes")):
        if names:
            raise ModelError(
                f"the plan {what} `{min(names)}`, which {type(module).__name__} does not allow for",
                "leave out `fold`, and `compensate` where a layer has no bias, or train the GraphModule",
            )


def _check_baked(module: nn.Module, host: TorchHost, done: Program) -> None:
    """A weight that the class computes from others is none that can be cut."""
    for name in host.baked:
        before, after = (dict(tensors(model)).get(name) for model in (host.model, done.model))
        if before is not None and after is not None and before.shape != after.shape:  # else its part is left out whole
            owner, _, leaf = name.rpartition(".")
            raise ModelError(
                f"{type(module).__name__} cannot be cut in place: it computes `{name}` by a parametrization",
                f"torch.nn.utils.parametrize.remove_parametrizations(model.{owner}, {leaf!r}) first (of older hooks: "
                "remove_weight_norm, remove_spectral_norm), or train the GraphModule, `program.model`",
            )


def _widths(host: TorchHost, done: Program) -> dict[int, str]:
    """The widths of all axes that were cut, each with a parameter that has it."""
    before, after = dict(tensors(host.model)), dict(tensors(done.model))
    return {
        old: name
        for name, tensor in before.items()
        if name in after
        for old, new in zip(tensor.shape, after[name].shape, strict=True)
        if new != old
    }


# ---- the module --------------------------------------------------------------------------------------

Undo = Iterator[tuple[nn.Module, str, Any]]


def _replace_tensors(module: nn.Module, done: Program, keep: Keep) -> Undo:
    """Every tensor that the plan changed, each tied one once for all its names, with its gradient so far."""
    cut = dict(tensors(done.model))
    new: dict[int, Tensor] = {}
    axes = {id(old): keep[name] for name, old in tensors(module) if name in keep}  # the plan knows one of its names
    for name, old in tensors(module):
        tensor = cut.get(name, old)
        if tensor.shape == old.shape and torch.equal(tensor, old):
            continue
        if id(old) not in new:
            copy = tensor.detach().clone()
            new[id(old)] = nn.Parameter(copy, old.requires_grad) if isinstance(old, nn.Parameter) else copy
            if old.grad is not None:
                new[id(old)].grad = _kept(old.grad, axes.get(id(old), {}))
            _hook(new[id(old)], old)
        owner, _, leaf = name.rpartition(".")
        holder = module.get_submodule(owner)
        yield holder, leaf, old
        setattr(holder, leaf, new[id(old)])


def _hook(new: Tensor, old: Tensor) -> None:
    """The hooks that wait for a gradient, on what takes a tensor's place."""
    for hook in (old._backward_hooks or {}).values():
        new.register_hook(hook)
    for hook in (getattr(old, "_post_accumulate_grad_hooks", None) or {}).values():
        new.register_post_accumulate_grad_hook(hook)


SIZES: tuple[tuple[tuple[type[nn.Module], ...], Callable[[Any], dict[str, Any]]], ...] = (
    (
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        lambda m: {"in_channels": m.weight.shape[0], "out_channels": m.weight.shape[1] * m.groups},
    ),
    (
        (nn.Conv1d, nn.Conv2d, nn.Conv3d),
        lambda m: {"in_channels": m.weight.shape[1] * m.groups, "out_channels": m.weight.shape[0]},
    ),
    ((nn.Linear,), lambda m: {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]}),
    (
        (nn.Embedding, nn.EmbeddingBag),
        lambda m: {"num_embeddings": m.weight.shape[0], "embedding_dim": m.weight.shape[1]},
    ),
    ((nn.GroupNorm,), lambda m: {"num_channels": m.weight.shape[0]} if m.affine else {}),
    ((nn.LayerNorm, nn.RMSNorm), lambda m: {"normalized_shape": tuple(m.weight.shape)} if m.weight is not None else {}),
    (
        (nn.RNNBase,),
        lambda m: {
            "input_size": m.weight_ih_l0.shape[1],
            "hidden_size": (m.weight_hr_l0 if m.proj_size else m.weight_hh_l0).shape[1],
            "proj_size": m.weight_hr_l0.shape[0] if m.proj_size else 0,
        },
    ),
    ((nn.RNNCellBase,), lambda m: {"input_size": m.weight_ih.shape[1], "hidden_size": m.weight_hh.shape[1]}),
    ((nn.PReLU,), lambda m: {"num_parameters": m.weight.shape[0]}),
    (
        (nn.modules.batchnorm._NormBase,),
        lambda m: (
            {"num_features": len(m.weight if m.affine else m.running_mean)} if m.affine or m.track_running_stats else {}
        ),
    ),
)
"""What torch's layers know of their sizes beside their tensors."""


def _resize_layers(module: nn.Module, done: Program) -> Undo:
    groups = {
        op.inputs[1].name.rpartition(".")[0]: op.attrs["groups"]
        for op in done.graph.ops
        if "groups" in op.attrs and len(op.inputs) > 1 and op.inputs[1] is not None
    }
    eps = {
        op.inputs[1].name.rpartition(".")[0]: op.attrs["eps"]
        for op in done.graph.ops
        if op.kind == "rms_norm" and len(op.inputs) > 1 and op.inputs[1] is not None
    }
    for name, layer in module.named_modules():
        sizes: dict[str, Any] = {}
        if isinstance(layer, nn.RMSNorm) and name in eps:
            sizes["eps"] = eps[name]
        if name in groups and hasattr(layer, "groups"):
            yield layer, "groups", layer.groups
            layer.groups = groups[name]
        elif name in groups and hasattr(layer, "num_groups"):
            sizes["num_groups"] = groups[name]
        read = next((read for kinds, read in SIZES if isinstance(layer, kinds)), None)
        if read is not None:
            sizes |= read(layer)
        for attribute, value in sizes.items():
            if getattr(layer, attribute) != value:
                yield layer, attribute, getattr(layer, attribute)
                setattr(layer, attribute, value)


def _norms(module: nn.Module, before: Graph, after: Graph) -> list[tuple[nn.Module, str, float]]:
    """The eps of each norm that a class of the user's own writes out, as the attribute that it is, where the plan
    changes it. Raises ModelError where none is."""
    old, new = ({one.weight: _plus(graph, one.eps) for one in graph.norms if one.eps} for graph in (before, after))
    found = []
    for name in (name for name in old if name in new and old[name] != new[name]):
        path = name.rpartition(".")[0]
        where = path or type(module).__name__
        layer = module.get_submodule(path)
        mine = [key for key, value in vars(layer).items() if type(value) is float and value == old[name]]
        if len(mine) != 1:
            raise ModelError(
                f"{type(module).__name__} cannot be cut in place: of {old[name]:g}, which the norm of `{name}` adds to "
                f"a mean, {new[name]:g} is to become, and `{where}` has no attribute that is it",
                "make it one (`self.eps`), `group{freeze=...}` the hidden size, or train the GraphModule, "
                "`program.model`",
            )
        found.append((layer, mine[0], new[name]))
    return found


def _plus(graph: Graph, name: str) -> float:
    return float(next(op.attrs["plus"] for op in graph.ops if op.name == name))


def _set(values: Sequence[tuple[nn.Module, str, float]]) -> Undo:
    for layer, attribute, value in values:
        yield layer, attribute, getattr(layer, attribute)
        setattr(layer, attribute, value)


@torch.no_grad()
def compare(module: nn.Module, host: Host, done: Program, made: str = "cut in place") -> None:
    """The cut class and the GraphModule compute the same, in eval mode. Raises ModelError, which says that the class
    cannot be what it was ``made``."""
    args, kwargs = done.host.call_arguments(done.host.example())
    try:
        with evaluated(module), kept(module, getattr(host, "writes", ())):
            mine = [x for x in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(x, Tensor)]
    except Exception as error:  # the user's forward may raise anything
        raise _unfit(module, host, done, f"its forward raises {type(error).__name__}: {error}", made) from error
    theirs = done.host.run(done.host.example())
    tolerance = max(TOLERANCE.get(x.dtype, 1e-2) for x in mine) if mine else 0.0
    gap = max(
        (
            relative(b, a.cpu().float().numpy() if a.dtype in (torch.half, torch.bfloat16) else a.cpu().numpy())
            for a, b in zip(mine, theirs, strict=True)
        ),
        default=0.0,
    )
    if not gap <= tolerance:
        raise _unfit(module, host, done, f"its forward differs from the GraphModule's by {gap:.2g} relative", made)


def _unfit(module: nn.Module, host: Host, done: Program, what: str, made: str = "cut in place") -> ModelError:
    if made == "rebuilt" and (gone := bypassed(done)):
        what = f"{len(gone)} branches went whole, which its forward still adds ({what})"
    before, after = _literals(host.model), _literals(done.model)
    changed = [name for name in before if name in after and before[name] != after[name]]
    where, freeze = "", "..."
    if changed:
        old, new = before[changed[0]], after[changed[0]]
        where = f"; `{changed[0]}` has {old} written in it, and should have {new}"
        freeze = "|".join(_written_in(host.lift(), done, changed)) or freeze
    return ModelError(
        f"{type(module).__name__} cannot be {made}: {what}{where}",
        f"read sizes from the tensors (`x.shape`), `group{{freeze={freeze}}}` what cannot be; "
        "or train the GraphModule, `program.model`",
    )


def _written_in(graph: Graph, done: Program, changed: Sequence[str]) -> list[str]:
    """The groups that were cut and whose sizes these ops have written in them."""
    left = kept_of(done.plan)
    values = [v for op in graph.ops if op.name in changed for v in (*op.inputs, *op.outputs) if v is not None]
    dims = {leaf for value in values for dim in value.dims for leaf in leaves(dim)}
    return [group.name for group in everything(graph) if group.name in left and find(group.dim) in dims]


def _literals(model: fx.GraphModule) -> dict[str, list[Any]]:
    """Per op, the numbers among its arguments; conv groups are layers' attributes, and left out."""
    return {
        node.name: [a for a in pytree.tree_leaves(list(node.args)) if isinstance(a, int) and not isinstance(a, bool)]
        for node in model.graph.nodes
        if node.op == "call_function" and "conv" not in str(node.target)
    }


# ---- the optimizer -----------------------------------------------------------------------------------


def _cut_states(module: nn.Module, optimizer: torch.optim.Optimizer, keep: Keep) -> dict[int, dict[str, Any]]:
    """The new state of every parameter that has one. Raises ModelError for what has neither the shape of
    its parameter nor one number."""
    states: dict[int, dict[str, Any]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):  # the plan may know another name of it
        if name in keep and parameter in optimizer.state:
            states[id(parameter)] = {
                key: _cut(value, parameter, keep[name], f"{type(optimizer).__name__}'s `{key}` of `{name}`")
                for key, value in optimizer.state[parameter].items()
            }
    return states


def _cut(value: Any, parameter: Tensor, axes: Mapping[int, Tensor], what: str) -> Any:
    if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
        return _kept(value, axes)
    if isinstance(value, (list, tuple, dict)) or (isinstance(value, Tensor) and value.numel() > 1):
        raise ModelError(f"{what} cannot be cut: it is not shaped like the parameter", "start that optimizer anew")
    return value


def _kept(value: Tensor, axes: Mapping[int, Tensor]) -> Tensor:
    for axis, positions in axes.items():
        value = value.index_select(axis, positions.to(value.device))
    return value


def _forget(optimizer: torch.optim.Optimizer, unused: Sequence[nn.Parameter]) -> None:
    """Parameters that are gone are trained no more."""
    ids = {id(parameter) for parameter in unused}
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in ids]
    for parameter in unused:
        optimizer.state.pop(parameter, None)


def _move(
    optimizer: torch.optim.Optimizer, new: Mapping[int, nn.Parameter], states: Mapping[int, dict[str, Any]]
) -> None:
    for group in optimizer.param_groups:
        for k, old in enumerate(group["params"]):
            if id(old) in new:
                group["params"][k] = new[id(old)]
                state = optimizer.state.pop(old, None)
                if state is not None:
                    optimizer.state[new[id(old)]] = states.get(id(old), state)
