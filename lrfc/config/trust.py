"""Options that a file cannot decide for the user: code that is run, a device by its path, a folder that is written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lrfc.errors import UsageError
from lrfc.system.reader import shown

#: A function of Python's, as it is named for --data and --metric: package.module:function.
FUNCTION = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
#: The same as a metric, with what is better.
METRIC = re.compile(rf"(?P<function>{FUNCTION.pattern})(?::(?P<way>min|max))?")


def refuse(options: Mapping[str, Any], where: str, *, out: bool = True) -> None:
    """Raise UsageError when options that stand in a file alone ask for what only the user may.

    ``options``: by their names on the command line, without those that the user gave as well.
    ``where``: the file. ``out``: whether the output folder is the user's to name, too.
    """
    for name, value in options.items():
        for each in _each(value):
            reason = _reason(name, each, out=out)
            if reason is not None:
                flag = f"--{name.replace('_', '-')}" + ("" if each is True else f" {shown(each)}")
                way_out = f"if that is what you want, say the same yourself: {flag}"
                asked = f"{where}: {name} = {shown(each)}: {reason}"
                raise UsageError(f"{asked}, which a file cannot ask for; {way_out}")


def _each(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _reason(name: str, value: Any, *, out: bool) -> str | None:
    text = str(value)
    if name in ("data", "test_data") and FUNCTION.fullmatch(text):
        return "it runs a function of Python's"
    if name == "metric" and METRIC.fullmatch(text):
        return "it runs a function of Python's"
    if name == "device" and text.endswith(".toml"):
        return "it is a device by its path"
    if name == "unsafe_load" and value not in (None, False):
        return "code in the model file is run"
    if name == "out" and out and value is not None:
        return "it says where files are written"
    return None
