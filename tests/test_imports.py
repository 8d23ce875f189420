"""Which module may import which, and what is imported only where it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parent.parent

#: From the bottom up: a module imports from its own row and from the rows above it in this list,
#: never from below.
LAYERS = (
    {"errors", "text", "version"},
    {"system"},
    {"ir"},
    {"config"},
    {"data"},
    {"state", "protocols", "pipeline"},
    {"factorization", "metrics"},
    {"costs"},
    {"search"},
    {"pruning"},
    {"training"},
    {"passes", "targets"},
    {"results"},
    {"engine"},
    {"api"},
    {"cli", "__main__"},
)
RANK = {name: number for number, layer in enumerate(LAYERS) for name in layer}

#: Slow to import, so never at the top of a module.
HEAVY = {
    "ai_edge_litert",
    "keras",
    "onnx",
    "onnxruntime",
    "sklearn",
    "tensorflow",
    "tensorflow_model_optimization",
    "tensorly",
    "tf2onnx",
    "tf_keras",
    "tflite_micro",
}

FILES = sorted(
    path
    for folder in ("lrfc", "passes", "targets")
    for path in (ROOT / folder).rglob("*.py")
    if not path.parent.is_symlink()
)


def unit(file: Path) -> str:
    """The file's name in LAYERS; the package itself is ''."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "lrfc" else parts
    return "" if parts == ("__init__",) else parts[0]


def imports(tree: ast.AST, *, inside_functions: bool) -> Iterator[str]:
    """The dotted names that a module imports, without those for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif inside_functions or not isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        ):
            yield from imports(node, inside_functions=inside_functions)


def test_the_files_are_found() -> None:
    assert {"errors", "ir", "passes", "targets", ""} <= {unit(file) for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_downwards(file: Path) -> None:
    own = unit(file)
    if not own:
        return  # lrfc/__init__.py offers the whole package, lazily
    assert own in RANK, f"give {own} a place in LAYERS"
    for name in imports(ast.parse(file.read_text(encoding="utf-8")), inside_functions=True):
        if not name.startswith("lrfc."):
            assert name.partition(".")[0] not in ("passes", "targets"), f"{name}: write lrfc.{name}"
            continue
        other = name.split(".")[1]
        if other == "__version__":
            continue
        assert other in RANK, f"give {other} a place in LAYERS"
        assert RANK[other] <= RANK[own], f"lrfc.{own} must not import lrfc.{other}"
        assert {own, other} != {"passes", "targets"}, "a target is handed to a pass as an argument"
        assert (own, other) != (
            "passes",
            "passes",
        ), "what two passes share is a fact or a function below them"


def module(file: Path) -> str:
    """The dotted name of a module, under lrfc."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "lrfc" else ("lrfc", *parts)
    return ".".join(parts).removesuffix(".__init__")


def test_no_modules_import_each_other() -> None:
    """Imports inside of functions count, too."""
    files = {module(file): file for file in FILES}
    graph: nx.DiGraph[str] = nx.DiGraph()
    for name, file in files.items():
        for imported in imports(ast.parse(file.read_text(encoding="utf-8")), inside_functions=True):
            package = imported.rpartition(".")[0]
            other = imported if imported in files else package
            if other in files and other != name:
                graph.add_edge(name, other)
    assert graph.number_of_edges() > 500
    assert [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_heavy_packages_are_imported_where_they_are_needed(file: Path) -> None:
    top = {
        name.partition(".")[0]
        for name in imports(ast.parse(file.read_text(encoding="utf-8")), inside_functions=False)
    }
    assert top & HEAVY == set()


def test_temporary_files_are_made_in_one_place() -> None:
    """Only lrfc.system.scratch makes temporary files.

    lrfc.system.files only tries a folder, and the worker runs on devices without lrfc.
    """
    users = {
        unit(file)
        for file in FILES
        for name in imports(ast.parse(file.read_text(encoding="utf-8")), inside_functions=True)
        if name == "tempfile"
    }
    assert users == {"system", "targets"}
    assert [
        file.name
        for file in FILES
        if unit(file) == "targets" and "import tempfile" in file.read_text(encoding="utf-8")
    ] == ["worker.py"]


def test_the_command_line_starts_without_heavy_packages() -> None:
    code = (
        f"import sys, lrfc.cli.app; print(sorted(set({sorted(HEAVY | {'scipy'})!r}) &"
        " {name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr
