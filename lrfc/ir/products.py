"""Products of a tensor and a constant as the layers that compute them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from lrfc.ir.graph import Graph
from lrfc.ir.op import Array, Op, Ref, Slot, Tensor

#: A layer without a bias for an op, its input, its output and the constant; or why there is none.
_Rule = Callable[[Op, Tensor, Tensor, Array], "Op | str"]


def without_products(graph: Graph) -> tuple[Graph, Mapping[str, str]]:
    """Replace ``keras.ops`` products with a constant by layers, which can be factorized.

    The second value is by name of an op that stays the reason.
    """
    lowered, stays = graph.copy(), dict[str, str]()
    for op in graph:
        constant = _constant(graph, op)
        if constant is None:
            continue
        if not np.isfinite(constant).all():
            stays[op.name] = "its constant holds NaN or infinite values"
            continue
        source, result = graph.input_tensors(op.name)[0], graph.tensors(op.name)[0]
        layer = _RULES[op.kind](op, source, result, constant)
        if isinstance(layer, str):
            stays[op.name] = layer
            continue
        lowered.replace(layer)
        _take_in_bias(lowered, layer)
    return lowered, stays


def _constant(graph: Graph, op: Op) -> Array | None:
    """The one constant of a product in float32 with one operand; None for any other op."""
    if op.kind not in _RULES or op.call is None or len(graph.operands(op.name)) != 1:
        return None
    args = (*op.call[0], *op.call[1].values())
    arrays = [arg for arg in args if isinstance(arg, np.ndarray)]
    tensors = (*graph.input_tensors(op.name), *graph.tensors(op.name))
    if len(arrays) != 1 or {str(tensor.dtype) for tensor in tensors} != {"float32"}:
        return None
    return arrays[0] if "float" in str(arrays[0].dtype) else None


def _comes_first(op: Op) -> bool:
    """Whether the constant is the first factor."""
    assert op.call is not None
    return not isinstance((*op.call[0], *op.call[1].values())[0], Slot)


def _dense(op: Op, source: Tensor, result: Tensor, constant: Array) -> Op | str:
    if _comes_first(op):
        return "its constant is the first factor"
    if constant.ndim != 2 or len(source.shape) < 2 or op.attrs.get("axes", 1) != 1:
        return "its constant is no matrix on the last axis"
    return _layer(op, "Dense", {"units": constant.shape[1]}, constant)


def _einsum(op: Op, source: Tensor, result: Tensor, constant: Array) -> Op | str:
    text = str(op.attrs["subscripts"]).replace(" ", "")
    reads, arrow, made = text.partition("->")
    terms = reads.split(",")
    if not arrow or len(terms) != 2 or "." in text:
        return "its axes are not all named"
    if _comes_first(op):
        terms.reverse()
    single = all(len(set(term)) == len(term) for term in (*terms, made))
    if not single or not set(terms[1]) <= {*terms[0], *made}:
        return "an axis of its constant has no other place, or a letter stands for two axes"
    batch = terms[0][:1]
    if not made.startswith(batch) or batch in terms[1] or None in result.shape[1:]:
        return "it mixes samples, or the shape of its output is not fixed"
    equation = f"{terms[0]},{terms[1]}->{made}"
    attrs = {"equation": equation, "output_shape": result.shape[1:]}
    return _layer(op, "EinsumDense", attrs, constant)


def _conv(op: Op, source: Tensor, result: Tensor, constant: Array) -> Op | str:
    rank = len(source.shape) - 2
    if _comes_first(op) or constant.ndim != rank + 2 or rank > 3:
        return "its constant is no kernel"
    attrs = {"filters": constant.shape[-1], "kernel_size": constant.shape[:-2]}
    return _layer(op, f"Conv{rank}D", attrs | _window(op), constant)


def _depthwise(op: Op, source: Tensor, result: Tensor, constant: Array) -> Op | str:
    rank = len(source.shape) - 2
    if _comes_first(op) or constant.ndim != rank + 2 or rank > 2:
        return "its constant is no kernel"
    attrs = {"kernel_size": constant.shape[:-2], "depth_multiplier": constant.shape[-1]}
    return _layer(op, f"DepthwiseConv{rank}D", attrs | _window(op), constant)


def _window(op: Op) -> dict[str, Any]:
    """The attributes that a convolution shares with its function."""
    attrs = op.attrs
    return {
        "strides": attrs.get("strides", 1),
        "padding": attrs.get("padding", "valid"),
        "dilation_rate": attrs.get("dilation_rate", 1),
        "data_format": attrs.get("data_format") or "channels_last",
    }


def _layer(op: Op, kind: str, attrs: Mapping[str, Any], kernel: Array) -> Op:
    """The layer in the place of an op, without a bias."""
    bias = {} if kind == "EinsumDense" else {"use_bias": False}  # that one has a bias by its axes
    return Op(
        op.name, kind, {**attrs, **bias}, {"kernel": np.ascontiguousarray(kernel, np.float32)}
    )


def _take_in_bias(graph: Graph, layer: Op) -> None:
    """Make a constant vector that is added behind a layer its bias; not if the sum is an output."""
    reader = graph.only_consumer(layer.name)
    if layer.kind == "EinsumDense" or reader is None or reader.kind != "ops.Add":
        return
    assert reader.call is not None
    arrays = [
        arg
        for arg in (*reader.call[0], *reader.call[1].values())
        if isinstance(arg, np.ndarray) and "float" in str(arg.dtype)
    ]
    shape = graph.tensors(layer.name)[0].shape
    last = layer.attrs.get("data_format", "channels_last") == "channels_last"
    is_output = any(out.op == reader.name for out in graph.outputs)
    if len(graph.operands(reader.name)) != 1 or len(arrays) != 1 or not last or is_output:
        return
    (constant,) = arrays
    if not 0 < constant.ndim <= len(shape) or {constant.size, constant.shape[-1]} != {shape[-1]}:
        return
    weights = {**layer.weights, "bias": constant.reshape(-1).astype(np.float32)}
    graph.replace(replace(layer, attrs={**layer.attrs, "use_bias": True}, weights=weights))
    graph.substitute(Ref(reader.name), Ref(layer.name))
    graph.remove(reader.name)


_RULES: Mapping[str, _Rule] = MappingProxyType(
    {
        **dict.fromkeys(("ops.Matmul", "ops.Dot", "ops.Tensordot"), _dense),
        "ops.Einsum": _einsum,
        "ops.Conv": _conv,
        "ops.DepthwiseConv": _depthwise,
    }
)
