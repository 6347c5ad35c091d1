"""From what a user gives as a model to its host: a module, a program, a file, or a function that returns a module."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import ModelError, absent, nearest, users_own
from ..ir.host import Host
from ..ir.large import Room, are_large
from .foreign import refuse_foreign

if TYPE_CHECKING:
    from .torch.host import TorchHost

PREFIX = "hf:"
KINDS = (
    "give a .onnx file, a .pt2 file of torch.export, hf:FOLDER of transformers, package.module:factory, or "
    "path/to/file.py:factory"
)


def as_host(
    model: Any, example_inputs: Any = None, dynamic_shapes: Any = None, samples: Mapping[str, Any] | None = None
) -> Host:
    """The host of a model, as ``api.load`` takes it. ``samples``: the first of its data, by name, which a folder is
    traced on where they have other sizes than its own example. Raises ModelError."""
    if isinstance(model, (str, os.PathLike)):
        return _from_text(os.fspath(model), example_inputs, samples)
    kind = origins(model)
    if kind & {"onnx_ir", "onnx"}:
        from .onnx.host import OnnxHost

        return OnnxHost(model, example_inputs)
    if "torch" in kind:
        import torch

        from .torch.host import TorchHost

        if isinstance(model, torch.export.ExportedProgram):
            return _resized(TorchHost.from_exported(model), example_inputs)
        if isinstance(model, torch.jit.ScriptModule):
            raise ModelError(
                "a TorchScript module cannot be traced by torch.export",
                "give the nn.Module that it was made from, with example inputs",
            )
        if isinstance(model, torch.nn.Module):
            if example_inputs is None:
                raise ModelError(
                    "a module needs example inputs to be traced", "gp.load(module, (torch.randn(1, 3, 224, 224),))"
                )
            return TorchHost.export(model, example_inputs, dynamic_shapes)
    raise ModelError(
        f"{type(model).__name__} is not a model",
        "give an nn.Module, an ExportedProgram, an ONNX model, or the path of one",
    )


def origins(model: Any) -> set[str]:
    """The packages that a model's classes are of: no framework is imported to ask."""
    return {part.__module__.partition(".")[0] for part in type(model).__mro__}


def imported(where: str) -> Callable[..., Any]:
    """The function of ``package.module:name``, looked up from the current directory, or of ``path/to/file.py:name``.
    Raises ModelError."""
    module, _, name = where.rpartition(":")
    if not module or not name:
        raise ModelError(f"`{where}` names no function", "give package.module:function, or path/to/file.py:function")
    with users_own(where, _importable(module, name)):
        there = _module(module)
    found: Callable[..., Any] | None = getattr(there, name, None)
    if not callable(found):
        own = [key for key, value in vars(there).items() if callable(value) and not key.startswith("_")]
        what = f"is no function but of type {type(found).__name__}" if hasattr(there, name) else "is not there"
        raise ModelError(f"{where}: `{name}` {what}", nearest(name, own) if own else f"{module} has no functions")
    return found


def _module(name: str) -> ModuleType:
    """A module by its name, or by its file, whose folder then is where it imports from."""
    path = Path(name)
    if path.suffix != ".py":
        _look_in(Path.cwd())
        return importlib.import_module(name)
    if not path.is_file():
        raise ModelError(f"{name}: no such file", absent(path))
    _look_in(path.resolve().parent)
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path.resolve()):
        return known
    own = (
        path.stem if known is None else f"{path.stem}_{zlib.crc32(str(path.resolve()).encode()):x}"
    )  # never another's place
    spec = importlib.util.spec_from_file_location(own, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[own] = module  # dataclasses and torch look their module up by its name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[own]
        raise
    return module


def _look_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _importable(module: str, name: str) -> str:
    """A hint for a module that cannot be imported."""
    if module.endswith(".py"):
        return f"does `python {module}` run? It imports from its own folder, and what is installed for {sys.executable}"
    path = Path(f"{module.replace('.', '/')}.py")
    return f"{module}:{name} must be importable from here, or given as path/to/{path.name}:{name}"


def _from_text(text: str, example_inputs: Any, samples: Mapping[str, Any] | None) -> Host:
    if text.startswith(PREFIX):
        named = example_inputs if isinstance(example_inputs, Mapping) else samples
        return _resized(_from_folder(Path(text.removeprefix(PREFIX)), named), example_inputs)
    if not text:
        raise ModelError("an empty name is no model", KINDS)
    if "://" in text:
        raise ModelError(f"{text}: an address, and nothing is fetched", "download the file, and give its path")
    path = Path(text)
    if path.is_file():
        refuse_foreign(path)
    if path.suffix == ".onnx":
        from .onnx.host import OnnxHost

        return OnnxHost.load(path, example_inputs)
    if path.suffix == ".pt2":
        from .torch.host import TorchHost

        return _resized(TorchHost.load(path), example_inputs)
    if ":" in text and not path.exists():
        return _resized(_from_factory(text), example_inputs)
    if path.is_dir() and (path / "config.json").is_file():
        raise ModelError(f"{text}: a folder, not a model", f"a folder of transformers is given as {PREFIX}{text}")
    if path.is_dir():
        inside = sorted(one.name for suffix in ("onnx", "pt2") for one in path.glob(f"*.{suffix}"))
        found = f"give the model in it: {path / inside[0]}" if inside else KINDS
        raise ModelError(f"{text}: a folder, not a model", found)
    if path.suffix == ".py" and path.exists():
        hint = f"give {text}:factory, a function in it that returns (module, example_inputs)"
        raise ModelError(f"{text}: a Python file, of which a function is to be named", hint)
    if not path.exists() and (path.suffix or path.parent != Path()):
        raise ModelError(f"{text}: no such file", absent(path))
    raise ModelError(f"{text}: {'not an .onnx or .pt2 file' if path.exists() else 'no such file'}", KINDS)


def _from_folder(folder: Path, samples: Mapping[str, Any] | None) -> TorchHost:
    """A network of the transformers library."""
    from .torch.host import TorchHost
    from .torch.pretrained import read

    made = read(folder)
    host = TorchHost.export(made.model, made.example(samples))
    host.pretrained, host.notes = made, (*host.notes, *made.notes)
    if are_large(tensor.nbytes for tensor in made.model.parameters()):
        host.room = Room()
    return host


def _resized(host: TorchHost, example_inputs: Any) -> TorchHost:
    """What was traced on inputs of its own, on those that are given."""
    if example_inputs is not None:
        host.resize(example_inputs)
    return host


def _from_factory(where: str) -> TorchHost:
    from .torch.host import TorchHost

    factory = imported(where)
    with users_own(where, "it is called without arguments, and must return (module, example_inputs)"):
        made = factory()
    if not isinstance(made, tuple) or len(made) != 2:
        raise ModelError(f"{where} returned {type(made).__name__}", "it must return (module, example_inputs)")
    return TorchHost.export(*made)
