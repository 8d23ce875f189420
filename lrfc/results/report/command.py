"""The command that makes a build again, from its manifest."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from lrfc.config.build import Budget, BuildConfig
from lrfc.config.options import FIELDS, OPTIONS
from lrfc.results.manifest import Manifest
from lrfc.text import NONE

#: What a configuration says of data that were given as arrays.
FROM_PYTHON = "(from Python)"
#: What the command line takes no number for without a unit, and the unit of one that a manifest
#: holds without it.
_UNITS = {"max_latency": "ms", "time_budget": "s"}


def command(manifest: Manifest) -> str | None:
    """A line for a shell; None where data came from Python, which no command line can name."""
    config = manifest.config
    if FROM_PYTHON in (config.get("data"), config.get("test_data")):
        return None
    words = ["lrfc", "build", manifest.input.path]
    defaults = BuildConfig().model_dump(mode="json")
    for name in OPTIONS:
        field = FIELDS.get(name, name)
        if (
            name not in ("out", "resume", "print_after", "stop_after")
            and field in config
            and config[field] != defaults[field]
        ):
            words += _words(name, config[field])
    return shlex.join(words)


def _words(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if name == "methods":
        return [flag, ",".join(value)]
    if isinstance(value, list | tuple):
        return [word for each in value for word in (flag, str(each))]
    shown = option(value)
    return [flag, shown + _UNITS.get(name, "") if shown[-1].isdigit() else shown]


def option(value: Any) -> str:
    """The value of an option as it is written on the command line: a budget with its unit, a drop in percentage points."""
    if isinstance(value, Mapping) and {"value", "relative"} <= set(value):
        return str(Budget.model_validate(value))
    if isinstance(value, Mapping) and set(value) == {"value", "confidence"}:
        sure = "" if value["confidence"] is None else f"@{100 * value['confidence']:g}%"
        return f"{100 * value['value']:.4g}pp{sure}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(option, value)) or NONE
    if isinstance(value, float):
        return f"{value:.10g}"
    return NONE if value is None else str(value)
