"""Import a runtime or converter that may be missing on this machine."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from lrfc.errors import DependencyError


def need(module: str, package: str) -> Any:
    """Import and return the module; DependencyError names the package to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DependencyError(
            f"'{module}' cannot be imported ({error}); install it with: pip install {package}"
        ) from error


def place(package: str, extra: str) -> Path:
    """The folder of a package, without importing it; DependencyError says how to install it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DependencyError(f"'{package}' is not installed; install it with: pip install {extra}")
    return Path(next(iter(spec.submodule_search_locations)))
