"""Whether data and functions that an option names exist, by file names and headers alone."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from lrfc.data import mapped as streams
from lrfc.data import readers as sources
from lrfc.errors import DependencyError, UsageError
from lrfc.system.reader import DOCUMENT_BYTES, located, opened, shown


def data(spec: str, model: Path | None) -> None:
    """Raise what reading the data would raise, as far as names and headers tell.

    ``model``: a .keras file whose inputs arrays may be named after; None where nothing is known of
    them.
    """
    match sources.form(spec):
        case "digits":
            if importlib.util.find_spec("sklearn") is None:
                raise DependencyError(sources.DIGITS_NEED)
        case "arrays":
            root = located(spec)
            _fit(
                {file.stem: streams.npy(file).shape for file in sorted(root.glob("*.npy"))},
                f"data folder '{root}'",
                model,
            )
        case "npz":
            _fit(streams.shapes(located(spec)), f"data file '{located(spec)}'", model)
        case "function":
            function(spec, "data")


def function(spec: str, what: str) -> None:
    """Raise UsageError unless there is such a function, as its module's source tells: it is not run."""
    name, attribute = spec.split(":")
    if name in sys.modules:
        if not hasattr(sys.modules[name], attribute):
            raise UsageError(_missing(spec, what, f"module '{name}' has no '{attribute}'"))
        return
    module = _module(name)
    if module is None:
        raise UsageError(
            _missing(
                spec, what, f"there is no module '{name}', neither installed nor in {Path.cwd()}"
            )
        )
    if module.origin is None or not module.origin.endswith(".py"):
        return  # of a package without a file, or of compiled code, nothing is known before it is imported
    try:
        source = Path(module.origin).read_bytes()
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise UsageError(_missing(spec, what, f"{module.origin} is no Python: {error}")) from error
    bound = set(_bound(tree))
    unseen = bound & {"*", "__getattr__"} or b"globals()" in source or b"setattr(" in source
    if attribute not in bound and not unseen:
        raise UsageError(_missing(spec, what, f"{module.origin} has no '{attribute}'"))


def _missing(spec: str, what: str, reason: str) -> str:
    return f"{what} '{shown(spec)}': {reason}; give package.module:function"


def _module(name: str) -> ModuleSpec | None:
    """Where a module would come from, also in the current folder; no package is imported."""
    path: Iterable[str] | None = [str(Path.cwd()), *sys.path]
    found = None
    for number, _ in enumerate(name.split("."), 1):
        found = (
            None
            if path is None
            else PathFinder.find_spec(".".join(name.split(".")[:number]), list(path))
        )
        if found is None:
            return (
                importlib.util.find_spec(name) if "." not in name else None
            )  # built in, or frozen
        path = found.submodule_search_locations
    return found


def _bound(tree: ast.AST) -> Iterable[str]:
    """Names that a module binds outside of functions and classes; '*' for all of another's."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((each.asname or each.name).partition(".")[0] for each in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif not isinstance(node, ast.Lambda):
            yield from _bound(node)


# -- arrays ----------------------------------------------------------------------------------------


def _fit(shapes: Mapping[str, tuple[int, ...]], where: str, model: Path | None) -> None:
    """Raise UsageError where there are no inputs, or inputs and labels of unequal number."""
    suffixes = [suffix for each in sources.PARTS.values() for suffix in each]
    for suffix in suffixes:
        lengths = {
            name: shapes[name][0] for name in (f"x{suffix}", f"y{suffix}") if shapes.get(name)
        }
        if len(set(lengths.values())) > 1:
            told = " and ".join(f"{count:,} in '{name}'" for name, count in lengths.items())
            raise UsageError(
                f"{where}: there are {told}; inputs and labels must have the same number of samples"
            )
    if any(f"x{suffix}" in shapes for suffix in suffixes):
        return
    layers = None if model is None else _names(model)
    if not shapes or (
        layers is not None
        and not any(f"{layer}{suffix}" in shapes for layer in layers for suffix in suffixes)
    ):
        held = ", ".join(f"'{name}'" for name in shapes)
        raise UsageError(f"{where} has no array 'x'; it holds {shown(held) or 'nothing'}")


def _names(model: Path) -> set[str] | None:
    """Every name in the configuration of a .keras file; None where it cannot be read."""
    try:
        with opened(model, limit=sys.maxsize) as raw, ZipFile(raw) as archive:
            if archive.getinfo("config.json").file_size > DOCUMENT_BYTES:
                return None
            text = archive.read("config.json").decode()
    except (
        BadZipFile,
        KeyError,
        OSError,
        RuntimeError,
        ValueError,
        NotImplementedError,
    ):  # the loader says what is wrong with it
        return None
    return set(re.findall(r'"name":\s*"((?:[^"\\]|\\.)*)"', text))
