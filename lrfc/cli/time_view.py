"""Output of the time profile of a build."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lrfc.text import NONE, count, percent

if TYPE_CHECKING:
    from lrfc.cli.console import Terminal
    from lrfc.results.time_profile import Entry


def time_profile(terminal: Terminal, profile: Entry) -> None:
    """Print the total, and the stages that took the most."""
    from lrfc.results.time_profile import largest

    terminal.line(
        f"time: {profile.seconds:.1f} s; CPU: {profile.cpu_seconds:.1f} s, and"
        f" {profile.children_seconds:.1f} s of child processes;"
        f" {count(profile.page_faults)} page faults"
    )
    terminal.table(
        "",
        ("most of it", "seconds", "share", "CPU seconds", "page faults"),
        [
            (
                total.name,
                f"{total.seconds:.1f}",
                percent(total.seconds / profile.seconds, 0) if profile.seconds else NONE,
                f"{total.cpu_seconds + total.children_seconds:.1f}",
                count(total.page_faults),
            )
            for total in largest(profile)
        ],
    )
