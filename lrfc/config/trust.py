"""Options that a file may not set by itself: they run code, or name a device or a folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lrfc.errors import UsageError
from lrfc.system.reader import shown

#: A Python function as --data and --metric name it: package.module:function.
FUNCTION = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
#: The same as a metric: append :min where lower is better.
METRIC = re.compile(rf"(?P<function>{FUNCTION.pattern})(?::(?P<way>min|max))?")


def refuse(options: Mapping[str, Any], where: str, *, out: bool = True) -> None:
    """Raise UsageError for an option from a file that only the user may set.

    ``options``: values by option, without those that the user has set as well. ``where``: the file.
    ``out``: whether the output folder is refused, too.
    """
    for name, value in options.items():
        for item in _items(value):
            reason = _reason(name, item, out=out)
            if reason is not None:
                flag = f"--{name.replace('_', '-')}" + ("" if item is True else f" {shown(item)}")
                setting = f"{where}: {name} = {shown(item)}: {reason}"
                raise UsageError(
                    f"{setting}, which a file may not decide; to allow it, set it yourself: {flag}"
                )


def _items(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _reason(name: str, value: Any, *, out: bool) -> str | None:
    """Return why a file may not set the option to that value; None where it may."""
    text = str(value)
    if name in ("data", "test_data") and FUNCTION.fullmatch(text):
        return "it runs a Python function"
    if name == "metric" and METRIC.fullmatch(text):
        return "it runs a Python function"
    if name == "device" and text.endswith(".toml"):
        return "it names a device by its path"
    if name == "unsafe_load" and value not in (None, False):
        return "it runs code in the model file"
    if name in ("out", "log_dir") and out and value is not None:
        return "it names the folder to write to"
    return None
