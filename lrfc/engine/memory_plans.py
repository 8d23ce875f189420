"""The activations of emitted .tflite files over time, by layer, as the report draws them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrfc.costs import placement
from lrfc.costs.placement import Buffer
from lrfc.ir.graph import Graph
from lrfc.protocols import Artifact, Patch, Target
from lrfc.results.memory_plan import MemoryPlan, MemoryPlans, Place, Region, Step
from lrfc.targets.devices.device import Device
from lrfc.targets.tflite import flatfile
from lrfc.targets.tflite.activations import Activations, fixed
from lrfc.targets.tflite.memory_plan import offsets
from lrfc.targets.trace import plain

#: The rows of a strip, behind the name of a tensor.
_ROWS = re.compile(r"\[(\d+):(\d+)\]$")
#: Operators whose layer is the one with a kernel among those that the converter fused.
_LINEAR = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"})


def memory_plans(
    device: Device,
    target: Target,
    graphs: tuple[Graph, Graph],
    files: tuple[Artifact, Artifact],
) -> MemoryPlans | None:
    """The plans of the original's file and of another, each with the graph it was emitted from.

    None where the format of the target does not tell its tensors, or the compiler of an accelerator
    places them.
    """
    if device.compiled or any(target.arena_bytes(file.path) is None for file in files):
        return None
    rule = placement.micro if device.follows_plan else placement.litert
    old, new = (
        memory_plan(file.path.read_bytes(), graph, rule, file.patches)
        for file, graph in zip(files, graphs, strict=True)
    )
    if old is None or new is None:
        return None
    return MemoryPlans(runtime="tflm" if device.follows_plan else "litert", before=old, after=new)


def memory_plan(
    content: bytes,
    graph: Graph,
    rule: Callable[[Sequence[Buffer]], Mapping[str, int]],
    patches: Sequence[Patch] = (),
) -> MemoryPlan | None:
    """The plan of a file that was emitted from ``graph``; None where it is known at run time only.

    ``rule``: the runtime's own, one of ``lrfc.costs.placement``.
    """
    model = flatfile.unpack(content)
    found = fixed(model)
    if found is None:
        return None
    reader = _Reader.of(model, graph)
    own, planned = rule(found.arena.buffers), offsets(model)
    replaced = _replaced(found, planned)
    return MemoryPlan(
        steps=tuple(map(reader.step, model.subgraphs[0].operators)),
        places=tuple(
            Place(
                name=reader.shown(number),
                bytes=buffer.size,
                first=buffer.first,
                last=buffer.last,
                planned=planned.get(number),
                own=own[buffer.name],
                replaced=number in replaced,
            )
            for number, buffer in zip(found.tensors, found.arena.buffers, strict=True)
        ),
        regions=tuple(reader.region(found, patch) for patch in patches),
    )


def _replaced(found: Activations, planned: Mapping[int, int]) -> set[int]:
    """The tensors whose places the outputs of their last operators take."""
    alive = {
        (planned.get(number), buffer.first, buffer.size)
        for number, buffer in zip(found.tensors, found.arena.buffers, strict=True)
    }
    return {
        number
        for number, buffer in zip(found.tensors, found.arena.buffers, strict=True)
        if number in planned
        and buffer.last > buffer.first
        and (planned[number], buffer.last, buffer.size) in alive
    }


@dataclass(frozen=True)
class _Reader:
    """A ``ModelT``, with the layer of each activation by the number of its tensor."""

    model: Any
    layers: Mapping[int, str]

    @classmethod
    def of(cls, model: Any, graph: Graph) -> _Reader:
        """The reader of a file that was emitted from ``graph``."""
        part = model.subgraphs[0]
        layers = dict(zip(flatfile.numbers(part.inputs), graph.inputs, strict=True))
        outputs = dict(
            zip(flatfile.numbers(part.outputs), (ref.op for ref in graph.outputs), strict=True)
        )
        for op in part.operators:
            # What the converter added has no layer of its own: it belongs to what it reads.
            read = next((n for n in flatfile.numbers(op.inputs) if n in layers), None)
            for number in flatfile.numbers(op.outputs):
                label = flatfile.name(part.tensors[number])
                named = _layer(label, graph, linear=flatfile.operator(model, op) in _LINEAR)
                before = label if read is None else layers[read]
                layers[number] = named or outputs.get(number, before)
        return cls(model, layers)

    def step(self, op: Any) -> Step:
        """An operator, named by its layer."""
        name = flatfile.operator(self.model, op)
        return Step(operator=name, layer=self.layers[int(op.outputs[0])])

    def shown(self, number: int) -> str:
        """The name of a tensor: its layer, and its rows where it is a strip."""
        tensor = self.model.subgraphs[0].tensors[number]
        layer, rows = self.layers.get(number), _ROWS.search(flatfile.name(tensor))
        if layer is None:
            return flatfile.name(tensor)
        return layer if rows is None else f"{layer}, rows {rows[1]} to {int(rows[2]) - 1}"

    def region(self, found: Activations, patch: Patch) -> Region:
        """The operators that compute a patch: its strips, up to the one that joins them."""
        part = self.model.subgraphs[0]
        last = list(found.arena.timeline).index(patch.last)
        writers = {int(op.outputs[0]): step for step, op in enumerate(part.operators)}
        steps, open_ = {last}, [last]
        while open_:
            for number in flatfile.numbers(part.operators[open_.pop()].inputs):
                step = writers.get(number)
                strip = _ROWS.search(flatfile.name(part.tensors[number]))
                if step is not None and strip and step not in steps:
                    steps.add(step)
                    open_.append(step)
        named = [self.step(part.operators[step]) for step in sorted(steps)]
        start = next(step.layer for step in named if step.operator != "SLICE")
        return Region(
            first=min(steps), last=last, start=start, end=named[-1].layer, strips=patch.strips
        )


def _layer(label: str, graph: Graph, *, linear: bool) -> str | None:
    """The op of the graph whose output a tensor of the file is, by the tensor's name.

    A converter joins the names of the ops that it fuses by ';'. ``linear``: the one with a kernel
    is meant, otherwise the last.
    """
    parts = [plain(part, graph.name).split("/")[0] for part in _ROWS.sub("", label).split(";")]
    # Layers keep their names; an op of keras.ops has that of TensorFlow's op, in another case.
    named = [graph.op(name) for part in parts for name in (part, part.lower()) if name in graph]
    if not named:
        return None
    kernels = [op for op in named if op.info.has_kernel] if linear else []
    return (kernels or named[-1:])[0].name
