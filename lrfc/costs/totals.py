"""MACs and parameters of a whole graph, and of one layer."""

from __future__ import annotations

from lrfc.ir import ops
from lrfc.ir.fold import inference_form
from lrfc.ir.graph import Graph


def totals(graph: Graph) -> dict[str, int]:
    """MACs of one sample and parameters of a graph, after folding of its BatchNorms."""
    folded = inference_form(graph)
    macs = sum(
        ops.macs(op, folded.input_tensors(op.name), folded.tensors(op.name)) for op in folded
    )
    return {"macs": macs, "params": folded.params}


def totals_of(graph: Graph, name: str) -> dict[str, int]:
    """Parameters of a layer, and the MACs of all its calls."""
    op = graph.op(name)
    return {
        "params": op.params,
        "macs": sum(
            ops.macs(call, graph.input_tensors(call.name), graph.tensors(call.name))
            for call in graph.calls(op)
        ),
    }
