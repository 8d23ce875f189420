"""lrfc: a compiler that compresses trained Keras models by low-rank factorization and pruning."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lrfc.version import __version__

if TYPE_CHECKING:
    from lrfc.api import build

__all__ = ["__version__", "build"]

#: Public name → its module, imported on first use because it is slow to load.
_LAZY = {"build": "lrfc.api"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lrfc' has no attribute '{name}'")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
