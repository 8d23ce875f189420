"""Conversion from channels first to channels last, which TensorFlow computes on every processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lrfc.ir.counterparts import (
    FIRST,
    LAST,
    RECURRENT,
    WINDOWED,
    by_value,
    counterparts,
    is_channels_first,
)
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref, Shape, Tensor


def channels_last(graph: Graph) -> Graph:
    """Convert every layer with channels first; inputs and outputs of the graph keep their layout.

    Transposes are inserted at the borders, and where an op depends on the order of the axes: a
    Reshape, a Dense on a feature map, a Flatten with channels last. Between neighbours they cancel.
    Ops that compute value by value or along named axes are converted with their neighbours. The
    rewrite is exact: kernels are the same in both layouts. Of all weights only those of a PReLU,
    one for each position, follow the order of the axes.
    """
    if not any(is_channels_first(op) for op in graph):
        return graph
    return _Conversion(graph).run()


def stuck(graph: Graph) -> tuple[str, ...]:
    """Names of the ops with a convolution or pooling with channels first that is not converted.

    They are in a wrapper, or have weights in their activation.
    """
    return tuple(
        op.name for op in graph if _holds_first({"class_name": op.kind, "config": dict(op.attrs)})
    )


def _holds_first(value: Any) -> bool:
    """Whether a configuration has such a layer, at any depth."""
    if isinstance(value, Mapping):
        config = value.get("config")
        own = (
            value.get("class_name") in WINDOWED | RECURRENT
            and isinstance(config, Mapping)
            and config.get("data_format") == FIRST
        )
        return own or any(_holds_first(item) for item in value.values())
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and any(_holds_first(item) for item in value)
    )


class _Conversion:
    """The conversion of one graph, op by op, into a new one.

    Every tensor of the old graph has one of two forms in the new graph, or both: its own layout,
    and channels last.
    """

    def __init__(self, graph: Graph) -> None:
        self._old, self._new = graph, Graph(graph.name)
        self._own: dict[Ref, Ref] = {}
        self._last: dict[Ref, Ref] = {}
        self._counterparts = counterparts(graph)
        self._read_last = self._tensors_read_last()
        self._decisions: dict[str, bool] = {}

    def run(self) -> Graph:
        """Convert all ops and return the new graph."""
        for op in self._old:
            self._convert(op)
        self._new.outputs = tuple(self._in_own(ref) for ref in self._old.outputs)
        self._new.structure, self._new.compiled = self._old.structure, self._old.compiled
        return self._new

    def _tensors_read_last(self) -> set[Ref]:
        """The tensors that all of their readers read with channels last.

        Their producers can be converted too, with a transpose before them instead of after.
        """
        read_last: set[Ref] = set()
        converted: set[str] = set()
        for op in reversed(list(self._old)):
            for output in range(len(self._old.tensors(op.name))):
                ref = Ref(op.name, output)
                readers = self._old.consumers(ref)
                if (
                    readers
                    and ref not in self._old.outputs
                    and all(reader in converted for reader, _ in readers)
                ):
                    read_last.add(ref)
            if op.name in self._counterparts and (
                is_channels_first(op) or Ref(op.name) in read_last
            ):
                converted.add(op.name)
        return read_last

    def _convert(self, op: Op) -> None:
        """Add one op to the new graph, converted if it is to be."""
        operands, rank = self._old.operands(op.name), len(self._old.tensors(op.name)[0].shape)
        if op.kind == "Permute" and self._cancels(op, operands[0], rank):
            return
        if (
            op.kind in RECURRENT
            and is_channels_first(op)
            and len(operands) == len(self._old.tensors(op.name)) == 1
        ):
            self._convert_recurrent(op, operands[0])
            return
        converted = self._counterparts.get(op.name)
        if converted is None or not self._is_converted(op, operands):
            self._new.add(op, [self._in_own(ref) for ref in operands])
            self._own.update(
                {Ref(op.name, i): Ref(op.name, i) for i in range(len(self._old.tensors(op.name)))}
            )
        elif converted.kind in WINDOWED and not by_value(converted.attrs.get("activation")):
            self._own[Ref(op.name)] = self._add_with_activation(op, converted, operands)
        else:
            result = self._new.add(converted, [self._in_last(ref) for ref in operands])
            if rank < len(self._old.tensor(operands[0]).shape) or rank < 3:
                # the output of a Flatten or a global pooling has no layout
                self._own[Ref(op.name)] = result
            else:
                old = self._old.tensor(Ref(op.name))
                assert self._new.tensor(result) == Tensor(_last_shape(old.shape), old.dtype)
                self._last[Ref(op.name)] = result

    def _add_with_activation(self, op: Op, converted: Op, operands: Sequence[Ref]) -> Ref:
        """Add the converted op and, on its output in the old layout, its activation.

        Softmax runs along the last axis, in either layout.
        """
        activation = Op(
            _free(self._new, self._old, f"{op.name}__activation"),
            "Activation",
            {"activation": converted["activation"]},
            shared=op.shared and f"{op.shared}__activation",
        )
        linear = converted.with_attrs(activation="linear")
        result = self._new.add(linear, [self._in_last(ref) for ref in operands])
        dims = _dims(len(self._old.tensors(op.name)[0].shape), first=True)
        transposed = self._transposed(result, f"{op.name}__channels_first", dims)
        return self._new.add(activation, [transposed])

    def _is_converted(self, op: Op, operands: Sequence[Ref]) -> bool:
        """Whether the op is to be converted. The first call of a shared layer decides for all."""
        convert = (
            is_channels_first(op)
            or Ref(op.name) in self._read_last
            or any(ref not in self._own for ref in operands)
        )
        return convert if op.shared is None else self._decisions.setdefault(op.shared, convert)

    def _cancels(self, op: Op, source: Ref, rank: int) -> bool:
        """Drop a Permute of the model that only changes the layout; whether it was one."""
        dims, ref = tuple(op.attrs["dims"]), Ref(op.name)
        if dims == _dims(rank, first=False) and source not in self._own:
            self._own[ref] = self._in_last(source)
        elif dims == _dims(rank, first=True) and ref in self._read_last:
            self._last[ref] = self._in_own(source)
        else:
            return False
        return True

    def _convert_recurrent(self, op: Op, source: Ref) -> None:
        """Convert a convolutional LSTM: from (N, T, C, ...) to the same shape or to (N, C, ...)."""
        rank = len(self._old.tensor(source).shape)
        operand = self._transposed(
            self._in_own(source), f"{op.name}__channels_last", (1, *range(3, rank), 2)
        )
        result = self._new.add(op.with_attrs(data_format=LAST), [operand])
        if len(self._new.tensor(result).shape) < rank:
            self._last[Ref(op.name)] = result
        else:
            self._own[Ref(op.name)] = self._transposed(
                result, f"{op.name}__channels_first", (1, rank - 1, *range(2, rank - 1))
            )

    def _in_own(self, ref: Ref) -> Ref:
        """The tensor in the layout of the old graph, in the new graph."""
        if ref not in self._own:
            rank = len(self._old.tensor(ref).shape)
            self._own[ref] = self._transposed(
                self._last[ref], f"{_plain(ref)}__channels_first", _dims(rank, first=True)
            )
        return self._own[ref]

    def _in_last(self, ref: Ref) -> Ref:
        """The tensor with channels last, in the new graph; itself where it has no spatial axes."""
        if ref not in self._last:
            rank = len(self._old.tensor(ref).shape)
            if rank < 3:
                return self._in_own(ref)
            self._last[ref] = self._transposed(
                self._own[ref], f"{_plain(ref)}__channels_last", _dims(rank, first=False)
            )
        return self._last[ref]

    def _transposed(self, ref: Ref, name: str, dims: tuple[int, ...]) -> Ref:
        """Add a transpose of the tensor: a Reshape where only axes of length 1 move."""
        shape = self._new.tensor(ref).shape[1:]
        name = _free(self._new, self._old, name)
        long = [axis for axis in dims if shape[axis - 1] != 1]
        if long == sorted(long) and None not in shape:
            return self._new.add(
                Op(name, "Reshape", {"target_shape": tuple(shape[axis - 1] for axis in dims)}),
                [ref],
            )
        return self._new.add(Op(name, "Permute", {"dims": dims}), [ref])


def _dims(rank: int, *, first: bool) -> tuple[int, ...]:
    """The ``dims`` of the Permute that moves the channels to the front, or from there to the end.

    ``rank`` counts the batch axis too.
    """
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
