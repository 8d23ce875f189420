"""Public functions between Keras models and graphs: import, export, inference, saving, running."""

from __future__ import annotations

from lrfc.ir.keras.export import absorb, save, to_keras
from lrfc.ir.keras.importer import from_keras
from lrfc.ir.keras.layers import eager, infer, layer_of, single
from lrfc.ir.keras.outputs import first_outputs, outputs, storable
from lrfc.ir.keras.run import call, compiled, outputs_at, predict

__all__ = [
    "absorb",
    "call",
    "compiled",
    "eager",
    "first_outputs",
    "from_keras",
    "infer",
    "layer_of",
    "outputs",
    "outputs_at",
    "predict",
    "save",
    "single",
    "storable",
    "to_keras",
]
