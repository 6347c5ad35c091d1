"""What may be in a ``.pt2`` file that we open: nothing that runs code when it is read.

torch.export.load is made for trusted files. It unpickles what does not load safely, evaluates the
sizes written in a program as Python, and compiles the names of its inputs into a function. Every
member of an archive is therefore looked at here, before torch sees the file, and what is not known
to be harmless is refused.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from math import prod
from pathlib import Path
from typing import Any

import torch

from ...errors import ModelError, absent
from .size_expressions import is_size

_MEMBERS = re.compile(
    r"(archive_format|archive_version|byteorder|version|\.data/\w+|\.format_version|\.storage_alignment"
    r"|models/model\.json|data/sample_inputs/model\.pt|extra/[\w./-]+"
    r"|data/weights/(weight_\d+|model\.pt|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model\.pt|model_constants_config\.json))"
)
_PLAIN = re.compile(r"[^\"'\\()=;{}\x00-\x1f]*")  # strings that may end up in the code that torch.fx makes
_LOOSE = frozenset(("metadata", "as_string", "as_strings", "guards_code"))  # never in code, or quoted
_FILES = re.compile(r"torch\.ops\.(aten\.(from_file|save)|debugprims)\b")  # ops that read and write files
_REPEATED = 2**24  # elements that a tensor may have beyond what is stored of it


def check_archive(path: Path) -> None:
    """Raises ModelError unless ``path`` is a whole .pt2 archive that is safe to read."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file", absent(path))
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive)
            for name in archive.namelist():
                if name.endswith("_config.json"):
                    _check_config(path, name, archive)
                elif name.endswith(".json"):
                    _check_program(path, json.loads(archive.read(name)))
                elif name.endswith(".pt"):
                    _check_pickle(path, name, archive.read(name))
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RecursionError, OSError) as error:
        raise ModelError(
            f"{path}: not a .pt2 file, or a damaged one ({error})", "write it with torch.export.save"
        ) from error


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    """Of two members of one name, or of names that differ in case, torch may read the other one."""
    seen: set[str] = set()
    members = archive.infolist()
    root = members[0].filename.partition("/")[0] if members else ""
    for member in members:
        inside = member.filename.removeprefix(f"{root}/")
        if not _MEMBERS.fullmatch(inside) or member.filename.lower() in seen:
            raise ModelError(
                f"{path}: `{member.filename[:100]}` has no place in a .pt2 file", "write it with torch.export.save"
            )
        if member.compress_type != zipfile.ZIP_STORED:
            raise ModelError(f"{path}: `{member.filename}` is compressed", "write it with torch.export.save")
        seen.add(member.filename.lower())
    if f"{root}/models/model.json".lower() not in seen or archive.comment or min(m.header_offset for m in members):
        raise ModelError(f"{path}: not a .pt2 file, or a damaged one", "write it with torch.export.save")
    if (damaged := archive.testzip()) is not None:
        raise zipfile.BadZipFile(f"{damaged} fails its checksum")


def _check_config(path: Path, name: str, archive: zipfile.ZipFile) -> None:
    config = json.loads(archive.read(name))
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise ValueError(f"{name} lists no tensors")
    for key, entry in entries.items():
        plain = isinstance(entry, dict) and isinstance(entry.get("tensor_meta"), dict) and not entry.get("use_pickle")
        if not plain or not re.fullmatch(r"(weight|tensor)_\d+", str(entry.get("path_name"))):
            raise ModelError(f"{path}: `{key}` is pickled, which can run code", "save a program of plain tensors")
        stored = _stored(archive, name, entry["path_name"])
        sizes = [size.get("as_int") for size in entry["tensor_meta"].get("sizes") or () if isinstance(size, dict)]
        known = [n for n in sizes if isinstance(n, int) and n >= 0]
        if len(known) < len(sizes) or prod(known) > max(stored, _REPEATED):
            raise ModelError(f"{path}: `{key}` has sizes {sizes}, and {stored} bytes are stored of it")


def _stored(archive: zipfile.ZipFile, config: str, name: str) -> int:
    try:
        return archive.getinfo(f"{config.rpartition('/')[0]}/{name}").file_size
    except KeyError:
        raise ValueError(f"{name} is missing") from None


def _check_program(path: Path, program: Any) -> None:
    """No size, name or tree in a program may be more than that."""
    todo: list[tuple[str, Any]] = [("", program)]
    while todo:
        key, value = todo.pop()
        if key in _LOOSE:
            continue
        if isinstance(value, dict):
            todo += (("key", name) for name in value)
            todo += value.items()
        elif isinstance(value, list):
            todo += ((key, item) for item in value)
        elif isinstance(value, str) and not _harmless(key, value):
            what = _WHAT.get(key, "name")
            raise ModelError(f"{path}: `{value[:80]}` is no {what}", "write it with torch.export.save")


_WHAT = {"expr_str": "size", "target": "op that a model may use", "in_spec": "tree", "out_spec": "tree"}


def _harmless(key: str, text: str) -> bool:
    if key == "expr_str":
        return is_size(text)
    if key in ("in_spec", "out_spec"):  # pytree imports the modules that these name
        return "__enum__" not in text and "default_factory" not in text and "\\u" not in text
    if key == "target" and _FILES.match(text):
        return False
    if key in ("name", "as_name", "forward_arg_names"):
        return not text or text.isidentifier()
    return _PLAIN.fullmatch(text) is not None


def _check_pickle(path: Path, name: str, payload: bytes) -> None:
    try:
        torch.load(io.BytesIO(payload), weights_only=True)
    except Exception as error:  # torch raises many kinds here
        raise ModelError(
            f"{path}: {name} does not load safely", "save the program with plain tensors as inputs"
        ) from error
