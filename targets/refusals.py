"""Rules that a graph must not break to be emitted.

The docstring of a rule is its message to the user, on one line. Each rule comes from an attempt
that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from lrfc.ir.graph import Graph
from lrfc.ir.op import Op
from lrfc.ir.ops import spatial
from lrfc.protocols import Target

#: Returns the names of the ops that break the rule.
Rule = Callable[[Graph], Sequence[str]]


def of(graph: Graph, rules: Sequence[Rule]) -> tuple[str, ...]:
    """One line for each broken rule, with the names of the ops that break it."""
    return tuple(f"{', '.join(names)}: {message(rule)}" for rule in rules if (names := rule(graph)))


def message(rule: Rule) -> str:
    """The text of a rule's docstring on one line."""
    return " ".join((rule.__doc__ or "").split())


def open_axis(graph: Graph) -> Sequence[str]:
    """An input axis other than the batch has no fixed length.

    Re-save the model with a fixed Input shape.
    """
    return [name for name in graph.inputs if None in graph.tensors(name)[0].shape[1:]]


def strings(graph: Graph) -> Sequence[str]:
    """Text and lookup tables cannot be emitted.

    Turn text into numbers before the model, and re-save the model without this layer.
    """
    return [op.name for op in graph if op.info.family == "lookup" or _reads(graph, op, "string")]


def dilated_transposed(graph: Graph) -> Sequence[str]:
    """TFLite has no transposed 1-D or 2-D convolution with dilation.

    Use dilation_rate=1 and a larger kernel.
    """
    return _names(graph, ("Conv1DTranspose", "Conv2DTranspose"), lambda op: max(_dilation(op)) > 1)


def pooled_3d(graph: Graph) -> Sequence[str]:
    """TFLite has no 3-D pooling with a window.

    Use strides in the convolution before it, or global pooling.
    """
    return _where(graph, lambda op: op.info.family == "pooling" and op.info.spatial_axes == 3)


def dilated_3d(graph: Graph) -> Sequence[str]:
    """TFLite has no 3-D convolution with dilation. Use dilation_rate=1."""
    return _names(graph, ("Conv3D",), lambda op: max(_dilation(op)) > 1)


def grouped_3d(graph: Graph) -> Sequence[str]:
    """TFLite and onnxruntime run no grouped 3-D convolution of Keras. Use groups=1."""
    return _names(graph, ("Conv3D",), lambda op: op["groups"] > 1)


def channels_first(graph: Graph) -> Sequence[str]:
    """The TFLite converter takes this convolution with channels last only.

    Rebuild the model with data_format='channels_last'.
    """
    always = _names(graph, ("Conv1D", "Conv3D", "Conv3DTranspose"), _channels_first)
    return [
        *always,
        *_names(
            graph,
            ("Conv1DTranspose", "DepthwiseConv1D", "SeparableConv1D"),
            lambda op: _channels_first(op) and op["use_bias"],
        ),
    ]


def smooth_resize(graph: Graph) -> Sequence[str]:
    """TFLite resizes by nearest or bilinear interpolation only."""
    return _names(
        graph,
        ("UpSampling2D", "Resizing"),
        lambda op: _interpolation(op) not in ("nearest", "bilinear"),
    )


def inexact_resize(graph: Graph) -> Sequence[str]:
    """ONNX agrees with Keras in nearest and bilinear interpolation only.

    UpSampling2D may use bicubic interpolation, too.
    """
    return [
        *_names(graph, ("Resizing",), lambda op: _interpolation(op) not in ("nearest", "bilinear")),
        *_names(graph, ("UpSampling2D",), lambda op: _interpolation(op).startswith("lanczos")),
    ]


def bucketed(graph: Graph) -> Sequence[str]:
    """ONNX has no operator that sorts values into bins. Discretise before the model."""
    return _names(graph, ("Discretization",))


def looped(graph: Graph) -> Sequence[str]:
    """Calibration cannot run the loop of a recurrent layer.

    Re-save the layer with unroll=True, or choose --precision fp32.
    """
    return _where(graph, lambda op: op.info.family == "recurrent" and not _unrolled(op))


def misrounded(graph: Graph) -> Sequence[str]:
    """TFLite computes this in int8 otherwise than Keras.

    Replace it (celu by relu, encodings before the model), or choose --precision fp32.
    """
    return _where(graph, lambda op: op.kind == "CategoryEncoding" or "celu" in _functions(op))


def no_int16(graph: Graph) -> Sequence[str]:
    """TFLite has no kernel for this with activations of 16 bits. Choose --precision int8."""
    kinds = ("PReLU", "Embedding", "CategoryEncoding")
    functions = {"elu", "selu", "softsign", "hard_silu", "log_softmax"}
    return _where(
        graph,
        lambda op: _float_in_tflite(op) or op.kind in kinds or bool(functions & _functions(op)),
    )


def float_in_tflite(graph: Graph) -> Sequence[str]:
    """TFLite has no int8 kernel for this. It stays float32 in the file, between two conversions."""
    return _where(graph, lambda op: _float_in_tflite(op) or "elu" in _functions(op))


def float_in_onnx(graph: Graph) -> Sequence[str]:
    """No kernel of onnxruntime computes this in int8.

    It stays float32 in the file, between two conversions.
    """
    functions = {
        "elu",
        "selu",
        "celu",
        "gelu",
        "softplus",
        "softsign",
        "tanh",
        "exponential",
        "mish",
        "log_softmax",
    }
    return _where(
        graph, lambda op: op.info.family == "normalization" or bool(functions & _functions(op))
    )


TFLITE: tuple[Rule, ...] = (
    open_axis,
    strings,
    dilated_transposed,
    pooled_3d,
    dilated_3d,
    grouped_3d,
    channels_first,
    smooth_resize,
)
TFLITE_INT8: tuple[Rule, ...] = (*TFLITE, looped, misrounded)
TFLITE_INT16X8: tuple[Rule, ...] = (*TFLITE, looped, no_int16)
ONNX: tuple[Rule, ...] = (open_axis, strings, grouped_3d, inexact_resize, bucketed)
ONNX_INT8: tuple[Rule, ...] = (*ONNX, looped)

#: Format and precision → rules that are no reason to refuse a graph, but that the user should know.
REMARKS: Mapping[tuple[str, str], tuple[Rule, ...]] = {
    ("tflite", "int8"): (float_in_tflite,),
    ("onnx", "int8"): (float_in_onnx,),
}


def remarks(graph: Graph, target: Target) -> tuple[str, ...]:
    """Deviations of the target from its precision: one line for each rule, with its ops."""
    return of(graph, REMARKS.get((target.name, target.precision), ()))


def _where(graph: Graph, breaks: Callable[[Op], bool]) -> list[str]:
    return [op.name for op in graph if breaks(op)]


def _float_in_tflite(op: Op) -> bool:
    """Whether TFLite has no integer kernel for the kind."""
    return op.info.family == "normalization" or (
        op.info.is_convolution and op.info.spatial_axes == 3
    )


def _functions(op: Op) -> set[str]:
    """The activation functions that an op applies, by name."""
    layer = {"ELU": "elu", "Softmax": "softmax"}.get(op.kind, "")
    activation = op.attrs.get("activation")
    return {layer, activation if isinstance(activation, str) else ""} - {""}


def _names(
    graph: Graph, kinds: Iterable[str], breaks: Callable[[Op], bool] = lambda op: True
) -> list[str]:
    return [op.name for op in graph if op.kind in kinds and breaks(op)]


def _reads(graph: Graph, op: Op, dtype: str) -> bool:
    return any(
        tensor.dtype == dtype for tensor in (*graph.input_tensors(op.name), *graph.tensors(op.name))
    )


def _dilation(op: Op) -> tuple[int, ...]:
    return spatial(op["dilation_rate"], op.info.spatial_axes)


def _channels_first(op: Op) -> bool:
    return bool(op["data_format"] == "channels_first")


def _interpolation(op: Op) -> str:
    return str(
        op.attrs.get("interpolation", "nearest" if op.kind == "UpSampling2D" else "bilinear")
    )


def _unrolled(op: Op) -> bool:
    config = op.attrs["layer"]["config"] if op.kind == "Bidirectional" else op.attrs
    return bool(config.get("unroll", False))
