"""Tracing with torch.export: the user's module on the way in, the compiled network on the way out."""

from __future__ import annotations

import inspect
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ...errors import ModelError
from ...ir.host import Call
from .export_errors import refusal
from .network import Network


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """The module inside DistributedDataParallel and torch.compile, however they are nested."""
    while True:
        if isinstance(module, torch.nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), torch.nn.Module):
            module = inner
        else:
            return module


def check_loaded(module: torch.nn.Module) -> None:
    """Raises ModelError where weights are not there: on the meta device, as accelerate leaves what a ``device_map``
    puts on the disk or hands over layer by layer (``placed.gathered`` reads it from its hooks)."""
    empty = [name for name, tensor in module.named_parameters() if tensor.is_meta]
    if empty:
        where = getattr(module, "hf_device_map", None)
        placed = f", placed by device_map on {', '.join(sorted({str(one) for one in where.values()}))}" if where else ""
        raise ModelError(
            f"{len(empty)} parameters of {type(module).__name__} are on the meta device and have no values, the first "
            f"`{empty[0]}`{placed}",
            "load it without device_map; a folder of transformers is given as hf:FOLDER, whose weights are mapped",
        )


def trace(module: torch.nn.Module, inputs: Any, dynamic_shapes: Any = None) -> torch.export.ExportedProgram:
    """``module`` in eval mode; it is left in the mode it was in. Raises ModelError."""
    args, kwargs = _call(module, inputs)
    with evaluated(module):
        return _trace(module, args, kwargs, dynamic_shapes)


@contextmanager
def evaluated(module: torch.nn.Module) -> Iterator[None]:
    """Within, the module computes what is traced of it: it is in eval mode, and hands out no key-value cache that
    torch.export has no form of. Then each of its parts is as it was."""
    were, configs = {part: part.training for part in module.modules()}, _caching(module)
    module.eval()
    for config in configs:
        config.use_cache = False
    try:
        yield
    finally:
        for part, mode in were.items():
            part.training = mode
        for config in configs:
            config.use_cache = True


def without_cache(module: torch.nn.Module) -> tuple[str, ...]:
    """A note on the cache that is not read, if there is one."""
    return ("read without the key-value cache that it hands out (use_cache)",) if _caching(module) else ()


def caches_are_known() -> bool:
    """Whether torch.export has been told of the class of a key-value cache: then one is wanted among the outputs."""
    return getattr(sys.modules.get("transformers.cache_utils"), "DynamicCache", None) in pytree.SUPPORTED_NODES


def _caching(module: torch.nn.Module) -> list[Any]:
    """The configurations of transformers' by which ``module`` hands out a key-value cache beside its results, which
    torch.export does not know."""
    if "transformers.cache_utils" not in sys.modules or caches_are_known():
        return []
    configs = {id(config): config for part in module.modules() if (config := getattr(part, "config", None)) is not None}
    return [config for config in configs.values() if getattr(config, "use_cache", None) is True]


def modes(module: torch.nn.Module) -> tuple[str, ...]:
    """A note on what of a module in eval mode was left in training mode (dropout that is to draw), if anything: its
    choice is not kept. A module that is in training mode as a whole is read in eval mode, as documented."""
    left = [name for name, part in module.named_modules() if part.training and not next(part.children(), None)]
    if module.training or not left:
        return ()
    some = ", ".join(f"`{name}`" for name in left[:5]) + (", ..." if len(left) > 5 else "")
    return (f"{some} in training mode within a module in eval mode: read in eval mode, as all of it",)


def retrace(model: fx.GraphModule, example: Sequence[Any], static: bool = False) -> torch.export.ExportedProgram:
    """A network that torch.export made once, edited since; dynamic where it was dynamic (``static``: nowhere)."""
    holes = [node.meta.get("val") for node in model.graph.nodes if node.op == "placeholder"]
    spec = [
        {k: torch.export.Dim.AUTO for k, n in enumerate(val.shape) if not isinstance(n, int)}
        if isinstance(val, torch.Tensor) and not static
        else None
        for val in holes
    ]
    (args, kwargs), (open_args, open_kwargs) = call_of(model, example), call_of(model, spec)
    shapes: Any = open_args
    if kwargs:  # then torch.export wants all by name
        names = model.graph._codegen.pytree_info.orig_args  # type: ignore[attr-defined]
        shapes = {**dict(zip(names, open_args, strict=False)), **{name: open_kwargs[name] for name in kwargs}}
    training, model.training = model.training, False
    try:
        with model.as_run() if isinstance(model, Network) else nullcontext(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
    finally:
        model.training = training


def call_of(model: fx.GraphModule, flat: Sequence[Any]) -> Call:
    """Flat inputs as ``model`` takes them."""
    info = model.graph._codegen.pytree_info  # type: ignore[attr-defined]
    args, kwargs = pytree.tree_unflatten(list(flat), info.in_spec)
    return args, kwargs


def _call(module: torch.nn.Module, inputs: Any) -> Call:
    """What is given as example inputs: both parts of a call, arguments of forward by name (as a tokeniser makes
    them), or in order."""
    if isinstance(inputs, Mapping) and set(inputs) == {"args", "kwargs"}:
        return inputs["args"], inputs["kwargs"]
    if isinstance(inputs, Mapping) and inputs and inputs.keys() <= inspect.signature(module.forward).parameters.keys():
        return (), dict(inputs)
    return _tuple(inputs), {}


def _tuple(inputs: Any) -> tuple[Any, ...]:
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def _trace(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Any
) -> torch.export.ExportedProgram:
    tries = [_batched(module, args, kwargs), None] if dynamic is None else [dynamic]
    failure: BaseException | None = None
    for spec in tries:
        try:
            # Without gradients `torch.no_grad` regions (rotary embeddings) stay plain ops.
            with warnings.catch_warnings(), torch.no_grad(), _quiet():
                warnings.simplefilter("ignore")
                return torch.export.export(module, args, kwargs, dynamic_shapes=spec)
        except Exception as error:  # torch.export raises whatever the module's code raises
            failure = error
    assert failure is not None
    raise refusal(module, failure) from failure


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export prints the graph so far, and logs, where it fails: all that is said in one error."""
    printed, level = io.StringIO(), logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(printed):
            yield
        sys.stderr.write(printed.getvalue())  # the module's own
    finally:
        logging.disable(level)


def _batched(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first axis of every tensor left open, as torch.export spells it: by the names in ``forward``."""
    try:
        named = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    except TypeError:  # torch.export will say what is wrong
        return None
    return pytree.tree_map(
        lambda x: {0: torch.export.Dim.AUTO} if isinstance(x, torch.Tensor) and x.ndim else None, dict(named)
    )
