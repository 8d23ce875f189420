"""The targets by name, as ``lrfc.config.formats`` lists them."""

from __future__ import annotations

from importlib import import_module

from lrfc.config.formats import FORMATS
from lrfc.errors import UsageError
from lrfc.targets.base import FileTarget


def target(name: str, precision: str = "fp32", *, int8_io: bool = False) -> FileTarget:
    """Return the target of that name and precision; UsageError when there is none.

    ``int8_io``: its files have int8 inputs and outputs.
    """
    if name not in FORMATS:
        raise UsageError(f"unknown target '{name}'; known are {', '.join(FORMATS)}")
    module, _, kind = FORMATS[name].target.partition(":")
    created: FileTarget = getattr(import_module(module), kind)(precision, int8_io)
    return created
