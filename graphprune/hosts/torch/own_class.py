"""A class of the library at widths that no configuration says: the file that makes it where graphprune is not, and the
same class made here, of which nothing in a folder is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ModelError
from . import rebuild
from .rebuild import resized, stored
from .widths import VERSION

CLASS_FILE = "modeling_pruned.py"
WIDTHS = "widths"
"""The entry of ``config.json`` that holds what widths.json does."""
HEAD_WIDTHS = ("head_dim", "key_value_proj_dim")
"""What layers call the width of their heads."""
PREFIX = "Pruned"
"""What the name of the class has before the library's."""
NOTE = f"config.json has no fields that say this: {CLASS_FILE} does, for from_pretrained(..., trust_remote_code=True)"
CLASS = """\"\"\"{kind} at the widths in config.json. Written by graphprune; needs rebuild.py beside it and no more.

AutoModel(ForCausalLM, ...).from_pretrained(folder, trust_remote_code=True) loads it.
\"\"\"

from transformers import {kind}

from .rebuild import resized, stored


class Pruned{kind}({kind}):
    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        stored(resized(self, config.widths), config.widths)
"""


def of(kind: Any) -> Any:
    """What the file has, made here."""

    def begin(self: Any, config: Any, *args: Any, **options: Any) -> None:
        kind.__init__(self, config, *args, **options)
        stored(resized(self, config.widths), config.widths)

    return type(f"{PREFIX}{kind.__name__}", (kind,), {"__init__": begin, "__module__": __name__})


def called(folder: Path, written: Mapping[str, Any], name: str) -> str:
    """The name of the library's class of which a folder has such a one; ``name`` itself where it has none. Raises
    ModelError where the file is not what graphprune wrote: what is in it would be left out."""
    if WIDTHS not in written or not name.startswith(PREFIX) or "auto_map" not in written:
        return name
    known, where = name.removeprefix(PREFIX), folder / CLASS_FILE
    if not where.is_file() or where.read_text(encoding="utf-8") != CLASS.format(kind=known):
        what = "was changed since graphprune wrote it" if where.is_file() else "is not there"
        raise ModelError(
            f"{where}: {what}, and code in a folder is not run: what it makes is not known",
            f"put back what was written, or load it in a function of yours: path/to/file.py:factory ({known})",
        )
    version = written[WIDTHS].get("version") if isinstance(written[WIDTHS], dict) else None
    if version != VERSION:
        raise ModelError(
            f"{folder / 'config.json'}: `{WIDTHS}` of version {version}, and this graphprune reads {VERSION}",
            "compile the network that it was made from",
        )
    return known


def write(folder: Path, kind: type, names: list[str], sizes: Mapping[str, Any]) -> None:
    """The file, rebuild.py, which it imports, and in ``config.json`` its name, by ``names`` of AutoModel and its kin,
    and the widths."""
    (folder / CLASS_FILE).write_text(CLASS.format(kind=kind.__name__), encoding="utf-8")
    (folder / "rebuild.py").write_text(Path(rebuild.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    where = folder / "config.json"
    config = json.loads(where.read_text(encoding="utf-8"))
    name = f"{PREFIX}{kind.__name__}"
    config["architectures"] = [name]
    config["auto_map"] = dict.fromkeys(names, f"{Path(CLASS_FILE).stem}.{name}")
    config[WIDTHS] = sizes
    where.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
