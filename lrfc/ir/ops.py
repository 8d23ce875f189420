"""What lrfc knows of each kind of op: default attributes, output shapes, multiply-accumulates.

The kinds are Keras' layer classes.
"""

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

#: Activations of a value alone.
ELEMENTWISE = frozenset(
    "linear relu relu6 sigmoid tanh swish silu gelu elu selu celu softplus softsign leaky_relu"
    " hard_sigmoid hard_silu hard_swish mish exponential hard_tanh hard_shrink soft_shrink"
    " tanh_shrink squareplus log_sigmoid threshold".split()
)


def shown(op: Op) -> tuple[str, ...]:
    """The attributes worth printing: the known ones that are set and differ from the default."""
    known = DEFAULTS.get(op.kind, {})
    return tuple(
        key for key, usual in known.items() if key in op.attrs and not _is(op.attrs[key], usual)
    )


def _is(value: Any, usual: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is(v, usual) for v in value)
    return bool(value == usual) or (usual is None and value in (None, "linear"))


def spatial(value: int | tuple[int, ...] | list[int], rank: int) -> tuple[int, ...]:
    """A size given once or per axis, as one int per spatial axis."""
    sizes = (value,) * rank if isinstance(value, int) else tuple(int(v) for v in value)
    if len(sizes) != rank:
        raise GraphError(f"{value} has {len(sizes)} sizes, expected {rank}")
    return sizes


# -- convolutions ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConvGeometry:
    """The sizes of one convolution call (of any rank, grouped, depthwise or transposed), in the input's axis order.

    ``inputs`` and ``outputs`` are channel counts, ``in_shape`` and ``out_shape`` spatial sizes
    (None where not fixed), ``multiplier`` is the depth multiplier of a depthwise convolution (0 for
    all others).
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
        """Multiply-accumulates of one sample."""
        positions = self.in_shape if self.transposed else self.out_shape
        if None in positions:
            raise ModelError(
                f"the spatial size {positions} is not fixed, so its MACs are unknown; re-save the"
                " model with a fixed Input shape"
            )
        return (
            prod(p for p in positions if p is not None)
            * prod(self.kernel)
            * self.outputs
            * self.inputs
            // self.groups
        )


def conv_geometry(op: Op, source: Tensor) -> ConvGeometry:
    """The geometry of a Conv, transposed or depthwise op on that input tensor."""
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
    """The rule of keras.src.ops.operation_utils.compute_conv_transpose_output_shape."""
    if length is None:
        return None
    reach = dilation * (kernel - 1) + 1
    if extra is None:
        return length * stride + max(reach - stride, 0) if padding == "valid" else length * stride
    return (length - 1) * stride + reach - (0 if padding == "valid" else 2 * (reach // 2)) + extra


# -- shapes ----------------------------------------------------------------------------------------


def infer(op: Op, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The op's output tensors.

    Kinds, calls and dtypes that are not known here are asked of Keras itself.
    """
    if op.kind == "InputLayer":
        return (_infer_input(op),)
    if (
        len(inputs) == 1 and inputs[0].dtype == "float32"
    ):  # what Keras makes of other dtypes depends on the layer
        if op.kind in _SAME_SHAPE:
            return inputs
        if (rule := _INFER.get(op.kind)) is not None:
            return (rule(op, *inputs),)
    known = _asked.setdefault(op, {})
    if inputs not in known:
        from lrfc.ir.keras.layers import infer as asked

        known[inputs] = asked(op, inputs)
    return known[inputs]


#: What Keras answered. An op that is gone takes its answers along.
_asked: WeakKeyDictionary[Op, dict[tuple[Tensor, ...], tuple[Tensor, ...]]] = WeakKeyDictionary()


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
    """Multiply-accumulates of one sample: convolutions, matrix products, attention and recurrent layers; element-wise work counts as 0."""
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
    """The tensor (or constant) of one argument of the op's call, wherever the call has it; None when it is not given."""
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
        "key": key_steps,
        "value": value_steps,
        "attention_output": query_steps,
    }
    projections = sum(w.size * steps[name.split("/")[0]] for name, w in kernels.items())
    width = int(op.attrs["num_heads"]) * (
        int(op.attrs["key_dim"]) + int(op.attrs.get("value_dim") or op.attrs["key_dim"])
    )
    return projections + query_steps * value_steps * width


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
    "MultiHeadAttention": _macs_attention,
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN", "Bidirectional"), _macs_recurrent),
    "ops.Matmul": _macs_matmul,
}
