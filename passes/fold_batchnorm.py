"""Remove what is only there for training: Dropout-like layers, and BatchNorms that the layer before can take in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lrfc.ir.fold import drop_dropout, fold_batchnorm
from lrfc.state import Fact, State


@dataclass(frozen=True)
class FoldBatchNorm:
    """Drop Dropout-like layers and fold every BatchNorm that can be folded.

    The last rewrite before the graph is emitted.
    """

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = True

    def __call__(self, state: State) -> State:
        """The state with the folded graph."""
        return state.with_graph(fold_batchnorm(drop_dropout(state.graph)))
