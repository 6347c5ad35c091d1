"""The recipe file of a command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..pipeline.recipe import Recipe


def read_recipe(path: Path) -> Recipe:
    """A recipe file. Raises RecipeError."""
    from ..errors import RecipeError
    from ..pipeline.recipe import Recipe

    try:
        return Recipe.from_toml(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
