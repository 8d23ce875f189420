"""Settings of the process, overridden for blocks of code that may overlap in several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Saved = TypeVar("Saved")
Value = TypeVar("Value")


class Override(Generic[Saved, Value]):
    """A setting that blocks of code override.

    The first block to begin saves the setting, and the last one to end restores it. In between, the
    value of the block that began last holds. If each block saved and restored the setting, as
    nested blocks of one thread may, blocks that overlap would restore each other's values.

    ``read`` returns the setting in a form that ``restore`` accepts; ``write`` changes it.
    """

    def __init__(
        self,
        read: Callable[[], Saved],
        write: Callable[[Value], object],
        restore: Callable[[Saved], object],
    ) -> None:
        self._read, self._write, self._restore = read, write, restore
        self._lock = threading.RLock()
        self._blocks: list[tuple[object, Value]] = []
        self._saved: list[Saved] = []  # one item while there are blocks

    @contextmanager
    def to(self, value: Value) -> Iterator[Saved]:
        """Context manager: override the setting; yield its saved value."""
        block = (object(), value)
        with self._lock:
            if not self._blocks:
                self._saved = [self._read()]
            self._blocks.append(block)
        try:
            with self._lock:
                self._write(value)
                (saved,) = self._saved
            yield saved
        finally:
            with self._lock:
                last = self._blocks[-1] is block
                self._blocks = [other for other in self._blocks if other is not block]
                if not self._blocks:
                    self._restore(self._saved.pop())
                elif last:
                    self._write(self._blocks[-1][1])

    @contextmanager
    def held(self) -> Iterator[tuple[Saved | None, tuple[Value, ...]]]:
        """Context manager: keep other threads from changing the setting.

        Yields the saved value (None when no block is in progress), and the values of the blocks in
        progress, oldest first.
        """
        with self._lock:
            saved = self._saved[0] if self._saved else None
            yield saved, tuple(value for _, value in self._blocks)
