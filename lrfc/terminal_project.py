"""What the command line shows of a project: its options, and comparisons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrfc.settings import Setting
    from lrfc.terminal import Terminal


def settings(terminal: Terminal, found: Mapping[str, Setting], *, as_json: bool) -> None:
    """Each option, its value and where it comes from."""
    if as_json:
        terminal.json({name: {"value": _plain(each.value), "source": each.source} for name, each in found.items()})
        return
    if not found:
        terminal.line("every option has its default; lrfc config --resolved shows them, lrfc init writes a file to change them in")
        return
    terminal.texts("", ("option", "value", "from"), [(name, _shown(each.value), each.source) for name, each in found.items()])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value


def _shown(value: Any) -> str:
    if value is None or value == ():
        return "—"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return json.dumps(value) if isinstance(value, bool) else str(value)
