"""The recipe of a command: a published one, or a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..pipeline.recipe import Recipe


def find_recipe(text: str) -> Recipe | str:
    """The name of a published recipe, or ``auto``, as it is, or what a file of that name holds. Raises RecipeError."""
    from ..driver.auto import AUTO
    from ..errors import RecipeError, nearest, shown
    from ..pipeline.published import published

    known = [AUTO, *published()]
    if not text:
        raise RecipeError("an empty name is no recipe", nearest(text, known))
    if text in known:
        return text
    if not Path(text).suffix and not Path(text).exists():
        raise RecipeError(f"`{shown(text)}` is no published recipe, and no file", nearest(text, known))
    return read_recipe(Path(text))


def read_recipe(path: Path) -> Recipe:
    """A recipe file. Raises RecipeError."""
    from ..errors import RecipeError, absent
    from ..pipeline.recipe import Recipe

    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such file", absent(path)) from error
    except (OSError, UnicodeDecodeError) as error:
        why = "no text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise RecipeError(f"{path}: not a recipe ({why})", "a recipe is a text file of [[pass]] tables") from error
    try:
        return Recipe.from_toml(text)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error.message}", error.hint) from error
