"""Files of weights in a folder: whether all are there, and whole, before any is read."""

from __future__ import annotations

import json
from pathlib import Path

from ...errors import ModelError, first_line

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"


def check_files(folder: Path) -> None:
    """Raises ModelError for what is not there, or not whole, by its name: a download that was cut short."""
    from safetensors import safe_open

    index, again = folder / INDEX, "copy, or download, the folder anew"
    names = [ONE] if (folder / ONE).is_file() else []
    if not names and index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index}: no list of weights by their files ({first_line(error)})", again) from error
    for name in names:
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: `{name}` is not there, which has weights of the network", again)
        try:
            with safe_open(folder / name, "pt"):
                pass
        except Exception as error:  # whatever the library raises
            raise ModelError(f"{folder / name}: {first_line(error)}", again) from error
