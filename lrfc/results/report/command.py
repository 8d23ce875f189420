"""The command that repeats a build, from its manifest, and options as text."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from lrfc.config.build import Budget, BuildConfig
from lrfc.config.options import FIELDS, OPTIONS
from lrfc.results.manifest import Manifest
from lrfc.text import NONE

#: The data of a configuration whose data were Python arrays.
FROM_PYTHON = "(from Python)"
#: Options whose value needs a unit on the command line, with the unit of a number in a manifest.
_UNITS = {"max_latency": "ms", "time_budget": "s", "memory": "B"}


def command(manifest: Manifest) -> str | None:
    """Return a command for a shell; None where the data were Python arrays."""
    config = manifest.config
    if FROM_PYTHON in (config.get("data"), config.get("test_data")):
        return None
    words = ["lrfc", "build", manifest.input.path]
    defaults = BuildConfig().model_dump(mode="json")
    for name in OPTIONS:
        field = FIELDS.get(name, name)
        if (
            name not in ("out", "resume", "profile", "log_dir", "print_after", "stop_after")
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
        return [word for item in value for word in (flag, str(item))]
    text = option(value)
    return [flag, text + _UNITS.get(name, "") if text[-1].isdigit() else text]


def option(value: Any) -> str:
    """The value of an option as on the command line: a budget with its unit, a drop in points."""
    if isinstance(value, Mapping) and {"value", "relative"} <= set(value):
        return str(Budget.model_validate(value))
    if isinstance(value, Mapping) and set(value) == {"value", "confidence"}:
        level = "" if value["confidence"] is None else f"@{100 * value['confidence']:g}%"
        return f"{100 * value['value']:.4g}pp{level}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(option, value)) or NONE
    if isinstance(value, float):
        return f"{value:.10g}"
    return NONE if value is None else str(value)
