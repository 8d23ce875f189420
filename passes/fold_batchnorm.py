"""Bring the network to its form for inference: without Dropout, and with BatchNorms folded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lrfc.ir.fold import drop_dropout, inference_form
from lrfc.state import Fact, State


@dataclass(frozen=True)
class FoldBatchNorm:
    """Drop Dropout-like layers, and fold every BatchNorm into the linear layer before it.

    A BatchNorm that no linear layer can absorb stays. Zero padding moves behind the pointwise
    convolutions without bias that read it. lrfc.ir.fold and lrfc.ir.padding have the rewrites.

    Given::

        conv = Conv2D(x) filters=8 kernel_size=3 use_bias=False -> (?, 6, 6, 8)
        bn = BatchNormalization(conv) -> (?, 6, 6, 8)
        drop = Dropout(bn) -> (?, 6, 6, 8)

    Result::

        conv = Conv2D(x) filters=8 kernel_size=3 -> (?, 6, 6, 8)
    """

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = ()
    rewrites: ClassVar[bool] = True

    def __call__(self, state: State) -> State:
        """The state with the folded graph."""
        return state.with_graph(inference_form(drop_dropout(state.graph)))
