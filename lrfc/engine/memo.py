"""Work that several destinations share, done once for the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Memo(Generic[T]):
    """Values by the inputs that they were computed from. A value never changes."""

    def __init__(self) -> None:
        self._values: dict[Hashable, T] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of the key; ``make`` computes it the first time."""
        if key not in self._values:
            self._values[key] = make()
        return self._values[key]
