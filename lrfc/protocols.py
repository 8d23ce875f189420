"""The protocols of passes, targets and runners, and the emitted file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from lrfc.ir.batch import Batch
from lrfc.ir.graph import Graph
from lrfc.state import Fact, State


class Pass(Protocol):
    """A frozen dataclass whose fields are its options.

    ``needs``: the facts that must be known before it. ``gives``: the facts that it adds.
    ``rewrites``: whether it changes the graph.
    """

    needs: ClassVar[tuple[type[Fact], ...]]
    gives: ClassVar[tuple[type[Fact], ...]]
    rewrites: ClassVar[bool]

    def __call__(self, state: State) -> State:
        """Return the state after the pass. The argument is not changed."""
        ...


class Patch(NamedTuple):
    """Operators of a file that are computed in ``strips`` of rows, one strip after the other.

    ``first`` and ``last``: the first and the last of them, named by what they compute.
    """

    first: str
    last: str
    strips: int


@dataclass(frozen=True)
class Artifact:
    """An emitted file.

    ``format``: a name of lrfc.config.formats. ``precision``: a name of lrfc.config.precision.
    ``patches``: its operators in strips. ``added_macs``: the MACs that strips compute more than
    once, beyond those of the graph.
    """

    path: Path
    format: str
    precision: str
    patches: tuple[Patch, ...] = ()
    added_macs: int = 0

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size


class Runner(Protocol):
    """A loaded artifact."""

    def __call__(self, batch: Batch) -> Batch:
        """The model's outputs for a batch of any size, in float32 or the model's own type."""
        ...


class Target(Protocol):
    """A file format together with the runtime that executes it.

    A frozen dataclass; ``precision`` is one of its fields.
    """

    @property
    def name(self) -> str:
        """The name on the command line, such as 'tflite'."""
        ...

    @property
    def precision(self) -> str:
        """A name of lrfc.config.precision."""
        ...

    @property
    def suffix(self) -> str:
        """The suffix of its files, with the dot."""
        ...

    def refusals(self, graph: Graph) -> Sequence[str]:
        """The reasons why the graph cannot be emitted, one line each; empty when it can."""
        ...

    def emit(self, graph: Graph, path: Path, calibration: Batch | None = None) -> Artifact:
        """Write the file of a graph.

        ``calibration``: representative inputs, needed for integer precisions. ModelError when the
        converter fails.
        """
        ...

    def direct(self, graph: Graph, path: Path) -> Artifact | None:
        """Write the file of a graph without the converter, to measure it.

        None, without a file, where the format, the precision or an op of the graph needs that.
        Whether such files are those of the converter is to be tried: see ``same_operators``.
        """
        ...

    def same_operators(self, one: Artifact, two: Artifact) -> bool:
        """Whether two files have the same operators on tensors of the same shapes."""
        ...

    def load(self, artifact: Artifact) -> Runner:
        """Load the file to run it on this machine."""
        ...

    def emit_trained(self, graph: Graph, model: Any, path: Path) -> Artifact | None:
        """Write the file of a model after quantisation-aware training.

        None, without a file, where the format does not support that. ModelError when the converter
        fails.
        """
        ...

    def reference(self, artifact: Artifact) -> Runner | None:
        """Load the file with reference kernels; None where the runtime has none."""
        ...

    def need_bytes(self, path: Path) -> int | None:
        """The bytes that ``within`` limits: the arena's, and its tail's on a microcontroller."""
        ...

    def within(self, limit_bytes: float) -> Target:
        """The target whose files compute operators in strips where their arena needs more.

        This one where the format or the precision has no such files.
        """
        ...

    def operators(self, path: Path) -> Any:
        """The operators of a file; None where the format has no reader."""
        ...

    def arena_bytes(self, path: Path) -> int | None:
        """The bytes of the planned activation arena of a file; None where it does not tell them."""
        ...

    def workspace_bytes(self, path: Path) -> int | None:
        """The bytes that a runtime on processors takes for the activations of a file.

        Computed by the rule of its library of kernels; None where that is not known.
        """
        ...

    def tail_bytes(self, graph: Graph) -> int:
        """The bytes beside activations that the runtime needs in a microcontroller's RAM.

        0 for any other device.
        """
        ...

    def scales(self, path: Path) -> tuple[tuple[str, float, int], ...]:
        """Name, scale and zero point of each input and output of a file that holds integers."""
        ...
