"""Replace the selected layers by their factor layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from lrfc.ir.op import Op
from lrfc.pruning.facts import Selection
from lrfc.state import Fact, State


@dataclass(frozen=True)
class Factorize:
    """Replace each selected layer by a chain of factor layers; the last one keeps its name.

    A shared layer is factorized once, and all of its calls share the factor layers.

    Given (channel SVD of rank 8)::

        conv = Conv2D(x) filters=32 kernel_size=3 -> (?, 14, 14, 32)

    Result::

        conv__kernel = Conv2D(x) filters=8 kernel_size=3 use_bias=False -> (?, 14, 14, 8)
        conv = Conv2D(conv__kernel) filters=32 kernel_size=1 -> (?, 14, 14, 32)
    """

    needs: ClassVar[tuple[type[Fact], ...]] = (Selection,)
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = True

    def __call__(self, state: State) -> State:
        """The state with the factorized graph."""
        selection = state.fact(Selection)
        graph = state.graph.copy()
        for candidate in selection.chosen:
            if candidate.method is None:
                continue
            layers = selection.factors[candidate.layer].stages(candidate.ranks)
            for number, call in enumerate(graph.calls(graph.op(candidate.layer))):
                graph.splice(
                    call.name, layers if number == 0 else _call(layers, candidate.layer, call.name)
                )
        return state.with_graph(graph)


def _call(factor_layers: list[Op], layer: str, call: str) -> list[Op]:
    """The factor layers of a layer's first call, named for another call of it."""
    return [replace(op, name=call + op.name.removeprefix(layer)) for op in factor_layers]
