"""What an NPU's compiler executes of a graph, where that differs from what other runtimes execute: it takes padding into the convolution behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lrfc.costs import workload as plain
from lrfc.costs.workload import Workload
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op


def workloads(graph: Graph) -> Iterator[tuple[str, Workload]]:
    """As ``lrfc.costs.workload.workloads``, without the paddings that the op behind them takes in."""
    found = list(plain.workloads(graph))
    by_name = dict(reversed(found))  # the first workload of each op
    for name, each in found:
        reader = graph.only_consumer(name) if _pads(graph.op(name)) else None
        if reader is None or reader.name not in by_name or not takes_in(by_name[reader.name], each):
            yield name, each


def chain(graph: Graph, name: str, stages: Sequence[Op]) -> Iterator[Workload]:
    """As ``lrfc.costs.workload.chain``, behind the padding that the layer would take in and the first stage does not: it becomes an op of its own.

    On ethos-u55-128 the padding before a strided layer of ResNet-20 takes 21,000 cycles that way,
    more than many layers.
    """
    found = list(plain.chain(graph, name, stages))
    padding = _before(graph, name)
    if padding is not None and not takes_in(found[0], padding):
        yield padding
    yield from found


def takes_in(reader: Workload, padding: Workload) -> bool:
    """Whether a compiler gives the padding to the op that reads it: on each side it is smaller than the window.

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
    """Whether it is a padding that a compiler may take into the op behind it."""
    return op.info.family == "padding" and op.info.spatial_axes < 3


def _before(graph: Graph, name: str) -> Workload | None:
    """The workload of the padding that only this op reads."""
    operands = graph.operands(name)
    source = graph.op(operands[0].op) if operands else None
    if source is None or not _pads(source) or graph.only_consumer(source.name) is None:
        return None
    return Workload(
        source.kind.lower(),
        tuple(
            tuple(size or 0 for size in tensor.shape[1:])
            for tensor in graph.input_tensors(source.name)
        ),
        tuple(size or 0 for size in graph.tensors(source.name)[0].shape[1:]),
    )
