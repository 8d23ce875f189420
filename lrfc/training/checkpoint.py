"""Checkpoints of a training: written whole or not at all, read back by the same training only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.data import mapped as streams
from lrfc.data.dataset import Split
from lrfc.errors import UsageError
from lrfc.ir.fingerprint import digest
from lrfc.ir.graph import Graph
from lrfc.system import files
from lrfc.system.reader import json_object, kind

#: Rows of each array that the fingerprint of a data set covers.
_ROWS = 256


@dataclass(frozen=True)
class Saved:
    """The content of a checkpoint.

    ``numbers``: values by name (JSON). ``state``: the arrays to continue with. ``best``: the best
    weights so far.
    """

    numbers: dict[str, Any]
    state: list[NDArray[Any]]
    best: list[NDArray[Any]]


class Checkpoint:
    """A file in ``folder``, named by the fingerprint of what is trained."""

    def __init__(self, folder: Path, fingerprint: str, log: Callable[[str], None]) -> None:
        self.path = folder / f"finetune-{fingerprint[:20]}.npz"
        self._fingerprint, self._log = fingerprint, log

    def write(self, saved: Saved) -> None:
        """Replace the file. UsageError when the folder cannot be written."""
        meta = json.dumps({"fingerprint": self._fingerprint, "numbers": saved.numbers})
        arrays: dict[str, Any] = {f"state{i}": a for i, a in enumerate(saved.state)} | {
            f"best{i}": a for i, a in enumerate(saved.best)
        }
        about = np.frombuffer(meta.encode(), np.uint8)
        files.write_with(
            self.path,
            lambda file: np.savez(file, meta=about, **arrays),
            parents=True,
            way_out="give another folder, or none",
        )

    def read(self) -> Saved | None:
        """The content that was written for the same fingerprint.

        None when there is no file, or when it is damaged, which is logged.
        """
        if kind(self.path) is None:
            return None
        try:
            arrays = streams.npz(self.path)
            meta = json_object(arrays["meta"].tobytes(), "its description", constants=True)
            if meta["fingerprint"] != self._fingerprint:
                raise UsageError("it belongs to another training")
            state, best = (
                [arrays[f"{part}{i}"] for i in range(sum(key.startswith(part) for key in arrays))]
                for part in ("state", "best")
            )
            if not isinstance(meta["numbers"], dict):
                raise UsageError("it has no numbers")
            return Saved(meta["numbers"], state, best)
        except (KeyError, UsageError) as error:
            self._log(f"  checkpoint {self.path.name} is ignored: {error}")
            return None

    def remove(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)


def fingerprint(*parts: Graph | Split | object) -> str:
    """The digest of graphs, options, and data: their size and 256 evenly spaced samples."""
    pieces = (_sampled(part) if isinstance(part, Split) else (part,) for part in parts)
    return digest(*chain.from_iterable(pieces))


def _sampled(split: Split) -> Iterator[object]:
    yield len(split), len(split.inputs)
    rows = np.unique(np.linspace(0, len(split) - 1, _ROWS).astype(np.intp))
    weights = () if split.weights is None else (split.weights,)
    for array in (*split.inputs, *(split.targets or ()), *weights):
        yield array[rows]
