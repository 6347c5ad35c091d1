"""The examples of the README run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_python_examples_run_in_order() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    checks = names["checks"]
    assert checks[0].error <= 1e-12  # type: ignore[index]


def test_recipes_and_passes_are_real() -> None:
    from graphprune.pipeline.base import passes
    from graphprune.pipeline.recipe import Recipe

    text = README.read_text()
    recipe = next(line.strip() for line in text.splitlines() if line.startswith("    group,"))
    assert Recipe.parse(recipe).text() == recipe
    for name in re.findall(r"^\| `(\w+)` \|", text.split("## Recipes")[1], re.MULTILINE):
        assert name in passes()
