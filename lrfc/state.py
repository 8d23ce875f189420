"""The values that travel through the pipeline: State, its Facts, and the Progress of the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from lrfc.errors import GraphError

if TYPE_CHECKING:
    from lrfc.data.dataset import Data
    from lrfc.ir.graph import Graph


class Fact:
    """A result of a pass.

    Facts are frozen dataclasses, stored by their type. A fact about the graph is dropped when the
    graph changes.
    """

    about_graph: ClassVar[bool] = True


F = TypeVar("F", bound=Fact)


@dataclass(frozen=True)
class Progress:
    """Reports of the progress of a build; by default none.

    ``stage(title, total)`` returns a function to call after each step. ``log`` takes one line.
    ``callbacks``: keras.callbacks.Callback, called by the fine-tune.
    """

    stage: Callable[[str, int], Callable[[int], None]] = lambda title, total: lambda steps: None
    log: Callable[[str], None] = lambda line: None
    callbacks: Sequence[Any] = ()


@dataclass(frozen=True)
class State:
    """The input and the output of every pass: the graph, the data, and the facts known so far.

    ``original``: the graph before any lossy rewrite, the reference of all similarities and of
    distillation.
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
        """The fact of that type; GraphError when no pass has added it (plan() rules that out)."""
        fact = self.facts.get(kind)
        if not isinstance(fact, kind):
            raise GraphError(f"there is no fact {kind.__name__}: no earlier pass gives it")
        return fact

    def known(self, kind: type[F]) -> F | None:
        """The fact of that type, or None."""
        fact = self.facts.get(kind)
        return fact if isinstance(fact, kind) else None

    def with_fact(self, *facts: Fact) -> State:
        """This state with facts added or replaced."""
        return replace(self, facts={**self.facts, **{type(fact): fact for fact in facts}})

    def with_graph(self, graph: Graph) -> State:
        """This state with another graph; the facts about the old one are dropped."""
        return replace(
            self,
            graph=graph,
            facts={kind: fact for kind, fact in self.facts.items() if not kind.about_graph},
        )
