"""The kinds of layers that each method takes: the table of `lrfc ops` and of the README."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from lrfc.factorization.base import Method
from lrfc.ir.kinds import kind_of, names
from lrfc.ir.op import Op, Tensor

_IN, _OUT = 16, 32


def _layer(
    kind: str, source: tuple[int, ...], kernel: tuple[int, ...], **attrs: Any
) -> tuple[Op, Tensor]:
    return Op("layer", kind, attrs, {"kernel": np.zeros(kernel, np.float32)}), Tensor(
        (None, *source)
    )


def _conv(kind: str, length: int = 3, groups: int = 1, strides: int = 1) -> tuple[Op, Tensor]:
    info = kind_of(kind)
    rank = info.spatial_axes
    taps, source = (length,) * rank, (*(8,) * rank, _IN)
    window = {"kernel_size": taps, "strides": (strides,) * rank, "padding": "same"}
    if info.is_depthwise:
        return _layer(kind, source, (*taps, _IN, 1), depth_multiplier=1, **window)
    if info.is_transposed:
        return _layer(kind, source, (*taps, _OUT, _IN), filters=_OUT, **window)
    return _layer(kind, source, (*taps, _IN // groups, _OUT), filters=_OUT, groups=groups, **window)


def _separable(rank: int) -> tuple[Op, Tensor]:
    taps = (3,) * rank
    weights = {
        "depthwise_kernel": np.zeros((*taps, _IN, 1), np.float32),
        "pointwise_kernel": np.zeros((*(1,) * rank, _IN, _OUT), np.float32),
    }
    return Op(
        "layer", f"SeparableConv{rank}D", {"filters": _OUT, "kernel_size": taps}, weights
    ), Tensor((None, *(8,) * rank, _IN))


def _recurrent(kind: str, gates: int) -> tuple[Op, Tensor]:
    width, sides = gates * _OUT, ("forward/", "backward/") if kind == "Bidirectional" else ("",)
    sizes = {"kernel": (_IN, width), "recurrent_kernel": (_OUT, width), "bias": (width,)}
    weights = {
        f"{side}cell/{name}": np.zeros(size, np.float32)
        for side in sides
        for name, size in sizes.items()
    }
    cell = {"module": "keras.layers", "class_name": "LSTM"}
    attrs = {"layer": cell} if kind == "Bidirectional" else {"units": _OUT}
    return Op("layer", kind, attrs, weights), Tensor((None, 8, _IN))


def _embedding() -> tuple[Op, Tensor]:
    table = {"embeddings": np.zeros((_IN, _OUT), np.float32)}
    attrs = {"input_dim": _IN, "output_dim": _OUT}
    return Op("layer", "Embedding", attrs, table), Tensor((None, 8), "int32")


#: A typical layer for each row of the table.
EXAMPLES: Mapping[str, tuple[Op, Tensor]] = MappingProxyType(
    {
        **{kind: _conv(kind) for kind in names("conv")},
        "Conv2D 1×1": _conv("Conv2D", 1),
        "Conv2D strided": _conv("Conv2D", strides=2),
        "Conv2D grouped": _conv("Conv2D", groups=4),
        **{kind: _conv(kind) for kind in names("transposed", "depthwise")},
        "DepthwiseConv2D strided": _conv("DepthwiseConv2D", strides=2),
        **{f"SeparableConv{n}D": _separable(n) for n in (1, 2)},
        "Dense": _layer("Dense", (_IN,), (_IN, _OUT), units=_OUT),
        "Dense on a sequence": _layer("Dense", (8, _IN), (_IN, _OUT), units=_OUT),
        "EinsumDense": _layer(
            "EinsumDense", (8, _IN), (_IN, 4, 8), equation="abc,cde->abde", output_shape=(8, 4, 8)
        ),
        # Canonicalise replaces an attention layer by these.
        "projections of attention": _layer("Dense", (8, _IN), (_IN, _OUT), units=_OUT),
        **{
            kind: _recurrent(kind, gates)
            for kind, gates in {"LSTM": 4, "GRU": 3, "SimpleRNN": 1, "Bidirectional": 4}.items()
        },
        "Embedding": _embedding(),
    }
)


def support_matrix(methods: Mapping[str, Method]) -> dict[str, dict[str, str | None]]:
    """The reason why a method does not take a kind of layer, as one clause; None where it does."""
    return {
        kind: {name: method.refuses(*example) for name, method in methods.items()}
        for kind, example in EXAMPLES.items()
    }


def support_table(methods: Mapping[str, Method]) -> str:
    """The matrix as a Markdown table, with the reasons as numbered notes below it."""
    matrix = support_matrix(methods)
    notes: dict[str, int] = {}
    rows = [["layer", *methods], ["---", *(":-:" for _ in methods)]]
    for kind, reasons in matrix.items():
        rows.append(
            [
                kind,
                *(
                    "✓" if reason is None else str(notes.setdefault(reason, len(notes) + 1))
                    for reason in reasons.values()
                ),
            ]
        )
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *(f"{number}. {reason}" for reason, number in notes.items())])
