"""Files whose operators are computed in patches, where a limit on memory asks for it."""

from __future__ import annotations

from pathlib import Path

from lrfc.config.build import BuildConfig
from lrfc.engine.destinations import Destination
from lrfc.protocols import Target


def patched(goal: Destination, config: BuildConfig, original: Path) -> Target:
    """The target of a destination, whose files keep within ``limit`` by patches if they have to.

    ``original``: the original's file. Without a limit or patches it is the target itself.
    """
    bytes_allowed = limit(goal, config, original)
    if bytes_allowed is None or not available(goal, config):
        return goal.target
    return goal.target.within(bytes_allowed)


def available(goal: Destination, config: BuildConfig) -> bool:
    """Whether the files of a destination may have patches.

    They may in int8, where the runtime follows a memory plan, and without --patches off.
    """
    possible = goal.device.follows_plan and goal.target.within(0.0) != goal.target
    return possible and config.patches != "off"


def limit(goal: Destination, config: BuildConfig, original: Path) -> float | None:
    """The bytes of the arena that --max-ram and the device allow; None without a limit."""
    whole, budget = goal.target.need_bytes(original), config.budgets.get("ram")
    limits = [] if budget is None or whole is None else [budget.limit(whole)]
    if goal.device.ram_bytes is not None:
        limits.append(goal.device.ram_bytes)
    return min(limits, default=None)
