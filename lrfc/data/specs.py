"""Early checks of the data and functions that options name, by file names and headers alone."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from lrfc.data import mapped, readers
from lrfc.errors import DependencyError, UsageError
from lrfc.system.reader import DOCUMENT_BYTES, located, opened, shown


def data(spec: str, model: Path | None) -> None:
    """Raise the errors of reading the data, as far as file names and headers show them.

    ``model``: the .keras file whose input names the arrays may have; None where it is not known.
    """
    match readers.form(spec):
        case "digits":
            if importlib.util.find_spec("sklearn") is None:
                raise DependencyError(readers.DIGITS_NEED)
        case "arrays":
            root = located(spec)
            _fit(
                {file.stem: mapped.npy(file).shape for file in sorted(root.glob("*.npy"))},
                f"data folder '{root}'",
                model,
            )
        case "npz":
            _fit(mapped.shapes(located(spec)), f"data file '{located(spec)}'", model)
        case "function":
            function(spec, "data")


def function(spec: str, what: str) -> None:
    """Raise UsageError unless the function exists; its module is parsed, not run."""
    name, attribute = spec.split(":")
    if name in sys.modules:
        if not hasattr(sys.modules[name], attribute):
            raise UsageError(_missing(spec, what, f"module '{name}' has no '{attribute}'"))
        return
    module = _module(name)
    if module is None:
        reason = f"there is no module '{name}', neither installed nor in {Path.cwd()}"
        raise UsageError(_missing(spec, what, reason))
    if module.origin is None or not module.origin.endswith(".py"):
        return  # a package without a file, or compiled code: only an import would tell
    try:
        source = Path(module.origin).read_bytes()
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise UsageError(_missing(spec, what, f"{module.origin} is no Python: {error}")) from error
    names = set(_bound(tree))
    dynamic = names & {"*", "__getattr__"} or b"globals()" in source or b"setattr(" in source
    if attribute not in names and not dynamic:
        raise UsageError(_missing(spec, what, f"{module.origin} has no '{attribute}'"))


def _missing(spec: str, what: str, reason: str) -> str:
    return f"{what} '{shown(spec)}': {reason}; give package.module:function"


def _module(name: str) -> ModuleSpec | None:
    """Return the spec of a module, also of the current folder, without importing its packages."""
    path: Iterable[str] | None = [str(Path.cwd()), *sys.path]
    parts = name.split(".")
    spec = None
    for length in range(1, len(parts) + 1):
        prefix = ".".join(parts[:length])
        spec = None if path is None else PathFinder.find_spec(prefix, list(path))
        if spec is None:  # a built-in or frozen module, or none
            return importlib.util.find_spec(name) if len(parts) == 1 else None
        path = spec.submodule_search_locations
    return spec


def _bound(tree: ast.AST) -> Iterable[str]:
    """Yield the names that a module binds at its top level; '*' for a star import."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif not isinstance(node, ast.Lambda):
            yield from _bound(node)


# -- arrays ----------------------------------------------------------------------------------------


def _fit(shapes: Mapping[str, tuple[int, ...]], where: str, model: Path | None) -> None:
    """Raise UsageError where there are no inputs, or not as many inputs as labels."""
    suffixes = [suffix for group in readers.PARTS.values() for suffix in group]
    for suffix in suffixes:
        lengths = {
            name: shapes[name][0] for name in (f"x{suffix}", f"y{suffix}") if shapes.get(name)
        }
        if len(set(lengths.values())) > 1:
            counts = " and ".join(f"{count:,} in '{name}'" for name, count in lengths.items())
            raise UsageError(
                f"{where}: there are {counts}; inputs and labels must have the same number of"
                " samples"
            )
    if any(f"x{suffix}" in shapes for suffix in suffixes):
        return
    layers = None if model is None else _names(model)
    if not shapes or (
        layers is not None
        and not any(f"{layer}{suffix}" in shapes for layer in layers for suffix in suffixes)
    ):
        names = ", ".join(f"'{name}'" for name in shapes)
        raise UsageError(f"{where} has no array 'x'; it holds {shown(names) or 'nothing'}")


def _names(model: Path) -> set[str] | None:
    """Return every name in the configuration of a .keras file; None where it cannot be read."""
    # The loader reports the fault of a damaged file later.
    damaged = (BadZipFile, KeyError, OSError, RuntimeError, ValueError, NotImplementedError)
    try:
        with opened(model, limit=sys.maxsize) as raw, ZipFile(raw) as archive:
            if archive.getinfo("config.json").file_size > DOCUMENT_BYTES:
                return None
            text = archive.read("config.json").decode()
    except damaged:
        return None
    return set(re.findall(r'"name":\s*"((?:[^"\\]|\\.)*)"', text))
