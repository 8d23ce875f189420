"""What the command line shows of a project: its options, and comparisons."""

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


def settings(terminal: Terminal, found: Mapping[str, Setting], *, as_json: bool) -> None:
    """Each option, its value and where it comes from."""
    if as_json:
        terminal.json(
            {
                name: {"value": _plain(each.value), "source": each.source}
                for name, each in found.items()
            }
        )
        return
    if not found:
        terminal.line(
            "every option has its default; lrfc config --resolved shows them, lrfc init writes a"
            " file to change them in"
        )
        return
    terminal.texts(
        "",
        ("option", "value", "from"),
        [(name, _shown(each.value), each.source) for name, each in found.items()],
    )


def compared(terminal: Terminal, found: Comparison, *, as_json: bool) -> None:
    """Figures and layers of both sides, and what became of the limits."""
    from lrfc.results.compare import QUANTITIES

    if as_json:
        terminal.json(found.to_json())
        return
    before, after = found.before, found.after
    rows = [
        (
            _named(found, q),
            before.shown(q),
            after.shown(q),
            _change(before.figures[q], after.figures[q]),
        )
        for q in QUANTITIES
        if (before.figures[q], after.figures[q]) != (None, None)
    ]
    terminal.table(
        f"{found.before.path} → {found.after.path}", ("", "before", "after", "change"), rows
    )
    changed = [
        (
            name,
            old.label if old else NONE,
            new.label if new else NONE,
            _change(old.params if old else None, new.params if new else None),
            _change(old.macs if old else None, new.macs if new else None),
        )
        for name, old, new in found.changed
    ]
    same = len(set(found.before.layers) | set(found.after.layers)) - len(changed)
    if changed:
        terminal.table(
            "layers that differ", ("layer", "before", "after", "params", "MACs"), changed
        )
    terminal.line(f"layers: {len(changed)} differ, {same} do not")
    for each in found.verdicts:
        terminal.line(f"{'ok' if each.ok else 'REGRESSED'}: {each.told}")


def _named(found: Comparison, quantity: str) -> str:
    """A quantity with where its figures come from, where that is the device or stands for it."""
    sources = dict.fromkeys(
        each for side in (found.before, found.after) if (each := side.source(quantity)) is not None
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
