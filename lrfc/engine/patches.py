"""Files whose operators are computed in patches, where a limit on memory asks for it."""

from __future__ import annotations

from pathlib import Path

from lrfc.config.build import BuildConfig
from lrfc.engine.destinations import Destination
from lrfc.protocols import Target


def patched(goal: Destination, config: BuildConfig, original: Path) -> Target:
    """The target of a destination, whose files keep within ``limit`` by patches if they have to.

    ``original``: the original's file. Without a limit, with --patches off, and on devices whose
    runtime does not follow a memory plan, it is the target itself.
    """
    target = goal.target
    bytes_allowed = limit(goal, config, original)
    if config.patches == "off" or bytes_allowed is None or not goal.device.follows_plan:
        return target
    return target.within(bytes_allowed)


def limit(goal: Destination, config: BuildConfig, original: Path) -> float | None:
    """The bytes of the arena that --max-ram and the device allow; None without a limit."""
    whole, budget = goal.target.need_bytes(original), config.budgets.get("ram")
    limits = [] if budget is None or whole is None else [budget.limit(whole)]
    if goal.device.ram_bytes is not None:
        limits.append(goal.device.ram_bytes)
    return min(limits, default=None)
