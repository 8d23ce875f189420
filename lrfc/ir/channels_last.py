"""From channels first to channels last, the one layout that TensorFlow computes on every processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lrfc.ir.graph import Graph
from lrfc.ir.op import Array, Op, Ref, Shape, Tensor
from lrfc.ir.ops import ELEMENTWISE

_FIRST, _LAST = "channels_first", "channels_last"
#: Layers that TensorFlow computes with channels first on some processors only.
_WINDOWED = frozenset(
    [f"Conv{n}D{suffix}" for n in (1, 2, 3) for suffix in ("", "Transpose")]
    + [f"{kind}Conv{n}D" for n in (1, 2) for kind in ("Depthwise", "Separable")]
    + [
        f"{g}{m}Pooling{n}D"
        for n in (1, 2, 3)
        for m in ("Max", "Average")
        for g in ("", "Global", "Adaptive")
    ]
)
_RECURRENT = frozenset(f"ConvLSTM{n}D" for n in (1, 2, 3))
#: Layers for which the layout is an attribute and nothing else.
_FORMATTED = _WINDOWED | frozenset(
    "Flatten ZeroPadding1D ZeroPadding2D ZeroPadding3D Cropping2D Cropping3D UpSampling2D"
    " UpSampling3D SpatialDropout2D SpatialDropout3D Resizing CenterCrop".split()
)
_VALUES = frozenset(
    "ReLU LeakyReLU ELU Identity Dropout GaussianNoise GaussianDropout AlphaDropout"
    " ActivityRegularization".split()
)
_MERGED = frozenset("Add Subtract Multiply Average Maximum Minimum Concatenate".split())
_ALONG_AXES = frozenset(
    "BatchNormalization GroupNormalization LayerNormalization RMSNormalization UnitNormalization"
    " Normalization Softmax Concatenate".split()
)
#: Those without a weight for each position, whose axes may be several.
_UNWEIGHTED = frozenset(("UnitNormalization", "Softmax"))
#: keras.ops on values alone.
_FUNCTIONS = frozenset(
    "ops." + name
    for name in (
        "Add Subtract Multiply Divide TrueDivide Maximum Minimum Power Negative Absolute Abs Square"
        " Sqrt Rsqrt Exp Log Relu Relu6 Sigmoid Silu Tanh Elu Gelu HardSigmoid HardSilu LeakyRelu"
        " Softplus Softsign Selu Celu Clip"
    ).split()
)


def channels_last(graph: Graph) -> Graph:
    """The graph with every layer that has its channels first computing with channels last; inputs and outputs keep their layout.

    Transposes stand at the borders, and where an op depends on the order of the axes (Reshape, a
    Dense on a map, a Flatten that says channels last). Between neighbours they cancel. What
    computes value by value or along named axes moves with its neighbours. Exact: kernels are the
    same in both layouts, and of all weights only those of a PReLU, one for each position, follow
    the order of the axes.
    """
    if not any(_channels_first(op) for op in graph):
        return graph
    return _Mover(graph).moved()


def stuck(graph: Graph) -> tuple[str, ...]:
    """The ops that hold a convolution or pooling with channels first all the same: in a wrapper, or with weights in their activation."""
    return tuple(
        op.name for op in graph if _holds_first({"class_name": op.kind, "config": dict(op.attrs)})
    )


def _holds_first(value: Any) -> bool:
    if isinstance(value, Mapping):
        config = value.get("config")
        own = (
            value.get("class_name") in _WINDOWED | _RECURRENT
            and isinstance(config, Mapping)
            and config.get("data_format") == _FIRST
        )
        return own or any(_holds_first(each) for each in value.values())
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and any(_holds_first(each) for each in value)
    )


class _Mover:
    """Makes the new graph op by op.

    Every tensor of the old graph has one of two forms in the new one, or both: its own layout, and
    channels last.
    """

    def __init__(self, graph: Graph) -> None:
        self._old, self._new = graph, Graph(graph.name)
        self._own: dict[Ref, Ref] = {}
        self._last: dict[Ref, Ref] = {}
        self._twins = _twins(graph)
        self._wanted = self._read_last()
        self._decided: dict[str, bool] = {}

    def moved(self) -> Graph:
        """The new graph."""
        for op in self._old:
            self._place(op)
        self._new.outputs = tuple(self._in_own(ref) for ref in self._old.outputs)
        self._new.structure, self._new.compiled = self._old.structure, self._old.compiled
        return self._new

    def _read_last(self) -> set[Ref]:
        """The tensors that are read with channels last by all of their readers, so that a transpose may as well stand in front of what gives them."""
        wanted: set[Ref] = set()
        takes: set[str] = set()
        for op in reversed(list(self._old)):
            for output in range(len(self._old.tensors(op.name))):
                ref = Ref(op.name, output)
                readers = self._old.consumers(ref)
                if (
                    readers
                    and ref not in self._old.outputs
                    and all(reader in takes for reader, _ in readers)
                ):
                    wanted.add(ref)
            if op.name in self._twins and (_channels_first(op) or Ref(op.name) in wanted):
                takes.add(op.name)
        return wanted

    def _place(self, op: Op) -> None:
        operands, rank = self._old.operands(op.name), len(self._old.tensors(op.name)[0].shape)
        if op.kind == "Permute" and self._cancels(op, operands[0], rank):
            return
        if (
            op.kind in _RECURRENT
            and _channels_first(op)
            and len(operands) == len(self._old.tensors(op.name)) == 1
        ):
            self._place_recurrent(op, operands[0])
            return
        twin = self._twins.get(op.name)
        if twin is None or not self._moves(op, operands):
            self._new.add(op, [self._in_own(ref) for ref in operands])
            self._own.update(
                {Ref(op.name, i): Ref(op.name, i) for i in range(len(self._old.tensors(op.name)))}
            )
            return
        activation = None
        if twin.kind in _WINDOWED and not _by_value(
            twin.attrs.get("activation")
        ):  # softmax is along the last axis, whichever that is
            activation = Op(
                _free(self._new, self._old, f"{op.name}__activation"),
                "Activation",
                {"activation": twin["activation"]},
                shared=op.shared and f"{op.shared}__activation",
            )
            twin = twin.with_attrs(activation="linear")
        made = self._new.add(twin, [self._in_last(ref) for ref in operands])
        given = self._old.tensor(Ref(op.name))
        if activation is not None:
            made = self._new.add(
                activation,
                [self._transposed(made, f"{op.name}__channels_first", _dims(rank, first=True))],
            )
            self._own[Ref(op.name)] = made
        elif (
            rank < len(self._old.tensor(operands[0]).shape) or rank < 3
        ):  # a Flatten or global pooling leaves no layout
            self._own[Ref(op.name)] = made
        else:
            assert self._new.tensor(made) == Tensor(_last_shape(given.shape), given.dtype)
            self._last[Ref(op.name)] = made

    def _moves(self, op: Op, operands: Sequence[Ref]) -> bool:
        """Whether the op is to compute with channels last; all calls of a shared layer do, or none."""
        here = (
            _channels_first(op)
            or Ref(op.name) in self._wanted
            or any(ref not in self._own for ref in operands)
        )
        return here if op.shared is None else self._decided.setdefault(op.shared, here)

    def _cancels(self, op: Op, source: Ref, rank: int) -> bool:
        """Whether a Permute of the model is itself a change between the two layouts, so that it need not be made."""
        dims, ref = tuple(op.attrs["dims"]), Ref(op.name)
        if dims == _dims(rank, first=False) and source not in self._own:
            self._own[ref] = self._in_last(source)
        elif dims == _dims(rank, first=True) and ref in self._wanted:
            self._last[ref] = self._in_own(source)
        else:
            return False
        return True

    def _place_recurrent(self, op: Op, source: Ref) -> None:
        """A convolutional LSTM reads (N, T, C, ...) and gives that or (N, C, ...)."""
        rank = len(self._old.tensor(source).shape)
        here = self._transposed(
            self._in_own(source), f"{op.name}__channels_last", (1, *range(3, rank), 2)
        )
        made = self._new.add(op.with_attrs(data_format=_LAST), [here])
        if len(self._new.tensor(made).shape) < rank:
            self._last[Ref(op.name)] = made
        else:
            self._own[Ref(op.name)] = self._transposed(
                made, f"{op.name}__channels_first", (1, rank - 1, *range(2, rank - 1))
            )

    def _in_own(self, ref: Ref) -> Ref:
        if ref not in self._own:
            rank = len(self._old.tensor(ref).shape)
            self._own[ref] = self._transposed(
                self._last[ref], f"{_plain(ref)}__channels_first", _dims(rank, first=True)
            )
        return self._own[ref]

    def _in_last(self, ref: Ref) -> Ref:
        if ref not in self._last:
            rank = len(self._old.tensor(ref).shape)
            if rank < 3:
                return self._in_own(ref)
            self._last[ref] = self._transposed(
                self._own[ref], f"{_plain(ref)}__channels_last", _dims(rank, first=False)
            )
        return self._last[ref]

    def _transposed(self, ref: Ref, name: str, dims: tuple[int, ...]) -> Ref:
        """The tensor with its axes in that order; by a Reshape where only axes of length 1 change places."""
        shape = self._new.tensor(ref).shape[1:]
        name = _free(self._new, self._old, name)
        long = [axis for axis in dims if shape[axis - 1] != 1]
        if long == sorted(long) and None not in shape:
            return self._new.add(
                Op(name, "Reshape", {"target_shape": tuple(shape[axis - 1] for axis in dims)}),
                [ref],
            )
        return self._new.add(Op(name, "Permute", {"dims": dims}), [ref])


def _channels_first(op: Op) -> bool:
    """Whether the op says that its channels come first.

    Keras' own layers only: a custom one computes what it likes.
    """
    return (
        op.origin is None
        and op.kind in _FORMATTED | _RECURRENT
        and op.attrs.get("data_format") == _FIRST
    )


def _dims(rank: int, *, first: bool) -> tuple[int, ...]:
    """The dims of the Permute of a tensor of that rank, batch included, that moves the channels to the front or from there to the end."""
    return (rank - 1, *range(1, rank - 1)) if first else (*range(2, rank), 1)


def _last_shape(shape: Shape) -> Shape:
    return (shape[0], *shape[2:], shape[1])


def _plain(ref: Ref) -> str:
    return ref.op if ref.output == 0 else f"{ref.op}_{ref.output}"


def _free(new: Graph, old: Graph, name: str) -> str:
    number, candidate = 0, name
    while candidate in new or candidate in old:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


# -- the ops with channels last --------------------------------------------------------------------


def _twins(graph: Graph) -> dict[str, Op]:
    """The op with channels last of each op that has one; calls of a shared layer hold the very same weights."""
    found: dict[str, Op] = {}
    weights: dict[str, Mapping[str, Array]] = {}
    for op in graph:
        twin = _twin(graph, op)
        if twin is not None and op.shared is not None:
            twin = replace(twin, weights=weights.setdefault(op.shared, twin.weights))
        if twin is not None:
            found[op.name] = twin
    return found


def _twin(graph: Graph, op: Op) -> Op | None:
    """The op that computes the same of tensors with channels last; None where there is none."""
    calls = graph.calls(op)
    tensors = [
        tensor
        for call in calls
        for tensor in (*graph.input_tensors(call.name), *graph.tensors(call.name))
    ]
    operands = len(graph.operands(op.name))
    if operands == 0 or len(graph.tensors(op.name)) != 1:
        return None
    if op.kind in _FUNCTIONS:
        return op if _ranks(tensors) == 1 and len(tensors[0].shape) > 2 and _scalars(op) else None
    if op.origin is not None or (operands > 1 and (op.kind not in _MERGED or op.call is not None)):
        return None
    if op.kind in _FORMATTED:
        held = {
            name for name in op.weights if "/" in name
        }  # an activation with weights of its own, one for each position
        return (
            op.with_attrs(data_format=_LAST)
            if op.attrs.get("data_format") == _FIRST and not held
            else None
        )
    if _ranks(tensors) > 1 or len(tensors[0].shape) < 3:
        return None
    rank = len(tensors[0].shape)
    if op.kind == "PReLU":
        axes = op.attrs.get("shared_axes")
        alpha = np.ascontiguousarray(np.moveaxis(op.weights["alpha"], 0, -1))
        return replace(op, weights={"alpha": alpha}).with_attrs(
            shared_axes=axes and tuple(_axis(axis, rank) % rank for axis in axes)
        )
    if op.kind in _ALONG_AXES:
        return _along(op, rank)
    plain = op.kind in _VALUES and op.attrs.get("noise_shape") is None
    scaled = op.kind == "Rescaling" and all(
        isinstance(op.attrs.get(name, 0.0), int | float) for name in ("scale", "offset")
    )
    activated = op.kind == "Activation" and _by_value(op.attrs.get("activation"))
    return op if plain or scaled or activated or op.kind in _MERGED else None


def _ranks(tensors: Sequence[Tensor]) -> int:
    return len({len(tensor.shape) for tensor in tensors})


def _along(op: Op, rank: int) -> Op | None:
    """The op along the same axes in their new places."""
    axis = op.attrs.get("axis", -1)
    if axis is None:
        return op
    if isinstance(axis, int):
        return op.with_attrs(axis=_axis(axis, rank))
    if len(axis) > 1 and op.kind not in _UNWEIGHTED:
        return None
    return op.with_attrs(axis=tuple(_axis(each, rank) for each in axis))


def _axis(axis: int, rank: int) -> int:
    """The place of an axis once the channels are last; theirs is -1."""
    axis %= rank
    return axis if axis == 0 else -1 if axis == 1 else axis - 1


def _by_value(activation: Any) -> bool:
    """Whether an activation computes value by value."""
    if isinstance(activation, Mapping):
        return activation.get("class_name") in ("ReLU", "LeakyReLU", "ELU")
    return activation is None or activation in ELEMENTWISE


def _scalars(op: Op) -> bool:
    """Whether all that a function is given besides tensors is single values."""
    args, kwargs = op.call or ((), {})
    given = [*args, *kwargs.values(), *op.attrs.values()]
    return all(np.ndim(value) == 0 for value in given)
