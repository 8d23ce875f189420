"""The activations of a file over time: layers, places by plan and by rule, and strips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lrfc.costs import placement
from lrfc.costs.placement import Buffer
from lrfc.engine.memory_plans import memory_plan, memory_plans
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.keras import io as keras_io
from lrfc.protocols import Artifact
from lrfc.results.memory_plan import MemoryPlan, MemoryPlans
from lrfc.targets.devices import device as devices
from lrfc.targets.micro import tflm
from lrfc.targets.onnx.target import ONNX
from lrfc.targets.tflite import flatfile
from lrfc.targets.tflite.activations import activations
from lrfc.targets.tflite.target import TFLite
from tests import helpers
from tests.test_tflm import network

INT8 = TFLite("int8", memory_plan=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Artifact, Artifact]:
    """A network, its int8 file for a microcontroller, and one whose arena has to be smaller."""
    graph = fold_batchnorm(keras_io.from_keras(helpers.conv_net(size=32, filters=(24, 12))))
    folder = tmp_path_factory.mktemp("plans")
    inputs, target = helpers.random_inputs(graph, 8), INT8
    whole = target.emit(graph, folder / "whole.tflite", inputs)
    need = target.need_bytes(whole.path)
    assert need is not None
    return graph, whole, target.within(0.75 * need).emit(graph, folder / "strips.tflite", inputs)


def plan_of(graph: Any, file: Artifact) -> MemoryPlan:
    found = memory_plan(file.path.read_bytes(), graph, placement.micro, file.patches)
    assert found is not None
    return found


def overlaps(buffers: tuple[Buffer, ...], offsets: dict[str, int]) -> list[tuple[str, str]]:
    return [
        (one.name, other.name)
        for number, one in enumerate(buffers)
        for other in buffers[:number]
        if one.meets(other)
        and offsets[one.name] < offsets[other.name] + other.size
        and offsets[other.name] < offsets[one.name] + one.size
    ]


@pytest.mark.parametrize("seed", range(20))
def test_the_rules_of_the_runtimes(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(network(seed))
    arena = activations(flatfile.unpack(path.read_bytes())).arena
    for rule, alignment in ((placement.micro, 16), (placement.litert, 64)):
        offsets = rule(arena.buffers)
        assert overlaps(arena.buffers, offsets) == []
        assert all(offset % alignment == 0 for offset in offsets.values())
    if tflm.installed():
        offsets = placement.micro(arena.buffers)
        height = max(offsets[buffer.name] + buffer.size for buffer in arena.buffers)
        assert height == tflm.arena(path).head_bytes


def test_equal_buffers_are_placed_in_the_order_of_each_runtime() -> None:
    buffers = tuple(Buffer(name, 64, 0, 1) for name in "abc")
    assert placement.litert(buffers) == {"a": 0, "b": 64, "c": 128}
    assert placement.micro(buffers) == {"a": 128, "b": 64, "c": 0}


def test_operators_and_activations_have_the_names_of_layers(files: Any) -> None:
    graph, whole, _ = files
    found = plan_of(graph, whole)
    assert [(step.operator, step.layer) for step in found.steps] == [
        ("QUANTIZE", "image"),
        ("CONV_2D", "conv0"),
        ("CONV_2D", "conv1"),
        ("MEAN", "pool"),
        ("FULLY_CONNECTED", "head"),
        ("SOFTMAX", "head"),
        ("DEQUANTIZE", "head"),
    ]
    assert found.regions == ()
    assert found.peak == found.planned_bytes == whole_peak(whole)
    assert found.own_bytes >= found.peak
    (step, *_) = found.peak_steps
    assert {place.name for place in found.at(step)} <= {"image", "conv0"}
    assert sum(place.bytes for place in found.at(step)) == found.peak


def whole_peak(file: Artifact) -> int:
    return activations(flatfile.unpack(file.path.read_bytes())).arena.peak_bytes


def test_strips_are_a_region_and_name_their_rows(files: Any) -> None:
    graph, whole, strips = files
    found, before = plan_of(graph, strips), plan_of(graph, whole)
    assert found.peak < before.peak
    assert found.planned_bytes == found.peak
    (region,), (patch,) = found.regions, strips.patches
    assert region.strips == patch.strips
    assert {region.start, region.end} <= {"conv0", "conv1", "pool"}
    assert found.steps[region.last].operator == "CONCATENATION"
    names = [place.name for place in found.places if ", rows " in place.name]
    assert len(names) >= region.strips
    inside = found.steps[region.first : region.last + 1]
    assert sum(step.operator == "CONV_2D" for step in inside) % region.strips == 0
    assert all(step.operator != "SLICE" for step in found.steps[region.last + 1 :])


def test_both_files_are_recorded_where_a_runtime_places_them(files: Any) -> None:
    graph, whole, strips = files
    micro = memory_plans(devices.load("cortex-m7"), INT8, (graph, graph), (whole, strips))
    host = memory_plans(devices.load("host"), INT8, (graph, graph), (whole, strips))
    assert micro is not None
    assert host is not None
    assert (micro.runtime, host.runtime) == ("tflm", "litert")
    assert micro.before.regions == ()
    assert len(micro.after.regions) == 1
    assert MemoryPlans.model_validate_json(micro.model_dump_json()) == micro
    npu = devices.load("ethos-u55-128")
    assert memory_plans(npu, INT8, (graph, graph), (whole, strips)) is None, "Vela places them"
    other = ONNX().emit(graph, whole.path.with_name("file.onnx"))
    assert memory_plans(devices.load("host"), ONNX(), (graph, graph), (other, other)) is None


def test_a_plan_with_activations_beyond_its_steps_is_refused(files: Any) -> None:
    graph, whole, _ = files
    fields = json.loads(plan_of(graph, whole).model_dump_json())
    MemoryPlan.model_validate(fields)
    for change in ({"last": 99}, {"first": 3, "last": 2}):
        places = [fields["places"][0] | change, *fields["places"][1:]]
        with pytest.raises(ValidationError, match="not within the steps"):
            MemoryPlan.model_validate(fields | {"places": places})


def test_an_output_in_the_place_of_an_input_counts_once(tmp_path: Path) -> None:
    graph = fold_batchnorm(keras_io.from_keras(helpers.residual()))
    file = INT8.emit(graph, tmp_path / "file.tflite", helpers.random_inputs(graph, 8))
    found = plan_of(graph, file)
    replaced = [place for place in found.places if place.replaced]
    assert {found.steps[place.last].operator for place in replaced} == {"ADD"}
    for place in replaced:
        (output,) = (p for p in found.places if p.first == place.last)
        assert (output.planned, output.bytes) == (place.planned, place.bytes)
        assert place in found.at(place.last - 1)
        assert place not in found.at(place.last)
    assert found.planned_bytes == found.peak
    if tflm.installed():
        assert tflm.arena(file.path).head_bytes == found.peak
