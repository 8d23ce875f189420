"""Cycles of single ops on an Ethos-U: from probe networks, and from compiled networks."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from lrfc.costs import fitting, microbench, npu
from lrfc.costs.latency import CostProfile
from lrfc.costs.workload import Workload
from lrfc.ir.graph import Graph
from lrfc.protocols import Artifact
from lrfc.system import scratch
from lrfc.targets.devices.device import Device, Vela
from lrfc.targets.ethos_u import vela
from lrfc.targets.tflite import probe

#: The most ops of one probe, and the most weights: a run of Vela then takes a few seconds.
_OPS, _WEIGHTS = 150, 4_000_000
_NONE = Workload("", (), ())


def price(
    workloads: Iterable[Workload], connection: Vela, *, timeout: float = 600.0
) -> dict[Workload, float]:
    """Cycles of each op, as Vela computes them for the op in a probe network.

    Ops that a probe cannot hold are left out. In a real network the cycles of an op may differ a
    little: Vela fetches weights while the op before runs, and chooses blocks by the memory that is
    left. ``timeout``: seconds for all of them. The errors of
    ``lrfc.targets.ethos_u.vela.compiled``.
    """
    deadline = time.monotonic() + timeout
    prices: dict[Workload, float] = {}
    probed = [workload for workload in dict.fromkeys(workloads) if probe.can_hold(workload)]
    with scratch.folder() as folder:
        path = folder / "probe.tflite"
        for part in probe.batches(probed, _OPS, _WEIGHTS):
            path.write_bytes(probe.network(part))
            result = vela.compiled(
                Artifact(path, "tflite", "int8"),
                connection,
                timeout=max(deadline - time.monotonic(), 0.0),
            )
            cycles: dict[int, int] = defaultdict(int)
            for layer in result.layers:
                number = re.match(r"op(\d+)(?!\d|/)", layer.name)
                if number is not None:
                    cycles[int(number[1])] += layer.cycles
            prices |= {
                workload: float(cycles[number])
                for number, workload in enumerate(part)
                if cycles[number]
            }
    return prices


def profile(device: Device, *, timeout: float = 3600.0) -> CostProfile:
    """A cost profile in cycles, fitted to the ops of the micro-networks, each priced by Vela.

    For ops that no probe can hold, and for predictions without Vela.
    """
    assert isinstance(device.connection, Vela)
    ops = [workload for graph in microbench.networks() for _, workload in npu.workloads(graph)]
    prices = price(dict.fromkeys(ops), device.connection, timeout=timeout)
    about: dict[str, Any] = {
        "machine": device.connection.accelerator,
        "runtime": "Vela",
        "runtime_version": vela.version(),
        "source": "Arm's Vela, ops priced one by one",
    }
    return fitting.fit(
        list(prices.items()),
        device=device.name,
        format="tflite",
        precision="int8",
        unit="cycles",
        estimated=True,
        **about,
    )


def observed(
    result: vela.Compiled, graph: Graph, prices: Mapping[Workload, float] | None = None
) -> dict[Workload, float]:
    """Cycles of the ops of a compiled network; the mean where ops of one workload differ.

    They replace predicted cycles. ``graph``: the one that the file was emitted from. An op that
    Vela computes inside another one has 0 cycles. But where Vela merges an op into the one before
    it (on an Ethos-U85 an addition into a convolution) and ``prices`` has the cycles of that one
    alone, the rest is attributed to the merged op, since it will be merged into another one as
    well.
    """
    cycles: dict[str, float] = dict(vela.by_op(result, graph))
    pairs = list(npu.workloads(graph))
    first = dict(reversed(pairs))  # the first workload of each op
    for name in first:
        if name in cycles:
            continue
        for operand in graph.operands(name):
            alone = (prices or {}).get(first.get(operand.op, _NONE))
            if (
                alone is not None
                and graph.only_consumer(operand.op) is not None
                and cycles.get(operand.op, 0.0) > alone
            ):
                cycles[name] = cycles[operand.op] - alone
                cycles[operand.op] = alone
                break
    sums: dict[Workload, list[float]] = defaultdict(list)
    for name, workload in pairs:
        # All cycles of an op with several workloads, such as a layer and an activation that runs by
        # itself, are attributed to the first.
        sums[workload].append(cycles.get(name, 0.0) if workload is first[name] else 0.0)
    return {workload: sum(values) / len(values) for workload, values in sums.items()}


def predicted(graph: Graph, known: Mapping[Workload, float]) -> float:
    """Cycles of a network whose ops are all known; KeyError for an unknown op."""
    return sum(known[workload] for _, workload in npu.workloads(graph))
