"""Files whose operators are computed in patches, where a limit on memory asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lrfc.config.build import BuildConfig
from lrfc.engine.destinations import Destination
from lrfc.protocols import Artifact, Target


@dataclass(frozen=True)
class Limit:
    """A limit on the RAM of the files for a destination.

    ``target``: its files are kept within the limit by patches, where they may have any. ``bytes``:
    of activations and, on a microcontroller, the tail. ``asked``: whether the user or the device
    set it; otherwise it is the default, which a file may exceed. ``patches``: whether files may
    have patches.
    """

    target: Target
    bytes: float
    asked: bool
    patches: bool

    def emitted(self, plain: Target, emit: Callable[[Target], Artifact]) -> Artifact:
        """The file that ``emit`` writes for a target, within the limit where that is possible.

        ``plain``: the target without a limit. A file that exceeds the default in spite of patches
        has none: they would cost time, and it would exceed it all the same.
        """
        file = emit(self.target)
        if file.patches and not self.asked and not self.met(file):
            return emit(plain)
        return file

    def met(self, file: Artifact) -> bool:
        """Whether a file is within the limit."""
        need = self.target.need_bytes(file.path)
        return need is None or need <= self.bytes


def limit(goal: Destination, config: BuildConfig, original: Path) -> Limit | None:
    """The limit on the RAM of files that patches or plans with short tails can keep.

    That is on devices that follow a memory plan. ``original``: the original's file. It is the
    least of --max-ram, the device's memory and, without the first, what the original needs. None
    without a limit.
    """
    whole = goal.target.need_bytes(original) if goal.device.follows_plan else None
    if whole is None:
        return None
    budget, available = config.budgets.get("ram"), goal.device.ram_bytes
    asked = [] if budget is None else [budget.limit(whole)]
    if available is not None:
        asked.append(available)
    usual = [whole + goal.device.growth_bytes] if config.max_ram is None else []
    limits = asked + usual
    if not limits:
        return None
    least = min(limits)
    target = goal.target if config.patches == "off" else goal.target.within(least)
    return Limit(target, least, least in asked, target != goal.target)
