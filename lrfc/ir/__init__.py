"""The intermediate representation: a graph of operations between the Keras model and the emitted file."""

from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref, Slot, Tensor

__all__ = ["Graph", "Op", "Ref", "Slot", "Tensor"]
