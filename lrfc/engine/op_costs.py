"""Costs of each op of two graphs as they are in their files, predicted for the device."""

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
from lrfc.results.op_costs import OpCost, OpProfile


def op_profile(
    bench: Bench, before: Graph, after: Graph, files: tuple[Artifact, Artifact]
) -> OpProfile:
    """The ops of two graphs as they are in the files that were emitted from them, their times predicted for the device of the bench."""
    listed = [list(bench.reading.workloads(graph)) for graph in (before, after)]
    times = _times(bench, [each for ops in listed for _, each in ops])
    overhead = None if times is None else bench.profile.overhead * bench.ms_per_unit
    layers = {op.name for op in before}
    sides = [
        _side(graph, layers, ops, times, file.precision, bench.spent(file, graph))
        for graph, ops, file in zip((before, after), listed, files, strict=True)
    ]
    return OpProfile(overhead_ms=overhead, before=sides[0], after=sides[1])


def _times(bench: Bench, wanted: Sequence[Workload]) -> Mapping[Workload, float] | None:
    """Milliseconds of each op; None where the profile does not know them."""
    distinct = list(dict.fromkeys(wanted))
    try:
        predicted = dict(zip(distinct, bench.profile.ops(distinct).tolist(), strict=True))
    except UsageError:  # an op that the profile has no family for
        return None
    return {
        each: time * bench.ms_per_unit
        for each, time in {**predicted, **bench.prices(distinct)}.items()
    }


def _side(
    graph: Graph,
    layers: Set[str],
    listed: Sequence[tuple[str, Workload]],
    times: Mapping[Workload, float] | None,
    precision: str,
    spent: Mapping[str, Spent],
) -> tuple[OpCost, ...]:
    own: dict[str, float] = {}
    for name, each in listed:
        if times is not None:
            own[name] = own.get(name, 0.0) + times[each]
    found = []
    for row in profile(graph, precision).rows:
        op = graph.op(row.name)
        weights = [weight.shape for weight in op.weights.values() if weight.ndim > 1]
        found.append(
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
                predicted_ms=own.get(row.name),
                **_told(spent.get(row.name)),
            )
        )
    for name, told in spent.items():
        if name not in graph:  # what the compiler or the converter made, and no op gave its name to
            nothing: dict[str, Any] = dict.fromkeys(
                ("params", "macs", "weight_bytes", "live_bytes"), 0
            )
            found.append(
                OpCost(
                    name=name,
                    layer=name,
                    kind="operator",
                    kernel=None,
                    output=None,
                    predicted_ms=None,
                    **nothing,
                    **_told(told),
                )
            )
    return tuple(found)


def _told(spent: Spent | None) -> dict[str, Any]:
    return {} if spent is None else asdict(spent)


def _layer(name: str, layers: Set[str]) -> str:
    """The original's layer of an op: a factor is named after its layer, with __ and what it is behind it."""
    own = name
    while own not in layers and "__" in own:
        own = own.rpartition("__")[0]
    return own if own in layers else name
