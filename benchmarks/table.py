"""The results of a benchmark: a CSV file that grows row by row."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Table:
    """The rows of a CSV file.

    ``overwrite``: whether adding the first row discards the rows that the file holds.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        if path.exists() and not overwrite:
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = list(csv.DictReader(file))

    def knows(self, **key: Any) -> bool:
        """Whether there is a row with these values."""
        return any(
            all(row.get(name) == str(value) for name, value in key.items()) for row in self.rows
        )

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row, and print it."""
        self.rows.append({name: str(value) for name, value in row.items()})
        print(
            ", ".join(f"{name} {value}" for name, value in self.rows[-1].items() if value),
            flush=True,
        )
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(
                file, list(dict.fromkeys(name for each in self.rows for name in each))
            )
            writer.writeheader()
            writer.writerows(self.rows)
