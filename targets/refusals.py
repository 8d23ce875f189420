"""What a graph must not have to be emitted. The docstring of each rule is the message and the manual."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lrfc.ir.graph import Graph

#: Gives the names of the ops that break the rule.
Rule = Callable[[Graph], Sequence[str]]


def of(graph: Graph, rules: Sequence[Rule]) -> tuple[str, ...]:
    """One line for each op and rule that it breaks, in the order of the rules."""
    return tuple(f"'{name}': {rule.__doc__}" for rule in rules for name in rule(graph))


def open_axis(graph: Graph) -> Sequence[str]:
    """an input axis other than the batch has no fixed length; re-save the model with a fixed Input shape"""  # noqa: D400
    return [name for name in graph.inputs if None in graph.tensors(name)[0].shape[1:]]


TFLITE: tuple[Rule, ...] = (open_axis,)
TFLITE_INT8: tuple[Rule, ...] = TFLITE
ONNX: tuple[Rule, ...] = (open_axis,)
