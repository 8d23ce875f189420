"""Work that several destinations share, done once for the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Memo(Generic[T]):
    """Values by what they were made from. A value that is in it never changes."""

    def __init__(self) -> None:
        self._values: dict[Hashable, T] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of the key, made where there is none yet."""
        if key not in self._values:
            self._values[key] = make()
        return self._values[key]
