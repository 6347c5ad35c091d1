"""The shape of the code: imports run one way, signposts point inwards, names are what they say."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest

import graphprune

PACKAGE = Path(graphprune.__file__).parent
ROOT = PACKAGE.parent

LAYERS = (  # from the ground up; those of one row do not know each other
    ("errors",),
    ("axes",),
    ("ir",),
    ("ops",),
    ("cost", "coupling"),
    ("pipeline", "calibration", "hosts"),
    ("criteria", "compensation", "train", "reorder", "report"),
    ("allocation",),
    ("passes",),
    ("backends",),
    ("driver",),
    ("api",),
    ("cli", "", "facts"),  # the faces: the command, graphprune/__init__.py, and what scripts import facts from
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
HEAVY = ("hosts", "backends", "train")  # imported late themselves
FRAMEWORKS = {"torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "tvm"}


def module(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(path):
    """Every import of a file, at any depth: (module parts within graphprune, or None; top-level name)."""
    here = module(path) if path.name == "__init__.py" else module(path)[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (
                    (tuple(alias.name.split("."))[1:] if alias.name.startswith("graphprune") else None),
                    alias.name.split(".")[0],
                )
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            top = node.module.split(".")[0]
            yield (tuple(node.module.split("."))[1:] if top == "graphprune" else None), top
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] + tuple(node.module.split(".") if node.module else ())
            if node.module:
                yield base, "graphprune"
            else:  # from . import name: a module, or something of the package itself
                for alias in node.names:
                    yield ((*base, alias.name) if exists((*base, alias.name)) else base), "graphprune"


def exists(parts):
    path = PACKAGE.joinpath(*parts)
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_every_module_has_its_place_in_the_order():
    found = {module(path)[0] if module(path) else "" for path in FILES}
    assert found <= set(RANK)
    assert set(RANK) <= found, "the order names modules that are gone"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    mine = module(path)
    layer = mine[0] if mine else ""
    for target, top in imports(path):
        if target is None:
            continue
        assert top == "graphprune"
        theirs = target[0] if target else ""
        if theirs == layer and layer != "passes":
            continue
        if not target and layer in ("pipeline", "driver", "cli"):
            continue  # the version of the package
        assert RANK[theirs] < RANK[layer], f"{'.'.join(mine)} imports {'.'.join(target)}"


def test_the_order_is_checked_at_all():
    """The reader of imports sees what is there: relative, late, and in TYPE_CHECKING blocks."""
    seen = {target for target, _ in imports(PACKAGE / "coupling" / "relate.py")}
    assert {("axes", "dim"), ("errors",), ("ir", "graph"), ("axes", "notation"), ("ops", "rules")} <= seen
    assert ("hosts", "torch", "host") in {target for target, _ in imports(PACKAGE / "api.py")}
    assert ("coupling", "relate") in {target for target, _ in imports(PACKAGE / "hosts" / "torch" / "host.py")}


def test_the_house_has_few_rooms_and_no_circle():
    assert len({module(path)[0] for path in FILES if module(path)}) <= 25
    graph = nx.DiGraph(
        (module(path), target)
        for path in FILES
        for target, _ in imports(path)
        if target and target != module(path) and path.name != "__init__.py"
    )
    assert nx.is_directed_acyclic_graph(graph), nx.find_cycle(graph)


def switches_on_host(path):
    """Where a file compares the kind of a host, or looks something up by it."""
    for node in ast.walk(ast.parse(path.read_text())):
        parts = {ast.Compare: ("left", "comparators"), ast.Subscript: ("slice",), ast.Match: ("subject",)}
        for name in parts.get(type(node), ()):
            found = getattr(node, name)
            if any("host.kind" in ast.unparse(part) for part in (found if isinstance(found, list) else [found])):
                yield ast.unparse(node)


def test_what_differs_between_hosts_is_asked_of_them(tmp_path):
    for path in FILES:
        if module(path)[:1] != ("hosts",):
            assert not list(switches_on_host(path)), path
    probe = tmp_path / "probe.py"
    probe.write_text("a = 1 if program.host.kind == 'torch' else TABLE[host.kind]\nb = report(host.kind)")
    assert sorted(switches_on_host(probe)) == ["TABLE[host.kind]", "program.host.kind == 'torch'"]


@pytest.mark.parametrize("path", sorted((PACKAGE / "passes").glob("*.py")), ids=lambda path: path.stem)
def test_passes_import_neither_each_other_nor_a_framework(path):
    for target, top in imports(path):
        assert top not in FRAMEWORKS
        assert target is None or target[0] not in ("passes", "hosts", "backends"), target


@pytest.mark.parametrize(
    "path", [p for p in FILES if module(p)[:1] not in [(name,) for name in HEAVY]], ids=lambda p: p.stem
)
def test_frameworks_are_not_imported_at_the_top(path):
    top = [node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    for node in top:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        assert not {name.split(".")[0] for name in names} & FRAMEWORKS, ast.unparse(node)


def test_tvm_is_imported_in_functions_only():
    for path in sorted((PACKAGE / "backends").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.level == 0):
                assert "tvm" not in ast.unparse(node), path


@pytest.mark.parametrize("name", ["passes", "backends"])
def test_signposts_point_into_the_package(name):
    link = ROOT / name
    if not link.is_symlink():
        pytest.skip("not a checkout, or one without symlinks")
    assert str(link.readlink()) == f"graphprune/{name}"
    assert link.resolve() == PACKAGE / name


def test_all_is_what_there_is():
    assert sorted(graphprune.__all__) == graphprune.__all__
    for name in graphprune.__all__:
        assert getattr(graphprune, name).__doc__, name
    assert set(dir(graphprune)) >= {*graphprune.__all__, "__version__"}
    with pytest.raises(AttributeError, match="no attribute `prune`"):
        graphprune.prune  # noqa: B018


def test_the_public_functions_are_typed_and_documented():
    for name in ("load", "run", "compile", "apply", "verify"):
        function = getattr(graphprune, name)
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values()), name
        assert "Raises" in function.__doc__, name


def test_api_all_is_what_there_is():
    from graphprune import api

    for name in api.__all__:
        assert hasattr(api, name)


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import graphprune", {*FRAMEWORKS, "numpy", "networkx", "matplotlib", "click", "rich"}),
        ("import graphprune.cli", {*FRAMEWORKS, "matplotlib"}),
        ("import graphprune; graphprune.GraphpruneError, graphprune.Pass, graphprune.Program", FRAMEWORKS),
        ("import graphprune.api", FRAMEWORKS),
    ],
)
def test_imports_cost_nothing(code, absent):
    check = f"{code}; import sys; print(sorted({absent!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", check],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_documented(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def without_encoding(path):
    """Lines that read or write text in whatever encoding the machine has."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or "encoding" in {keyword.arg for keyword in node.keywords}:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        text = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get("text") == "True"
        if name in ("read_text", "write_text") or text:
            yield node.lineno
        of_os = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in ("os", "Image", "archive")
        if name in ("open", "NamedTemporaryFile", "fdopen") and (name == "fdopen" or not of_os):
            given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
            modes = [one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            if not any("b" in mode for mode in modes):
                yield node.lineno


def test_texts_have_an_encoding():
    """What one machine wrote another reads, whatever the locale."""
    assert not {path: lines for path in FILES if (lines := list(without_encoding(path)))}


@pytest.mark.parametrize("code", ["p.read_text()", "open(p)", "p.open('w')", "os.fdopen(1, 'w')", "run(a, text=True)"])
def test_a_text_without_encoding_is_found(code, tmp_path):
    file = tmp_path / "x.py"
    file.write_text(code)
    assert list(without_encoding(file)) == [1]
    file.write_text(f"{code[:-1]}, encoding='utf-8')".replace("(,", "("))
    assert not list(without_encoding(file))
