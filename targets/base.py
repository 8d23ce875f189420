"""The base class of the targets: what each must do, and what some can do in addition."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from lrfc.config.formats import FORMATS
from lrfc.config.precision import Name
from lrfc.costs.latency import Layout
from lrfc.ir.batch import Batch
from lrfc.ir.graph import Graph
from lrfc.protocols import Artifact, Runner
from lrfc.targets.tflite.operators import Operators


class FileTarget(ABC):
    """A target as in ``lrfc.protocols.Target``; defaults for what a format cannot do."""

    precision: Name
    name: ClassVar[str]
    #: Ways in which its runtime may store channels; see CostProfile.
    layouts: ClassVar[Sequence[Layout]] = ((1, 1),)

    @property
    def suffix(self) -> str:
        """The suffix of its files, with the dot."""
        return FORMATS[self.name].suffix

    @abstractmethod
    def refusals(self, graph: Graph) -> Sequence[str]:
        """Every reason why the graph cannot be emitted."""

    @abstractmethod
    def emit(self, graph: Graph, path: Path, calibration: Batch | None = None) -> Artifact:
        """Write the graph to a file."""

    @abstractmethod
    def load(self, artifact: Artifact) -> Runner:
        """Load the file into a runtime on this machine."""

    def direct(self, graph: Graph, path: Path) -> Artifact | None:
        """None: the format's files are written by its converter only."""
        return None

    def same_operators(self, one: Artifact, two: Artifact) -> bool:
        """Whether the files are the same, byte by byte."""
        return one.path.read_bytes() == two.path.read_bytes()

    def emit_trained(self, graph: Graph, model: Any, path: Path) -> Artifact | None:
        """Write nothing: the format cannot hold the ranges of quantisation-aware training."""
        return None

    def reference(self, artifact: Artifact) -> Runner | None:
        """None: the format has no reference kernels."""
        return None

    def scales(self, path: Path) -> tuple[tuple[str, float, int], ...]:
        """Empty: inputs and outputs have the dtypes of the model."""
        return ()

    def with_plan(self) -> FileTarget:
        """The target whose files hold a memory plan; this one where the format cannot hold any."""
        return self

    def within(self, limit_bytes: float) -> FileTarget:
        """This target: the format has no files that compute operators in strips."""
        return self

    def arena_bytes(self, path: Path) -> int | None:
        """The bytes of a file's planned activation arena; None: they cannot be read from it."""
        return None

    def workspace_bytes(self, path: Path) -> int | None:
        """The bytes of a file's activations on processors; None: they are not known."""
        return None

    def tail_bytes(self, graph: Graph) -> int:
        """The bytes beside activations in a microcontroller's RAM: none."""
        return 0

    def need_bytes(self, path: Path) -> int | None:
        """The bytes of ``arena_bytes``: the format knows no others."""
        return self.arena_bytes(path)

    def operators(self, path: Path) -> Operators | None:
        """The operators of a file of unknown origin; None: the format has no reader."""
        return None
