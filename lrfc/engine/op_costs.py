"""The per-op profile of a build: costs of each op of the original and of the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict
from math import prod
from typing import Any

from lrfc.costs.workload import Workload
from lrfc.engine.benchmark import Bench, Spent
from lrfc.errors import UsageError
from lrfc.ir.graph import Graph
from lrfc.passes.profile import profile
from lrfc.protocols import Artifact
from lrfc.results.memory_plan import MemoryPlans
from lrfc.results.op_costs import OpCost, OpProfile
from lrfc.system.spans import span


@span("per-op profile")
def op_profile(
    bench: Bench,
    graphs: tuple[Graph, Graph],
    files: tuple[Artifact, Artifact],
    memory: MemoryPlans | None,
) -> OpProfile:
    """The ops of the original and of another graph, with latencies predicted for the device.

    ``files``: those that were emitted from the graphs. ``memory``: their activations.
    """
    workloads = [list(bench.reading.workloads(graph)) for graph in graphs]
    times = _times(bench, [workload for ops in workloads for _, workload in ops])
    overhead = None if times is None else bench.profile.overhead * bench.ms_per_unit
    layers = {op.name for op in graphs[0]}
    sides = [
        _side(graph, layers, ops, times, file.precision, bench.spent(file, graph))
        for graph, ops, file in zip(graphs, workloads, files, strict=True)
    ]
    return OpProfile(overhead_ms=overhead, before=sides[0], after=sides[1], memory=memory)


def _times(bench: Bench, workloads: Sequence[Workload]) -> Mapping[Workload, float] | None:
    """Milliseconds of each workload; None where the profile has no family for one of them."""
    distinct = list(dict.fromkeys(workloads))
    try:
        predicted = dict(zip(distinct, bench.profile.ops(distinct).tolist(), strict=True))
    except UsageError:  # no family
        return None
    return {
        workload: time * bench.ms_per_unit
        for workload, time in {**predicted, **bench.prices(distinct)}.items()
    }


def _side(
    graph: Graph,
    layers: Set[str],
    workloads: Sequence[tuple[str, Workload]],
    times: Mapping[Workload, float] | None,
    precision: str,
    spent: Mapping[str, Spent],
) -> tuple[OpCost, ...]:
    """The costs of the ops of one graph, then of operators that only the file has."""
    predicted_ms: dict[str, float] = {}
    for name, workload in workloads:
        if times is not None:
            predicted_ms[name] = predicted_ms.get(name, 0.0) + times[workload]
    costs = []
    for row in profile(graph, precision).rows:
        op = graph.op(row.name)
        weights = [weight.shape for weight in op.weights.values() if weight.ndim > 1]
        costs.append(
            OpCost(
                name=row.name,
                layer=_layer(row.name, layers),
                kind=row.kind,
                kernel=max(weights, key=prod) if weights else None,
                output=row.shapes[0][1:] if row.shapes else None,
                params=row.params,
                macs=row.macs,
                weight_bytes=row.weight_bytes,
                live_bytes=row.live_bytes,
                predicted_ms=predicted_ms.get(row.name),
                **_compiled(spent.get(row.name)),
            )
        )
    # Operators that the converter or the compiler added have names of their own.
    costs += [_operator(name, cost) for name, cost in spent.items() if name not in graph]
    return tuple(costs)


def _operator(name: str, cost: Spent) -> OpCost:
    """The costs of an operator that belongs to no op of the graph."""
    return OpCost(
        name=name,
        layer=name,
        kind="operator",
        kernel=None,
        output=None,
        params=0,
        macs=0,
        weight_bytes=0,
        live_bytes=0,
        predicted_ms=None,
        **_compiled(cost),
    )


def _compiled(cost: Spent | None) -> dict[str, Any]:
    """The fields of an OpCost that the device's compiler reports."""
    return {} if cost is None else asdict(cost)


def _layer(name: str, layers: Set[str]) -> str:
    """The original's layer of an op: a factor layer is named LAYER__FACTOR."""
    layer = name
    while layer not in layers and "__" in layer:
        layer = layer.rpartition("__")[0]
    return layer if layer in layers else name
