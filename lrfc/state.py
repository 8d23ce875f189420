"""What travels through the pipeline (State, Fact) and what acts on it (the Pass and Target protocols)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lrfc.errors import GraphError

if TYPE_CHECKING:
    from lrfc.data.dataset import Data
    from lrfc.ir.graph import Graph

#: A batch for a model with one or more inputs: one array per model input, in the model's order, samples along axis 0.
Batch = tuple[NDArray[Any], ...]


class Fact:
    """Something a pass found out. Facts are frozen dataclasses, stored by their type; one about the graph dies when the graph changes."""

    about_graph: ClassVar[bool] = True


F = TypeVar("F", bound=Fact)


@dataclass(frozen=True)
class Progress:
    """How long work reports itself: ``stage(title, total)`` gives a function to call after each step. The default reports nothing."""

    stage: Callable[[str, int], Callable[[int], None]] = lambda title, total: lambda steps: None
    log: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class State:
    """The value that every pass takes and gives: the graph as it stands, the graph it came from, the data, and the facts known so far.

    ``original`` is the graph before any lossy rewrite: the reference of every similarity and of distillation.
    """

    graph: Graph
    original: Graph
    data: Data
    seed: int = 0
    progress: Progress = field(default_factory=Progress)
    facts: Mapping[type[Fact], Fact] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", MappingProxyType(dict(self.facts)))

    def fact(self, kind: type[F]) -> F:
        """The fact of that type; GraphError when no pass has given it (plan() rules that out)."""
        found = self.facts.get(kind)
        if not isinstance(found, kind):
            raise GraphError(f"nothing is known of {kind.__name__}: no earlier pass gives it")
        return found

    def known(self, kind: type[F]) -> F | None:
        """The fact of that type, or None."""
        found = self.facts.get(kind)
        return found if isinstance(found, kind) else None

    def with_fact(self, *facts: Fact) -> State:
        """This state with facts added or replaced."""
        return replace(self, facts={**self.facts, **{type(fact): fact for fact in facts}})

    def with_graph(self, graph: Graph) -> State:
        """This state with another graph; the facts about the old one are dropped."""
        return replace(self, graph=graph, facts={kind: fact for kind, fact in self.facts.items() if not kind.about_graph})


class Pass(Protocol):
    """A frozen dataclass whose fields are its options.

    ``needs``: the facts that must be known before it. ``gives``: the facts that it adds. ``rewrites``: whether it changes the graph.
    """

    needs: ClassVar[tuple[type[Fact], ...]]
    gives: ClassVar[tuple[type[Fact], ...]]
    rewrites: ClassVar[bool]

    def __call__(self, state: State) -> State:
        """The state after the pass. The given state is not changed."""
        ...


@dataclass(frozen=True)
class Artifact:
    """An emitted file. ``format`` is 'tflite' or 'onnx', ``precision`` a name of lrfc.config.precision."""

    path: Path
    format: str
    precision: str

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size


class Runner(Protocol):
    """A loaded artifact."""

    def __call__(self, batch: Batch) -> Batch:
        """The model's outputs (float32 or as the model has them) for a batch of any size."""
        ...


class Target(Protocol):
    """A file format together with the runtime that executes it. A frozen dataclass; ``precision`` is one of its fields."""

    @property
    def name(self) -> str:
        """The name on the command line, such as 'tflite'."""
        ...

    @property
    def precision(self) -> str:
        """A name of lrfc.config.precision."""
        ...

    def refusals(self, graph: Graph) -> Sequence[str]:
        """Every reason why the graph cannot be emitted, one line each, before any work. Empty when it can."""
        ...

    def emit(self, graph: Graph, path: Path, calibration: Batch | None = None) -> Artifact:
        """Write the file. ``calibration`` holds representative inputs, needed for integer precisions. ModelError when the converter fails."""
        ...

    def load(self, artifact: Artifact) -> Runner:
        """The file, ready to run on this machine."""
        ...


def batches(inputs: Batch, size: int) -> Iterator[Batch]:
    """The samples in consecutive batches; the last may be smaller."""
    for start in range(0, len(inputs[0]), size):
        yield tuple(np.asarray(x[start : start + size]) for x in inputs)
