"""Workloads: the ops that a runtime executes, by all that decides how long they take."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from types import MappingProxyType

from lrfc.costs.arena import in_place, is_view, own_activation
from lrfc.errors import ModelError
from lrfc.factorization import recurrent
from lrfc.factorization.separable import split_separable
from lrfc.ir import ops
from lrfc.ir.graph import Graph
from lrfc.ir.kinds import Family
from lrfc.ir.op import Op, Shape, Tensor
from lrfc.ir.padding import is_padding, keeps_zeros


@dataclass(frozen=True)
class Workload:
    """One op of a runtime for one sample; ops with equal workloads take equal time on a device.

    ``kind``: 'conv', 'depthwise', 'transposed', 'dense', 'pool' or 'reduce'; for an activation that
    runs alone its name, for any other op its Keras kind in lower case. ``inputs`` and ``output``:
    shapes without the batch axis, channels last. ``kernel``, ``strides``, ``dilation``: spatial,
    empty where there is none. ``groups``: of a convolution. ``activation``: the fused one, or None.
    ``params``: weight values, bias included. ``macs``: multiply-accumulate operations.
    """

    kind: str
    inputs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    activation: str | None = None
    params: int = 0
    macs: int = 0

    def __str__(self) -> str:
        """The text in the store of measurements, which ``parse`` reads.

        Such as 'conv 16x16x32 -> 8x8x64 k3x3 s2x2 relu params=18496 macs=1179648'.
        """
        window = [
            letter + _shown(sizes)
            for letter, sizes in zip("ksd", (self.kernel, self.strides, self.dilation), strict=True)
            if sizes
        ]
        words = [self.kind, "+".join(map(_shown, self.inputs)), "->", _shown(self.output), *window]
        words += [f"groups={self.groups}"] if self.groups != 1 else []
        words += [self.activation] if self.activation else []
        return " ".join([*words, f"params={self.params}", f"macs={self.macs}"])

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        # A search looks the same workloads up again and again, so the hash of the nested shapes is
        # computed once.
        return hash(
            (
                self.kind,
                self.inputs,
                self.output,
                self.kernel,
                self.strides,
                self.dilation,
                self.groups,
                self.activation,
                self.params,
                self.macs,
            )
        )


def parse(text: str) -> Workload:
    """The workload of a text that ``str`` wrote; ValueError for any other text."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f"no workload of an op: '{text}'")
    part = match.groupdict()
    output, kernel, strides, dilation = (
        _sizes(part[key]) for key in ("output", "kernel", "strides", "dilation")
    )
    inputs = tuple(_sizes(shape) for shape in part["inputs"].split("+")) if part["inputs"] else ()
    numbers = int(part["groups"] or 1), part["activation"], int(part["params"]), int(part["macs"])
    return Workload(part["kind"], inputs, output, kernel, strides, dilation, *numbers)


_SHAPE = r"(?:\d+(?:x\d+)*|\(\))"
_TEXT = re.compile(
    rf"(?P<kind>\S+) (?P<inputs>{_SHAPE}(?:\+{_SHAPE})*)? ?-> (?P<output>{_SHAPE})(?:"
    rf" k(?P<kernel>{_SHAPE}))?(?: s(?P<strides>{_SHAPE}))?"
    rf"(?: d(?P<dilation>{_SHAPE}))?(?: groups=(?P<groups>\d+))?(?: (?P<activation>[^\s=]+))?"
    r" params=(?P<params>\d+) macs=(?P<macs>\d+)"
)


def _shown(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes)) or "()"


def _sizes(text: str | None) -> tuple[int, ...]:
    return tuple(map(int, text.split("x"))) if text and text != "()" else ()


def workloads(graph: Graph) -> Iterator[tuple[str, Workload]]:
    """Yield name and workload of each op that a runtime executes; ModelError for unknown shapes.

    The BatchNorms of the graph have to be folded. Ops that cost nothing (reshapes, dropout, a fused
    activation) have no workload, a separable convolution has two, and a layer whose activation is
    not fused has one for it. A recurrent layer has one for each matrix and one for the rest.
    """
    for op in graph:
        if op.kind != "InputLayer" and not in_place(graph, op):
            inputs, output = graph.input_tensors(op.name), graph.tensors(op.name)[0]
            for workload in _executed(op, inputs, output, _fused(graph, op)):
                yield op.name, workload


def chain(graph: Graph, name: str, stages: Sequence[Op]) -> Iterator[Workload]:
    """Yield the workloads of the factor layers ``stages`` in the place of an op.

    Padding that moves behind the first one (``lrfc.ir.padding``) is not among them, as it takes the
    place of that in front of the op.
    """
    source = graph.input_tensors(name)[0]
    behind = _fused(graph, graph.op(name))
    padding = padding_before(graph, name)
    if padding is not None and keeps_zeros(stages[0], source):
        source = graph.input_tensors(padding.name)[0]
        stages = (stages[0], padding, *stages[1:])
    for stage, following in pairwise([*stages, None]):
        assert stage is not None
        output = ops.infer(stage, (source,))[0]
        if not is_view(stage) and stage is not padding:
            yield from _executed(stage, (source,), output, behind if following is None else None)
        source = output


def padding_before(graph: Graph, name: str) -> Op | None:
    """The zero padding in front of an op that no other op reads; None without one."""
    operands = graph.operands(name)
    source = graph.op(operands[0].op) if operands else None
    if source is None or not is_padding(source) or graph.only_consumer(source.name) is None:
        return None
    return source


def _fused(graph: Graph, op: Op) -> str | None:
    """The activation behind the op that is fused into it; None without one."""
    reader = graph.only_consumer(op.name)
    while reader is not None and reader.kind == "BatchNormalization" and in_place(graph, reader):
        reader = graph.only_consumer(reader.name)
    if reader is None or reader.kind not in ("ReLU", "Activation") or not in_place(graph, reader):
        return None
    return _activation(reader)


def _activation(op: Op) -> str | None:
    """The name of the Keras function that an activation op computes; None for the identity."""
    if op.kind == "ReLU":
        return "relu6" if op["max_value"] == 6 else "relu"
    name = op["activation"]
    return None if name in (None, "linear") else str(name if isinstance(name, str) else "custom")


#: Families whose kinds share a name in workloads; any other kind has its own.
_SHARED_NAMES: Mapping[Family, str] = MappingProxyType(
    {
        "conv": "conv",
        "transposed": "transposed",
        "depthwise": "depthwise",
        "dense": "dense",
        "einsum": "dense",
        "pooling": "pool",
        "global_pooling": "reduce",
    }
)


def _executed(
    op: Op, inputs: tuple[Tensor, ...], output: Tensor, behind: str | None
) -> Iterator[Workload]:
    """The workloads of one op. ``behind``: the activation of its reader, where it is fused."""
    if op.info.is_separable:
        for part in split_separable(op):
            middle = ops.infer(part, inputs)
            yield from _executed(part, inputs, middle[0], behind if part.name == op.name else None)
            inputs = middle
        return
    if op.info.family == "recurrent" and recurrent.refusal(op) is None:
        yield from _steps(op, inputs, output)
        return
    family = op.info.family
    apart = own_activation(op)
    activation = op.attrs.get("activation") if apart or family in _SHARED_NAMES else None
    fused = behind
    if fused is None and not apart and activation not in (None, "linear"):
        fused = str(activation)
    if op.kind == "Activation":
        kind = _activation(op) or "linear"
    else:
        kind = _SHARED_NAMES.get(family, op.kind.lower())
    first = op.attrs.get("data_format") == "channels_first"
    shapes = tuple(_static(op, tensor.shape, first) for tensor in inputs)
    result = _static(op, output.shape, first and len(output.shape) == len(inputs[0].shape))
    yield Workload(
        kind,
        shapes,
        result,
        *_window(op, kind, inputs, output),
        activation=fused,
        params=op.params,
        macs=ops.macs(op, inputs, (output,)),
    )
    if apart:
        yield Workload(activation if isinstance(activation, str) else "custom", (result,), result)


def _steps(op: Op, inputs: tuple[Tensor, ...], output: Tensor) -> Iterator[Workload]:
    """The workloads of a recurrent layer: the matrix products of all steps, and the rest."""
    rest = op.params
    source, *states = (_static(op, tensor.shape, channels_first=False) for tensor in inputs)
    for name, kernel in op.weights.items():
        if name.endswith("kernel"):
            size, (depth, columns) = kernel.size, kernel.shape
            read, made = (source[0], depth), (source[0], columns)
            yield Workload("dense", (read,), made, params=size, macs=source[0] * size)
            rest -= size
    result = _static(op, output.shape, channels_first=False)
    yield Workload(op.kind.lower(), (source, *states), result, params=rest)


#: Kernel, strides, dilation and groups of a workload.
_Window = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]


def _window(op: Op, kind: str, inputs: tuple[Tensor, ...], output: Tensor) -> _Window:
    if kind in ("conv", "depthwise", "transposed"):
        conv = ops.conv_geometry(op, inputs[0])
        return conv.kernel, conv.strides, conv.dilation, conv.groups
    if kind == "pool":
        rank = len(output.shape) - 2
        size = ops.spatial(op["pool_size"], rank)
        strides = size if op["strides"] is None else ops.spatial(op["strides"], rank)
        return size, strides, (), 1
    return (), (), (), 1


def _static(op: Op, shape: Shape, channels_first: bool) -> tuple[int, ...]:
    """The shape without the batch axis, channels last; ModelError when it is not fixed."""
    sizes = tuple(size for size in shape[1:] if size is not None)
    if len(sizes) != len(shape) - 1:
        raise ModelError(
            f"layer '{op.name}': the shape {Tensor(shape)} is not fixed, so its time is unknown;"
            " re-save the model with a fixed Input shape"
        )
    return (*sizes[1:], sizes[0]) if channels_first else sizes
