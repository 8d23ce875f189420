"""Output of ``lrfc config`` and ``lrfc compare``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrfc.text import NONE, relative_change

if TYPE_CHECKING:
    from lrfc.cli.console import Terminal
    from lrfc.config.resolve import Setting
    from lrfc.results.compare import Comparison


def settings(terminal: Terminal, options: Mapping[str, Setting], *, as_json: bool) -> None:
    """Print each option with its value and its source."""
    if as_json:
        terminal.json(
            {
                name: {"value": _plain(setting.value), "source": setting.source}
                for name, setting in options.items()
            }
        )
        return
    if not options:
        terminal.line(
            "every option has its default; lrfc config --resolved prints them, lrfc init writes a"
            " file to change them"
        )
        return
    terminal.texts(
        "",
        ("option", "value", "source"),
        [(name, _shown(setting.value), setting.source) for name, setting in options.items()],
    )


def compared(terminal: Terminal, comparison: Comparison, *, as_json: bool) -> None:
    """Print the figures and the layers of both sides, and the verdict on each limit."""
    from lrfc.results.compare import QUANTITIES

    if as_json:
        terminal.json(comparison.to_json())
        return
    before, after = comparison.before, comparison.after
    rows = [
        (
            _named(comparison, q),
            before.shown(q),
            after.shown(q),
            _change(before.figures[q], after.figures[q]),
        )
        for q in QUANTITIES
        if (before.figures[q], after.figures[q]) != (None, None)
    ]
    terminal.table(f"{before.path} → {after.path}", ("", "before", "after", "change"), rows)
    changed = [
        (
            name,
            old.label if old else NONE,
            new.label if new else NONE,
            _change(old.params if old else None, new.params if new else None),
            _change(old.macs if old else None, new.macs if new else None),
        )
        for name, old, new in comparison.changed
    ]
    same = len(set(before.layers) | set(after.layers)) - len(changed)
    if changed:
        terminal.table(
            "layers that differ", ("layer", "before", "after", "params", "MACs"), changed
        )
    terminal.line(f"layers: {len(changed)} differ, {same} are equal")
    for verdict in comparison.verdicts:
        terminal.line(f"{'ok' if verdict.ok else 'REGRESSED'}: {verdict.detail}")


def _named(comparison: Comparison, quantity: str) -> str:
    """A quantity with the source of its figures, where it is one of the device."""
    sources = dict.fromkeys(
        source
        for side in (comparison.before, comparison.after)
        if (source := side.source(quantity)) is not None
    )
    return ", ".join([quantity, " and ".join(sources)]) if sources else quantity


def _change(before: float | None, after: float | None) -> str:
    if not before or after is None:
        return NONE
    return relative_change(before, after) or "="


def _plain(value: Any) -> Any:
    return (
        list(value)
        if isinstance(value, tuple)
        else str(value)
        if isinstance(value, Path)
        else value
    )


def _shown(value: Any) -> str:
    if value is None or value == ():
        return NONE
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return json.dumps(value) if isinstance(value, bool) else str(value)
