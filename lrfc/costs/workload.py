"""What a runtime executes, op by op: the shape of the work that decides how long an op takes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from types import MappingProxyType

from lrfc.costs.arena import in_place, is_view, own_activation
from lrfc.errors import ModelError
from lrfc.factorization.separable import split_separable
from lrfc.ir import ops
from lrfc.ir.graph import Graph
from lrfc.ir.kinds import Family
from lrfc.ir.op import Op, Shape, Tensor


@dataclass(frozen=True)
class Workload:
    """One operation of a runtime for one sample; two ops with equal workloads take equal time on the same device.

    ``kind``: the family ('conv', 'depthwise', 'transposed', 'dense', 'pool', 'reduce', 'add', ... ,
    the Keras kind in lower case for the rest, an activation that runs alone by its own name).
    ``inputs`` and ``output``: shapes without the batch axis, channels last. ``kernel``,
    ``strides``, ``dilation``: spatial, empty where there is none. ``groups``: of a convolution.
    ``activation``: fused into the op, None for none. ``params``: weight values, bias included.
    ``macs``: multiply-accumulates.
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
        """The text that a store is searched by, such as 'conv 16x16x32 -> 8x8x64 k3x3 s2x2 relu params=18496 macs=1179648'; ``parse`` reads it."""
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
        # A search asks for the same workloads again and again: the hash of the nested shapes is
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
    """The workload that ``str`` wrote. ValueError for any other text."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise ValueError(f"no workload of an op: '{text}'")
    part = found.groupdict()
    output, kernel, strides, dilation = (
        _sizes(part[key]) for key in ("output", "kernel", "strides", "dilation")
    )
    inputs = tuple(_sizes(each) for each in part["inputs"].split("+")) if part["inputs"] else ()
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
    """The name and workload of each op that a runtime executes, in order, of a graph whose BatchNorms are folded.

    Ops that cost nothing (reshapes, dropout, an activation that the op before it fuses) have none;
    a separable convolution has two, an activation that runs by itself behind its layer has one of
    its own. ModelError when a shape is not fixed.
    """
    for op in graph:
        if op.kind != "InputLayer" and not in_place(graph, op):
            yield from (
                (op.name, each)
                for each in _executed(
                    op, graph.input_tensors(op.name), graph.tensors(op.name)[0], _fused(graph, op)
                )
            )


def chain(graph: Graph, name: str, stages: Sequence[Op]) -> Iterator[Workload]:
    """The workloads of the chain ``stages`` in the place of the op of that name (of a candidate: ``factors.stages(ranks)``)."""
    source = graph.input_tensors(name)[0]
    behind = _fused(graph, graph.op(name))
    for stage, following in pairwise([*stages, None]):
        assert stage is not None
        output = ops.infer(stage, (source,))[0]
        if not is_view(stage):
            yield from _executed(stage, (source,), output, behind if following is None else None)
        source = output


def _fused(graph: Graph, op: Op) -> str | None:
    """The activation that the op's only reader adds to it at no cost."""
    reader = graph.only_consumer(op.name)
    while reader is not None and reader.kind == "BatchNormalization" and in_place(graph, reader):
        reader = graph.only_consumer(reader.name)
    if reader is None or reader.kind not in ("ReLU", "Activation") or not in_place(graph, reader):
        return None
    return _activation(reader)


def _activation(op: Op) -> str | None:
    """What an activation op computes, by the name of Keras' function; None for the identity."""
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
    """The workloads of one op; ``behind`` is the activation of its reader that it fuses."""
    if op.info.is_separable:
        for part in split_separable(op):
            middle = ops.infer(part, inputs)
            yield from _executed(part, inputs, middle[0], behind if part.name == op.name else None)
            inputs = middle
        return
    family = op.info.family
    kind = _SHARED_NAMES.get(family, op.kind.lower())
    own = op.attrs.get("activation") if own_activation(op) or family in _SHARED_NAMES else None
    apart = own_activation(op)
    fused = behind if behind is not None else None if apart or own in (None, "linear") else str(own)
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups = 1
    first = op.attrs.get("data_format") == "channels_first"
    if kind in ("conv", "depthwise", "transposed"):
        conv = ops.conv_geometry(op, inputs[0])
        kernel, strides, dilation, groups = conv.kernel, conv.strides, conv.dilation, conv.groups
    elif kind == "pool":
        rank = len(output.shape) - 2
        kernel = ops.spatial(op["pool_size"], rank)
        strides = kernel if op["strides"] is None else ops.spatial(op["strides"], rank)
    elif op.kind == "Activation":
        kind = _activation(op) or "linear"
    shapes = tuple(_static(op, tensor.shape, first) for tensor in inputs)
    result = _static(op, output.shape, first and len(output.shape) == len(inputs[0].shape))
    yield Workload(
        kind,
        shapes,
        result,
        kernel,
        strides,
        dilation,
        groups,
        fused,
        op.params,
        ops.macs(op, inputs, (output,)),
    )
    if apart:
        yield Workload(str(own if isinstance(own, str) else "custom"), (result,), result)


def _static(op: Op, shape: Shape, channels_first: bool) -> tuple[int, ...]:
    """The shape without the batch, channels last."""
    sizes = tuple(size for size in shape[1:] if size is not None)
    if len(sizes) != len(shape) - 1:
        raise ModelError(
            f"layer '{op.name}': the shape {Tensor(shape)} is not fixed, so its time is unknown;"
            " re-save the model with a fixed Input shape"
        )
    return (*sizes[1:], sizes[0]) if channels_first else sizes
