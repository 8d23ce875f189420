"""Exact rewrites into the canonical form, which all other passes expect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lrfc.factorization import split_separable
from lrfc.ir import attention, channels_last, dilated, products
from lrfc.ir.affine import Affine, affine, take_in_before
from lrfc.ir.attention_call import refusal as attention_refusal
from lrfc.ir.graph import Graph
from lrfc.ir.kinds import kind_of
from lrfc.ir.op import Op, Ref
from lrfc.ir.whole_attention import Group, groups
from lrfc.state import Fact, State


@dataclass(frozen=True)
class AttentionLayers(Fact):
    """The attention layers that were replaced by their projections."""

    about_graph: ClassVar[bool] = False

    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Canonicalise:
    """Rewrite the graph into its canonical form, which computes the same function.

    Channels are last, every activation is an op of its own, and the normalisation of inputs is
    folded into a layer or made cheap. Each rewrite is a function of this file, with an example.

    A BatchNorm behind a linear layer stays, because its statistics are estimated again after
    factorization. Dropout-like layers stay, too: they are the identity at inference, but
    fine-tuning works better with them. ``FoldBatchNorm`` removes both before the graph is emitted.
    """

    needs: ClassVar[tuple[type[Fact], ...]] = ()
    gives: ClassVar[tuple[type[Fact], ...]] = (AttentionLayers,)
    rewrites: ClassVar[bool] = True

    def __call__(self, state: State) -> State:
        """The state with the canonical graph. ``original`` is unchanged."""
        for op in state.graph.layers():
            if op.info.family == "attention" and (why := attention_refusal(state.graph, op)):
                state.progress.log(f"  {op.name} stays whole: {why}")
        graph, stays = lower_products(state.graph)
        for name, why in stays.items():
            state.progress.log(f"  {name} stays as it is: {why}")
        # The layout comes next, so that everything after it only has to handle channels last.
        graph = lower_transposed(move_channels(graph))
        before, (graph, parts) = graph, lower_attention(graph)
        graph = split_separables(graph)
        graph = split_activations(graph)
        graph = merge_normalization(graph)
        graph = fold_into_readers(graph)
        graph = lower_normalization(graph)
        layers = {name: before.op(name) for name in parts}
        return state.with_graph(graph).with_fact(AttentionLayers(groups(graph, layers, parts)))


def lower_products(graph: Graph) -> tuple[Graph, Mapping[str, str]]:
    """Replace a function of ``keras.ops`` that multiplies by a constant by the layer for it.

    These are matmul, dot, tensordot, einsum, conv and depthwise_conv.

    Given::

        y = ops.Matmul(x, array of 6×16) -> (?, 5, 16)
        z = ops.Add(y, array of 16) -> (?, 5, 16)

    Result::

        y = Dense(x) units=16 -> (?, 5, 16)

    The second value are the reasons of those that stay, by name.
    """
    return products.without_products(graph)


def move_channels(graph: Graph) -> Graph:
    """Convert every layer to channels last, so that it runs on every processor.

    Inputs and outputs keep their layout.

    Given::

        x = InputLayer() -> (?, 3, 8, 8)
        conv = Conv2D(x) filters=4 kernel_size=3 data_format=channels_first -> (?, 4, 6, 6)
        bn = BatchNormalization(conv) axis=1 -> (?, 4, 6, 6)
        flat = Flatten(bn) -> (?, 144)

    Result (the weights are the same)::

        x = InputLayer() -> (?, 3, 8, 8)
        x__channels_last = Permute(x) dims=2x3x1 -> (?, 8, 8, 3)
        conv = Conv2D(x__channels_last) filters=4 kernel_size=3 -> (?, 6, 6, 4)
        bn = BatchNormalization(conv) -> (?, 6, 6, 4)
        bn__channels_first = Permute(bn) dims=3x1x2 -> (?, 4, 6, 6)
        flat = Flatten(bn__channels_first) -> (?, 144)
    """
    return channels_last.channels_last(graph)


def lower_transposed(graph: Graph) -> Graph:
    """Replace a dilated transposed convolution by a convolution of its padded input.

    A convolution runs on every processor and in every format.

    Given::

        x = InputLayer() -> (?, 8, 8, 3)
        conv = Conv2DTranspose(x) filters=4 kernel_size=3 dilation_rate=2 -> (?, 12, 12, 4)

    Result (the kernel is flipped)::

        x = InputLayer() -> (?, 8, 8, 3)
        conv__padding = ZeroPadding2D(x) padding=4 -> (?, 16, 16, 3)
        conv = Conv2D(conv__padding) filters=4 kernel_size=3 dilation_rate=2 -> (?, 12, 12, 4)
    """
    return dilated.without_dilated_transposed(graph)


def lower_attention(graph: Graph) -> tuple[Graph, Mapping[str, Sequence[str]]]:
    """Replace an attention layer by its projections, which can be factorized, and their products.

    Given::

        y = MultiHeadAttention(x, x) -> (?, 6, 8)

    Result, for two heads of 3 channels::

        y__query = Dense(x) units=6 -> (?, 6, 6)
        y__query_heads = Reshape(y__query) target_shape=6x2x3 -> (?, 6, 2, 3)
        y__key = Dense(x) units=6 -> (?, 6, 6)
        y__key_heads = Reshape(y__key) target_shape=6x2x3 -> (?, 6, 2, 3)
        y__value = Dense(x) units=6 -> (?, 6, 6)
        y__value_heads = Reshape(y__value) target_shape=6x2x3 -> (?, 6, 2, 3)
        y__query_scaled = ops.Multiply(y__query_heads) -> (?, 6, 2, 3)
        y__scores = ops.Einsum(y__key_heads, y__query_scaled) -> (?, 2, 6, 6)
        y__weights = Softmax(y__scores) -> (?, 2, 6, 6)
        y__context = ops.Einsum(y__weights, y__value_heads) -> (?, 6, 2, 3)
        y__flat = Reshape(y__context) target_shape=6 -> (?, 6, 6)
        y = Dense(y__flat) units=8 -> (?, 6, 8)

    Masks hide scores in front of the softmax, and a dropout stays behind it. A layer for which
    ``lrfc.ir.attention_call.refusal`` has a reason stays whole. The second value are the names of
    the ops by layer. In model.keras, a layer whose projections stayed is one layer again
    (``lrfc.ir.whole_attention``).
    """
    return attention.without_attention(graph)


def split_separables(graph: Graph) -> Graph:
    """Split a separable convolution into its two layers, so that the 1×1 one can be factorized.

    Given::

        conv = SeparableConv2D(x) filters=8 kernel_size=3 -> (?, 6, 6, 8)

    Result::

        conv__depthwise = DepthwiseConv2D(x) kernel_size=3 use_bias=False -> (?, 6, 6, 3)
        conv = Conv2D(conv__depthwise) filters=8 kernel_size=1 -> (?, 6, 6, 8)
    """
    graph = graph.copy()
    for op in graph:
        if op.info.is_separable:
            graph.splice(op.name, split_separable(op))
    return graph


def split_activations(graph: Graph) -> Graph:
    """Split the activation of a layer off as an op of its own, so that epilogues are explicit.

    Given::

        conv = Conv2D(x) filters=8 kernel_size=3 activation=relu -> (?, 6, 6, 8)

    Result::

        conv = Conv2D(x) filters=8 kernel_size=3 -> (?, 6, 6, 8)
        conv__activation = Activation(conv) activation=relu -> (?, 6, 6, 8)

    Every call of a shared layer gets a call of one shared activation. An activation that is a layer
    with weights (PReLU) stays inside.
    """
    graph = graph.copy()
    for op in graph:
        if not op.info.has_kernel or op["activation"] in (None, "linear"):
            continue
        kind, attrs = _activation(op["activation"])
        if kind_of(kind).is_activation and not kind_of(kind).parametric:
            activation = Op(
                graph.free_name(f"{op.name}__activation"),
                kind,
                attrs,
                shared=op.shared and f"{op.shared}__activation",
            )
            graph.splice(op.name, [op.with_attrs(activation="linear"), activation])
    return graph


def _activation(value: Any) -> tuple[str, dict[str, Any]]:
    """The kind and attributes of the op for an ``activation`` argument.

    The argument is the name of a function, or the configuration of a function or layer.
    """
    if isinstance(value, Mapping) and value.get("module") == "keras.layers":
        return value["class_name"], {
            k: v for k, v in value["config"].items() if k not in ("name", "dtype")
        }
    return "Activation", {"activation": value}


def merge_normalization(graph: Graph) -> Graph:
    """Merge consecutive Normalization and Rescaling ops into one.

    Given::

        scale = Rescaling(x) scale=0.5 -> (?, 8, 8, 3)
        normalize = Normalization(scale) -> (?, 8, 8, 3)

    Result (scale and offset multiplied out)::

        normalize = Rescaling(x) scale=0.25x0.5x0.5 offset=-1.0x0.0x2.0 -> (?, 8, 8, 3)
    """
    graph = graph.copy()
    for op in graph:
        reader = graph.only_consumer(op.name)
        if op.info.family != "rescaling" or reader is None or reader.info.family != "rescaling":
            continue
        first, second = _affine(graph, op), _affine(graph, reader)
        if first is not None and second is not None:
            both = first.then(second)
            graph.replace(
                Op(
                    reader.name,
                    "Rescaling",
                    {"scale": _plain(both.scale), "offset": _plain(both.shift)},
                )
            )
            graph.splice(op.name, [])
    return graph


def _affine(graph: Graph, op: Op) -> Affine | None:
    """The affine map that an op with one operand computes; None if it computes another function."""
    if len(graph.operands(op.name)) != 1:
        return None
    return affine(op, graph.input_tensors(op.name)[0])


def _plain(values: np.ndarray[Any, Any]) -> Any:
    """The array as a number or nested tuples, without leading axes of length 1."""
    while values.ndim and values.shape[0] == 1:
        values = values[0]
    return _tuples(values.tolist())


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def fold_into_readers(graph: Graph) -> Graph:
    """Fold a Normalization, Rescaling or BatchNorm into the linear layers that read it.

    Given::

        normalize = Normalization(x) -> (?, 8, 8, 3)
        conv = Conv2D(normalize) filters=4 kernel_size=3 use_bias=False -> (?, 6, 6, 4)

    Result (the kernel is scaled, the bias has the shift)::

        conv = Conv2D(x) filters=4 kernel_size=3 -> (?, 6, 6, 4)

    It is folded only where that is exact. Every reader has to be a linear layer, possibly behind
    Flatten and Reshape. With a shift, the layer must not pad with zeros, because padding comes
    after the normalisation. A BatchNorm behind a linear layer stays, to be folded into that one.
    """
    graph = graph.copy()
    for op in reversed(list(graph)):
        normalization = _affine(graph, op)
        if normalization is None or any(out.op == op.name for out in graph.outputs):
            continue
        if (
            op.kind == "BatchNormalization"
            and graph.op(graph.operands(op.name)[0].op).info.is_linear
        ):
            continue
        folded = [_fold_at(graph, name, normalization) for name, _ in graph.consumers(Ref(op.name))]
        if folded and None not in folded:
            graph.splice(op.name, [])
            for layer in folded:
                assert layer is not None
                graph.replace(layer)
    return graph


def _fold_at(graph: Graph, name: str, before: Affine | None) -> Op | None:
    """The linear layer at ``name``, or behind reshaping ops there, with the affine map folded in.

    None if the map cannot be folded exactly.
    """
    layer: Op | None = graph.op(name)
    while layer is not None and before is not None and _keeps_order(layer):
        before = before.reshaped(graph.input_tensors(layer.name)[0], graph.tensor(Ref(layer.name)))
        layer = graph.only_consumer(layer.name)
    if layer is None or before is None or layer.shared is not None or not layer.info.is_linear:
        return None
    return take_in_before(layer, graph.input_tensors(layer.name)[0], before)


def _keeps_order(op: Op) -> bool:
    """Whether an op reshapes a tensor without reordering its values."""
    return op.kind == "Reshape" or (op.kind == "Flatten" and op["data_format"] == "channels_last")


def lower_normalization(graph: Graph) -> Graph:
    """Replace a normalisation that scales and shifts by one depthwise 1×1 convolution.

    Given::

        normalize = Normalization(image) -> (?, 32, 32, 3)

    Result::

        normalize = DepthwiseConv2D(image) kernel_size=1 -> (?, 32, 32, 3)

    Keras' Normalization is emitted as two element-wise ops, SUB and MUL. In front of ResNet-20 they
    take 310,000 of 940,000 cycles on an Ethos-U55-128 (Vela 5.2); a subtraction, with the division
    folded into the next kernel, takes 48,000, and the depthwise convolution 2,500. On LiteRT the
    depthwise convolution takes as long as the subtraction, less than half of the two ops
    (224×224×3, float and int8).

    Its weights are not trained, as those of the normalisation were not. A scale or a shift alone is
    one op already, and stays. So does the normalisation of volumes, since there is no depthwise
    convolution in 3D.
    """
    graph = graph.copy()
    for op in graph:
        normalization = _affine(graph, op) if op.info.family == "rescaling" else None
        tensor = graph.tensor(Ref(op.name))
        rank = len(tensor.shape) - 2
        if normalization is None or rank not in (1, 2):
            continue
        channels = normalization.channels(tensor, -1)
        if channels is None or not channels[1].any() or (channels[0] == 1).all():
            continue
        scale, shift = channels
        weights = {
            "kernel": scale.astype(np.float32).reshape((1,) * rank + (-1, 1)),
            "bias": shift.astype(np.float32),
        }
        graph.replace(
            Op(op.name, f"DepthwiseConv{rank}D", {"kernel_size": 1, "trainable": False}, weights)
        )
    return graph
