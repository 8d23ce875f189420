"""Output tensors and multiply–accumulate operations (MACs) of ops, by kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

from lrfc.errors import GraphError, ModelError
from lrfc.ir.defaults import DEFAULTS
from lrfc.ir.kinds import names
from lrfc.ir.op import Op, Shape, Slot, Tensor

#: Kinds whose output has the shape and dtype of their one input. Keras infers RMSNormalization.
_SAME_SHAPE = frozenset(
    names("activation", "batchnorm", "normalization", "dropout", "identity"),
) - {"RMSNormalization"}

#: Activations that compute value by value.
ELEMENTWISE = frozenset(
    "linear relu relu6 sigmoid tanh swish silu gelu elu selu celu softplus softsign leaky_relu"
    " hard_sigmoid hard_silu hard_swish mish exponential hard_tanh hard_shrink soft_shrink"
    " tanh_shrink squareplus log_sigmoid threshold".split()
)


def shown(op: Op) -> tuple[str, ...]:
    """The attributes to print: those in the table of defaults that are set to another value."""
    defaults = DEFAULTS.get(op.kind, {})
    return tuple(
        key
        for key, default in defaults.items()
        if key in op.attrs and not _is_default(op.attrs[key], default)
    )


def _is_default(value: Any, default: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_default(item, default) for item in value)
    return bool(value == default) or (default is None and value in (None, "linear"))


def spatial(value: int | tuple[int, ...] | list[int], rank: int) -> tuple[int, ...]:
    """One size for each spatial axis, from a single size or one per axis."""
    sizes = (value,) * rank if isinstance(value, int) else tuple(int(size) for size in value)
    if len(sizes) != rank:
        raise GraphError(f"{value} has {len(sizes)} sizes, expected {rank}")
    return sizes


# -- convolutions ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConvGeometry:
    """The sizes of one call of a convolution: plain, grouped, depthwise or transposed.

    Spatial sizes are in the input's axis order. ``inputs`` and ``outputs``: numbers of channels.
    ``in_shape`` and ``out_shape``: spatial shapes, with None where a length is not fixed.
    ``multiplier``: the depth multiplier of a depthwise convolution, 0 for all others.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str
    channels_first: bool
    groups: int
    inputs: int
    outputs: int
    in_shape: Shape
    out_shape: Shape
    transposed: bool = False
    multiplier: int = 0

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    def tensor(self, batch: int | None, dtype: str) -> Tensor:
        """The output tensor."""
        shape = (
            (self.outputs, *self.out_shape)
            if self.channels_first
            else (*self.out_shape, self.outputs)
        )
        return Tensor((batch, *shape), dtype)

    @property
    def macs(self) -> int:
        """MACs of one sample; ModelError when its spatial size is not fixed."""
        positions = self.in_shape if self.transposed else self.out_shape
        if None in positions:
            raise ModelError(
                f"the spatial size {positions} is not fixed, so its MACs are unknown; re-save the"
                " model with a fixed Input shape"
            )
        return (
            prod(length for length in positions if length is not None)
            * prod(self.kernel)
            * self.outputs
            * self.inputs
            // self.groups
        )


def conv_geometry(op: Op, source: Tensor) -> ConvGeometry:
    """The geometry of a plain, transposed or depthwise convolution on an input tensor."""
    depthwise, transposed, rank = op.info.is_depthwise, op.info.is_transposed, op.info.spatial_axes
    if len(source.shape) != rank + 2:
        raise GraphError(
            f"op '{op.name}' ({op.kind}) reads a tensor of shape {source}, expected {rank + 2} axes"
        )
    channels_first = op["data_format"] == "channels_first"
    inputs = source.shape[1] if channels_first else source.shape[-1]
    if inputs is None:
        raise ModelError(f"layer '{op.name}': the number of input channels is not fixed")
    in_shape = source.shape[2:] if channels_first else source.shape[1:-1]
    kernel, strides, dilation = (
        spatial(op[key], rank) for key in ("kernel_size", "strides", "dilation_rate")
    )
    padding = op["padding"]
    if transposed:
        extra = op["output_padding"]
        extras = (None,) * rank if extra is None else spatial(extra, rank)
        out_shape: Shape = tuple(
            _transposed_length(*args, padding)
            for args in zip(in_shape, kernel, strides, dilation, extras, strict=True)
        )
    else:
        out_shape = tuple(
            _conv_length(*args, padding)
            for args in zip(in_shape, kernel, strides, dilation, strict=True)
        )
    multiplier = int(op["depth_multiplier"]) if depthwise else 0
    return ConvGeometry(
        kernel,
        strides,
        dilation,
        padding,
        channels_first,
        inputs if depthwise else int(1 if transposed else op["groups"]),
        inputs,
        inputs * multiplier if depthwise else int(op["filters"]),
        in_shape,
        out_shape,
        transposed,
        multiplier,
    )


def _conv_length(
    length: int | None, kernel: int, stride: int, dilation: int, padding: str
) -> int | None:
    if length is None:
        return None
    if padding in ("same", "causal"):
        return -(-length // stride)
    return (length - dilation * (kernel - 1) - 1) // stride + 1


def _transposed_length(
    length: int | None, kernel: int, stride: int, dilation: int, extra: int | None, padding: str
) -> int | None:
    """Output length as in keras.src.ops.operation_utils.compute_conv_transpose_output_shape."""
    if length is None:
        return None
    extent = dilation * (kernel - 1) + 1
    if extra is None:
        return length * stride + max(extent - stride, 0) if padding == "valid" else length * stride
    return (length - 1) * stride + extent - (0 if padding == "valid" else 2 * (extent // 2)) + extra


# -- shapes ----------------------------------------------------------------------------------------


def infer(op: Op, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The op's output tensors.

    Keras infers those of all kinds, calls and dtypes without a rule here.
    """
    if op.kind == "InputLayer":
        return (_infer_input(op),)
    # float32 only: the output dtype for any other depends on the layer.
    if len(inputs) == 1 and inputs[0].dtype == "float32":
        if op.kind in _SAME_SHAPE:
            return inputs
        if (rule := _INFER.get(op.kind)) is not None:
            return (rule(op, *inputs),)
    results = _inferred_by_keras.setdefault(op, {})
    if inputs not in results:
        from lrfc.ir.keras.layers import infer as infer_by_keras

        results[inputs] = infer_by_keras(op, inputs)
    return results[inputs]


#: Cache of output tensors by op and input tensors. An entry lives as long as its op.
_inferred_by_keras: WeakKeyDictionary[Op, dict[tuple[Tensor, ...], tuple[Tensor, ...]]]
_inferred_by_keras = WeakKeyDictionary()


def _infer_input(op: Op) -> Tensor:
    return Tensor(tuple(op.attrs["batch_shape"]), op.attrs.get("dtype") or "float32")


def _infer_conv(op: Op, source: Tensor) -> Tensor:
    return conv_geometry(op, source).tensor(source.shape[0], source.dtype)


def _infer_dense(op: Op, source: Tensor) -> Tensor:
    return Tensor((*source.shape[:-1], int(op["units"])), source.dtype)


_INFER: dict[str, Callable[..., Tensor]] = {
    "Dense": _infer_dense,
    **dict.fromkeys(names("conv", "transposed", "depthwise"), _infer_conv),
}


# -- cost ------------------------------------------------------------------------------------------


def macs(op: Op, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> int:
    """MACs of one sample in convolutions, matrix products, attention and recurrent layers.

    Other ops count as 0. ModelError when they depend on a length that is not fixed.
    """
    if op.info.is_convolution and not op.info.is_separable:
        return conv_geometry(op, inputs[0]).macs
    rule = _MACS.get(op.kind)
    return 0 if rule is None else rule(op, inputs, outputs)


def _macs_dense(op: Op, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> int:
    return outputs[0].size * int(op.weights["kernel"].shape[0])


def _macs_separable(op: Op, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> int:
    positions = outputs[0].size // int(op["filters"])
    return positions * (op.weights["depthwise_kernel"].size + op.weights["pointwise_kernel"].size)


def _macs_einsum(op: Op, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> int:
    _, kernel = op["equation"].split("->")[0].split(",")
    target = op["equation"].split("->")[1]
    return outputs[0].size * prod(
        int(length)
        for letter, length in zip(kernel, op.weights["kernel"].shape, strict=True)
        if letter not in target
    )


def _argument(op: Op, inputs: tuple[Tensor, ...], position: int, name: str) -> Any:
    """The tensor or constant of one argument, by position or by name; None without it."""
    if op.call is None:
        return inputs[position] if position < len(inputs) else None
    args, kwargs = op.call
    value = args[position] if position < len(args) else kwargs.get(name)
    return inputs[value.port] if isinstance(value, Slot) else value


def _macs_attention(op: Op, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> int:
    query, value = (_argument(op, inputs, i, name) for i, name in enumerate(("query", "value")))
    key = _argument(op, inputs, 2, "key") or value
    query_steps, value_steps, key_steps = (
        int(t.size) // int(t.shape[-1] or 1) for t in (query, value, key)
    )
    kernels = {name: w for name, w in op.weights.items() if name.endswith("kernel")}
    steps = {
        "query": query_steps,
        "gate": query_steps,
        "key": key_steps,
        "value": value_steps,
        "attention_output": query_steps,
    }
    projections = sum(w.size * steps[name.split("/")[0]] for name, w in kernels.items())
    # Of each query with each key, and of each weight with a value, in every head of the queries.
    heads, size = kernels["query/kernel"].shape[-2:]
    pairs = int(heads * (size + kernels["value/kernel"].shape[-1]))
    return projections + query_steps * value_steps * pairs


def _macs_of_einsum(op: Op, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> int:
    """The product of the lengths of all letters, of an einsum of two operands without ellipsis."""
    terms = str(op.attrs["subscripts"]).replace(" ", "").split("->")[0].split(",")
    if len(terms) != 2 or "." in terms[0] + terms[1]:
        return 0
    lengths: dict[str, int | None] = {}
    batch = ""
    for position, term in enumerate(terms):
        operand = _argument(op, inputs, position, "")
        batch += term[:1] if isinstance(operand, Tensor) else ""
        lengths |= dict(zip(term, operand.shape, strict=True))
    rest = tuple(length for letter, length in lengths.items() if letter not in batch)
    return Tensor((None, *rest)).size


def _macs_recurrent(op: Op, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> int:
    steps: int | None = _argument(op, inputs, 0, "sequence").shape[1]
    if steps is None:
        raise ModelError(
            f"layer '{op.name}': the number of time steps is not fixed, so its MACs are unknown;"
            " re-save the model with a fixed Input shape"
        )
    return steps * sum(w.size for name, w in op.weights.items() if name.endswith("kernel"))


def _macs_matmul(op: Op, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> int:
    inner: int = _argument(op, inputs, 0, "x1").shape[-1] or 1
    return outputs[0].size * inner


_MACS: dict[str, Callable[[Op, tuple[Tensor, ...], tuple[Tensor, ...]], int]] = {
    "Dense": _macs_dense,
    **dict.fromkeys(names("separable"), _macs_separable),
    "EinsumDense": _macs_einsum,
    **dict.fromkeys(names("attention"), _macs_attention),
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN", "Bidirectional"), _macs_recurrent),
    "ops.Matmul": _macs_matmul,
    "ops.Einsum": _macs_of_einsum,
}
