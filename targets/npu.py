"""What single ops take on an Ethos-U: priced many at a time in networks made for it, and read from the networks that were compiled."""

from __future__ import annotations

import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from lrfc.ir.graph import Graph
from lrfc.search import npu
from lrfc.search.signature import Signature
from lrfc.state import Artifact
from lrfc.targets import probe, vela
from lrfc.targets.device import Vela

#: Most ops of one probe, and most of their weights: what keeps a run of Vela at a few seconds.
_OPS, _WEIGHTS = 150, 4_000_000


def price(signatures: Iterable[Signature], reach: Vela, *, timeout: float = 600.0) -> dict[Signature, float]:
    """Cycles of each op, as Vela computes them for an op between others of its kind; those that a probe cannot hold are left out.

    In a network an op may differ a little: Vela fetches weights while the op before runs, and chooses blocks by what memory is left. ``timeout``:
    seconds for all of them. The errors of ``lrfc.targets.vela.compiled``.
    """
    deadline = time.monotonic() + timeout
    found: dict[Signature, float] = {}
    wanted = [each for each in dict.fromkeys(signatures) if probe.can_hold(each)]
    with tempfile.TemporaryDirectory(prefix="lrfc-vela-") as folder:
        path = Path(folder, "probe.tflite")
        for part in probe.batches(wanted, _OPS, _WEIGHTS):
            path.write_bytes(probe.network(part))
            result = vela.compiled(Artifact(path, "tflite", "int8"), reach, timeout=max(deadline - time.monotonic(), 0.0))
            cycles: dict[int, int] = defaultdict(int)
            for layer in result.layers:
                number = re.match(r"op(\d+)(?!\d|/)", layer.name)
                if number is not None:
                    cycles[int(number[1])] += layer.cycles
            found |= {signature: float(cycles[number]) for number, signature in enumerate(part) if cycles[number]}
    return found


def observed(result: vela.Compiled, graph: Graph) -> dict[Signature, float]:
    """Cycles of the ops of a compiled network, to be taken in the place of predicted ones; the mean where ops of one signature differ.

    ``graph``: the one that the file was emitted from. What Vela computes inside another op has none: 0.
    """
    cycles = vela.by_op(result, graph)
    sums: dict[Signature, list[float]] = defaultdict(list)
    known: set[str] = set()
    for name, signature in npu.signatures(graph):
        # An op with several signatures, such as a layer and an activation that runs by itself, is booked as a whole on the first.
        sums[signature].append(float(cycles.get(name, 0)) if name not in known else 0.0)
        known.add(name)
    return {signature: sum(values) / len(values) for signature, values in sums.items()}


def predicted(graph: Graph, known: Mapping[Signature, float]) -> float:
    """Cycles of a network whose ops are all known. KeyError for one that is not."""
    return sum(known[signature] for _, signature in npu.signatures(graph))
