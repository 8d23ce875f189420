"""Rewrite the selected layers into their low-rank stages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from lrfc.ir.op import Op
from lrfc.pruning.facts import Selection
from lrfc.state import Fact, State


@dataclass(frozen=True)
class Factorize:
    """Replace each selected layer by the chain of its factors; the last stage keeps the layer's name.

    Given (channel SVD of rank 8)::

        conv = Conv2D(x) filters=32 kernel_size=3 padding=same -> (?, 16, 16, 32)

    Result::

        conv__kernel = Conv2D(x) filters=8 kernel_size=3 padding=same use_bias=False -> (?, 16, 16, 8)
        conv = Conv2D(conv__kernel) filters=32 kernel_size=1 -> (?, 16, 16, 32)
    """

    needs: ClassVar[tuple[type[Fact], ...]] = (Selection,)
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = True

    def __call__(self, state: State) -> State:
        """The state with the rewritten graph.

        A shared layer is factorized once, and every call reads the same factors.
        """
        selection = state.fact(Selection)
        graph = state.graph.copy()
        for candidate in selection.chosen:
            if candidate.method is None:
                continue
            stages = selection.factors[candidate.layer].stages(candidate.ranks)
            for number, call in enumerate(graph.calls(graph.op(candidate.layer))):
                graph.splice(
                    call.name, stages if number == 0 else _call(stages, candidate.layer, call.name)
                )
        return state.with_graph(graph)


def _call(stages: list[Op], layer: str, call: str) -> list[Op]:
    """The stages of the layer's first call, named for another call of it."""
    return [replace(stage, name=call + stage.name.removeprefix(layer)) for stage in stages]
