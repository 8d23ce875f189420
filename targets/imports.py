"""Import a runtime or converter that may be missing on this machine."""

from __future__ import annotations

import importlib
from typing import Any

from lrfc.errors import DependencyError


def need(module: str, package: str) -> Any:
    """The module; DependencyError names the package to install when it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DependencyError(f"'{module}' cannot be imported ({error}); install it with: pip install {package}") from error
