"""The command that makes a build again, from its manifest."""

from __future__ import annotations

import shlex
from typing import Any

from lrfc.config.build import BuildConfig
from lrfc.config.options import FIELDS, OPTIONS
from lrfc.results.manifest import Manifest
from lrfc.results.report.text import option

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
