"""ops.json: what each op of the original's file and of the emitted one costs, in the order in which they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lrfc.costs.workload import Signature
from lrfc.engine.benchmark import Bench, Spent
from lrfc.errors import UsageError
from lrfc.ir.graph import Graph
from lrfc.metrics.outcome import GREATEST, MOST
from lrfc.passes.profile import profile
from lrfc.state import Artifact
from lrfc.system import reader

NAME = "ops.json"

_Count = Annotated[int, Field(ge=0, le=MOST)]
_Number = Annotated[float, Field(ge=0, le=GREATEST, allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OpCost(_Record):
    """One op. ``layer``: the original's layer that it is, or is a factor of. ``kernel``: shape of its largest weight, ``output`` of one sample's output.

    ``live_bytes``: activations alive while it runs. ``predicted_ms``: by the cost profile of the device, before anything was measured; the op's share of
    a measured time is not known. Null where the runtime executes nothing of its own for it, or nothing is known.
    ``cycles``, ``sram_bytes`` (alive meanwhile) and ``flash_bytes`` (its weights as encoded, and its constants; what several ops read counts for the first):
    what the compiler of an NPU says of the op in this file, null elsewhere; ``cpu``: the operators that it leaves to the CPU.
    """

    name: str
    layer: str
    kind: str
    kernel: tuple[int, ...] | None
    output: tuple[int | None, ...] | None
    params: _Count
    macs: _Count
    weight_bytes: _Count
    live_bytes: _Count
    predicted_ms: _Number | None
    cycles: _Count | None = None
    sram_bytes: _Count | None = None
    flash_bytes: _Count | None = None
    cpu: tuple[str, ...] = ()


class Anatomy(_Record):
    """Both files, op by op. ``overhead_ms``: of an inference beside its ops, predicted."""

    schema_version: Literal[1] = 1
    overhead_ms: _Number | None
    before: tuple[OpCost, ...]
    after: tuple[OpCost, ...]

    def write(self, folder: Path) -> Path:
        """Write ops.json into the folder."""
        path = folder / NAME
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return path

    @staticmethod
    def read(folder: Path) -> Anatomy:
        """The ops of an output folder; UsageError when it has no readable ops.json."""
        path = folder / NAME
        if reader.kind(path) is None:
            raise UsageError(f"'{folder}' has no readable {NAME}; lrfc build writes one")
        try:
            return Anatomy.model_validate(reader.plain(reader.json_object(reader.contents(path), f"'{path}'")))
        except ValidationError as error:
            raise UsageError(f"'{path}' is damaged: {reader.refused(error)}") from error


def anatomy(bench: Bench, before: Graph, after: Graph, files: tuple[Artifact, Artifact]) -> Anatomy:
    """The ops of two graphs as they are in the files that were emitted from them, their times predicted for the device of the bench."""
    listed = [list(bench.reading.signatures(graph)) for graph in (before, after)]
    times = _times(bench, [each for ops in listed for _, each in ops])
    overhead = None if times is None else bench.profile.overhead * bench.ms_per_unit
    layers = {op.name for op in before}
    sides = [
        _side(graph, layers, ops, times, file.precision, bench.spent(file, graph))
        for graph, ops, file in zip((before, after), listed, files, strict=True)
    ]
    return Anatomy(overhead_ms=overhead, before=sides[0], after=sides[1])


def _times(bench: Bench, wanted: Sequence[Signature]) -> Mapping[Signature, float] | None:
    """Milliseconds of each op; None where the profile does not know them."""
    distinct = list(dict.fromkeys(wanted))
    try:
        predicted = dict(zip(distinct, bench.profile.ops(distinct).tolist(), strict=True))
    except UsageError:  # an op that the profile has no family for
        return None
    return {each: time * bench.ms_per_unit for each, time in {**predicted, **bench.prices(distinct)}.items()}


def _side(
    graph: Graph, layers: Set[str], listed: Sequence[tuple[str, Signature]], times: Mapping[Signature, float] | None, precision: str,
    spent: Mapping[str, Spent],
) -> tuple[OpCost, ...]:  # fmt: skip
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
                name=row.name, layer=_layer(row.name, layers), kind=row.kind, kernel=max(weights, key=prod) if weights else None,
                output=row.shapes[0][1:] if row.shapes else None, params=row.params, macs=row.macs, weight_bytes=row.weight_bytes,
                live_bytes=row.live_bytes, predicted_ms=own.get(row.name), **_told(spent.get(row.name)),
            )
        )  # fmt: skip
    for name, told in spent.items():
        if name not in graph:  # what the compiler or the converter made, and no op gave its name to
            nothing: dict[str, Any] = dict.fromkeys(("params", "macs", "weight_bytes", "live_bytes"), 0)
            found.append(OpCost(name=name, layer=name, kind="operator", kernel=None, output=None, predicted_ms=None, **nothing, **_told(told)))
    return tuple(found)


def _told(spent: Spent | None) -> dict[str, Any]:
    return {} if spent is None else asdict(spent)


def _layer(name: str, layers: Set[str]) -> str:
    """The original's layer of an op: a factor is named after its layer, with __ and what it is behind it."""
    own = name
    while own not in layers and "__" in own:
        own = own.rpartition("__")[0]
    return own if own in layers else name
