"""Intermediate representation: the graph between a Keras model and an emitted file."""

from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref, Slot, Tensor

__all__ = ["Graph", "Op", "Ref", "Slot", "Tensor"]
