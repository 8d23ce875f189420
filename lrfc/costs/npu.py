"""Workloads of a graph on an NPU: its compiler fuses padding into the convolution behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lrfc.costs import workload as plain
from lrfc.costs.workload import Workload
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Tensor
from lrfc.ir.padding import is_padding, keeps_zeros


def workloads(graph: Graph) -> Iterator[tuple[str, Workload]]:
    """As ``lrfc.costs.workload.workloads``, without the paddings that are fused."""
    pairs = list(plain.workloads(graph))
    by_name = dict(reversed(pairs))  # the first workload of each op
    for name, workload in pairs:
        reader = graph.only_consumer(name) if _pads(graph.op(name)) else None
        if (
            reader is None
            or reader.name not in by_name
            or not takes_in(by_name[reader.name], workload)
        ):
            yield name, workload


def chain(graph: Graph, name: str, stages: Sequence[Op]) -> Iterator[Workload]:
    """As ``lrfc.costs.workload.chain``, with the padding where it is not fused.

    The first factor layer may have a smaller window than the layer, so that the padding runs as an
    op of its own, in front of it or, where it can move (``lrfc.ir.padding``), behind it. On
    ethos-u55-128 the padding before a strided layer of ResNet-20 then takes 21,000 cycles, more
    than many layers.
    """
    ops = list(plain.chain(graph, name, stages))
    source, padding = graph.input_tensors(name)[0], plain.padding_before(graph, name)
    if padding is None or not _pads(padding):
        yield from ops
        return
    behind = int(keeps_zeros(stages[0], source))
    before, after = graph.input_tensors(padding.name)[0], source
    if behind:
        width = ops[0].output[-1]
        before, after = (Tensor((*t.shape[:-1], width), t.dtype) for t in (before, after))
    moved = Workload(padding.kind.lower(), (_sizes(before),), _sizes(after))
    yield from ops[:behind]
    if behind < len(ops) and not takes_in(ops[behind], moved):
        yield moved
    yield from ops[behind:]


def _sizes(tensor: Tensor) -> tuple[int, ...]:
    return tuple(size or 0 for size in tensor.shape[1:])


def takes_in(reader: Workload, padding: Workload) -> bool:
    """Whether a padding is fused into the op that reads it: on each side it is below the window.

    Vela's rule for a Pad in front of a convolution or a pooling that has no padding of its own.
    """
    if (
        reader.kind not in ("conv", "depthwise", "pool")
        or len(reader.kernel) != len(padding.output) - 1
    ):
        return False
    added = [
        after - before for after, before in zip(padding.output, padding.inputs[0], strict=True)
    ]
    return all(-(-sides // 2) < taps for sides, taps in zip(added[:-1], reader.kernel, strict=True))


def _pads(op: Op) -> bool:
    """Whether the op is a padding that may be fused."""
    return is_padding(op) and op.info.spatial_axes < 3
