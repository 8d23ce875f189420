"""The input kernels of a recurrent layer as one matrix.

At every step a cell adds two products: of the step's input with its kernel, and of its own state
with its recurrent kernel. The first has the same form as a fully connected layer, so a matrix
product of rank R in front of the layer reduces it, and the layer stays the one that runtimes fuse.
The recurrent kernel is read inside the loop: two factors of it need a cell of their own, which
TFLite and ONNX would run op by op in place of their fused LSTM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.ir.op import Op

#: The kinds whose kernels are matrices.
PLAIN = frozenset({"LSTM", "GRU", "SimpleRNN"})


def refusal(op: Op) -> str | None:
    """The reason why the input kernels of a recurrent layer cannot be factorized, or None."""
    inner = [part for key in ("layer", "backward_layer") if (part := op.attrs.get(key))]
    if op.kind in PLAIN or (op.kind == "Bidirectional" and all(map(_plain, inner))):
        return None
    return f"{op.kind} computes its steps by a cell that is no LSTM, GRU or SimpleRNN of Keras"


def matrix(op: Op) -> NDArray[Any]:
    """The input kernels (D, T), those of both directions side by side."""
    return np.concatenate(list(_kernels(op).values()), axis=1)


def kernels(op: Op, matrix: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The inverse of ``matrix``: the input kernels by their names among the layer's weights."""
    names = _kernels(op)
    edges = np.cumsum([0, *(kernel.shape[1] for kernel in names.values())])
    columns = (matrix[:, start:end] for start, end in pairwise(edges))
    return dict(zip(names, columns, strict=True))


def with_matrix(op: Op, matrix: NDArray[Any]) -> Op:
    """The layer with other input kernels, which may read an input of another size."""
    attrs = {
        name: {key: part for key, part in value.items() if key != "build_config"}
        if isinstance(value, Mapping)
        else value
        for name, value in op.attrs.items()
    }
    return replace(op, attrs=attrs, weights={**op.weights, **kernels(op, matrix)})


def _plain(layer: Mapping[str, Any]) -> bool:
    """Whether the configuration of a wrapped layer is that of a plain layer of Keras."""
    return layer["module"] == "keras.layers" and layer["class_name"] in PLAIN


def _kernels(op: Op) -> Mapping[str, NDArray[Any]]:
    return {name: w for name, w in op.weights.items() if name.rpartition("/")[2] == "kernel"}
