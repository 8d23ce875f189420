"""Activations of .tflite files: their lifetimes, the order of operators, and the plan in a file."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lrfc.engine.destinations import destination
from lrfc.engine.preflight import Goal
from lrfc.errors import ModelError
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import load
from lrfc.targets.devices import device
from lrfc.targets.quiet import quiet
from lrfc.targets.tflite import flatfile, memory_plan
from lrfc.targets.tflite.activations import activations, fixed, live_peak
from lrfc.targets.tflite.order import least_order
from lrfc.targets.tflite.target import TFLite
from tests import helpers

DIGITS = Path(__file__).parents[1] / "examples" / "digits.keras"
OPTIONS = {"NEG": "NegOptions", "ADD": "AddOptions", "SLICE": "SliceOptions"}
OPTIONS |= {"CONCATENATION": "ConcatenationOptions"}


class File:
    """A file of float32 operators on tensors of shape (1, n), written without a converter."""

    def __init__(self, width: int) -> None:
        schema = self.schema = flatfile.schema()
        self.graph, self.model = schema.SubGraphT(), schema.ModelT()
        self.graph.tensors, self.graph.operators = [], []
        self.model.version, self.model.subgraphs = 3, [self.graph]
        self.model.buffers, self.model.operatorCodes = [schema.BufferT()], []
        self.graph.inputs = [self.tensor(width)]

    def tensor(self, *shape: int, values: NDArray[np.int32] | None = None) -> int:
        tensor = self.schema.TensorT()
        types = self.schema.TensorType
        tensor.name, tensor.type = f"t{len(self.graph.tensors)}", types.FLOAT32
        tensor.shape = [1, *shape] if values is None else list(values.shape)
        if values is not None:
            buffer = self.schema.BufferT()
            buffer.data = values.view(np.uint8)
            self.model.buffers.append(buffer)
            tensor.type, tensor.buffer = types.INT32, len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def width(self, tensor: int) -> int:
        return int(self.graph.tensors[tensor].shape[1])

    def op(self, kind: str, *inputs: int, width: int | None = None) -> int:
        """Add an operator; returns the number of its output. ``width``: of the output."""
        sources = list(inputs)
        if kind == "SLICE":
            sources += [
                self.tensor(values=np.asarray(pair, np.int32)) for pair in ((0, 0), (1, width))
            ]
        wide = sum(map(self.width, inputs)) if kind == "CONCATENATION" else self.width(inputs[0])
        output = self.tensor(width or wide)
        op, code = self.schema.OperatorT(), self.schema.OperatorCodeT()
        code.builtinCode = getattr(self.schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode, code.version = min(127, code.builtinCode), 1
        op.opcodeIndex, op.inputs, op.outputs = len(self.graph.operators), sources, [output]
        op.builtinOptionsType = getattr(self.schema.BuiltinOptions, OPTIONS[kind])
        op.builtinOptions = getattr(self.schema, OPTIONS[kind] + "T")()
        if kind == "CONCATENATION":
            op.builtinOptions.axis = 1
        self.graph.operators.append(op)
        self.model.operatorCodes.append(code)
        return output

    def content(self, *outputs: int) -> bytes:
        self.graph.outputs = list(outputs)
        return flatfile.pack(self.model)


def branches(file: File) -> bytes:
    """Two branches, each wide inside: the given order computes both wide tensors first."""
    source = file.graph.inputs[0]
    wide = [file.op("CONCATENATION", *[source] * times) for times in (3, 4)]
    thin = [file.op("SLICE", tensor, width=4) for tensor in wide]
    return file.content(file.op("ADD", *thin))


@st.composite
def files(draw: st.DrawFn, most: int = 12) -> bytes:
    """Files of 1 to ``most`` operators on earlier tensors, in which every tensor is used."""
    file = File(draw(st.integers(1, 50)))
    tensors = [file.graph.inputs[0]]
    for _ in range(draw(st.integers(1, most))):
        source = draw(st.sampled_from(tensors))
        kind = draw(st.sampled_from(list(OPTIONS)))
        if kind in ("NEG", "SLICE"):
            width = draw(st.integers(1, file.width(source))) if kind == "SLICE" else None
            tensors.append(file.op(kind, source, width=width))
            continue
        alike = [t for t in tensors if kind != "ADD" or file.width(t) == file.width(source)]
        tensors.append(file.op(kind, source, draw(st.sampled_from(alike))))
    read = {t for op in file.graph.operators for t in op.inputs}
    return file.content(*(t for t in tensors if t not in read))


def outputs(content: bytes) -> list[NDArray[Any]]:
    """The outputs of the reference kernels for fixed random inputs."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    with quiet():
        kernels = OpResolverType.BUILTIN_REF
        made = Interpreter(model_content=content, experimental_op_resolver_type=kernels)
        made.allocate_tensors()
        random = np.random.default_rng(0)
        for entry in made.get_input_details():
            values = random.normal(0, 50, entry["shape"]).astype(entry["dtype"])
            made.set_tensor(entry["index"], values)
        made.invoke()
    return [made.get_tensor(entry["index"]) for entry in made.get_output_details()]


def same(one: bytes, other: bytes) -> bool:
    return all(map(np.array_equal, outputs(one), outputs(other)))


def orders(model: Any) -> Iterator[list[int]]:
    """Every order of the operators in which each comes behind those that it reads from."""
    ops = model.subgraphs[0].operators
    writer = {t: number for number, op in enumerate(ops) for t in op.outputs}
    needs = [{writer[t] for t in op.inputs if t in writer} for op in ops]

    def rest(order: list[int]) -> Iterator[list[int]]:
        if len(order) == len(ops):
            yield order
        for number in range(len(ops)):
            if number not in order and needs[number] <= set(order):
                yield from rest([*order, number])

    return rest([])


def peak(model: Any, order: list[int]) -> int:
    graph = model.subgraphs[0]
    given = graph.operators
    graph.operators = [given[number] for number in order]
    found = activations(model).arena.peak_bytes
    graph.operators = given
    return found


# -- activations -----------------------------------------------------------------------------------


def test_lifetimes_by_hand() -> None:
    model = flatfile.unpack(branches(File(40)))
    memory = activations(model).arena
    assert {b.name: (b.size, b.first, b.last) for b in memory.buffers} == {
        "t0": (160, 0, 1),
        "t1": (480, 0, 2),
        "t2": (640, 1, 3),
        "t5": (16, 2, 4),
        "t8": (16, 3, 4),
        "t9": (16, 4, 4),
    }, "constants have no buffer, and sizes are rounded up to 16"
    assert list(memory.timeline.values()) == [640, 1280, 1136, 672, 48]
    assert memory.at_op == "t2"
    assert live_peak(flatfile.pack(model)) == 1280


def test_inputs_live_from_the_start_and_outputs_to_the_end() -> None:
    file = File(4)
    early = file.op("NEG", file.graph.inputs[0])
    late = file.op("NEG", file.op("NEG", early))
    found = activations(flatfile.unpack(file.content(early, late))).arena
    assert {b.name: (b.first, b.last) for b in found.buffers} == {
        "t0": (0, 0), "t1": (0, 2), "t2": (1, 2), "t3": (2, 2)
    }  # fmt: skip


def test_equal_names_are_told_apart() -> None:
    file = File(4)
    content = file.content(file.op("NEG", file.op("NEG", file.graph.inputs[0])))
    model = flatfile.unpack(content)
    for tensor in model.subgraphs[0].tensors:
        tensor.name = "x"
    assert [b.name for b in activations(model).arena.buffers] == ["x", "x#1", "x#2"]


def test_an_arena_that_is_not_fixed_is_not_planned() -> None:
    file = File(4)
    output = file.op("NEG", file.graph.inputs[0])
    file.graph.tensors[output].type = file.schema.TensorType.STRING
    content = file.content(output)
    with pytest.raises(ModelError, match="tensor 't1': its values have no fixed number of bytes"):
        live_peak(content)
    assert fixed(flatfile.unpack(content)) is None
    assert memory_plan.with_plan(content) == content
    model = flatfile.unpack(branches(File(40)))
    model.subgraphs.append(model.subgraphs[0])
    assert fixed(model) is None


def test_what_is_no_file_is_refused() -> None:
    with pytest.raises(ModelError, match=r"not a \.tflite file"):
        flatfile.unpack(b"no file of any kind")


# -- the order of operators ------------------------------------------------------------------------


def test_branches_are_computed_one_by_one() -> None:
    content = branches(File(40))
    model = flatfile.unpack(content)
    order = least_order(model, activations(model))
    assert order == [0, 2, 1, 3, 4]
    assert peak(model, order) == 816
    assert least_order(model, activations(model), states=1) == [0, 1, 2, 3, 4]
    assert same(content, memory_plan.with_plan(content))


@given(files(most=7))
def test_no_order_has_a_smaller_peak(content: bytes) -> None:
    model = flatfile.unpack(content)
    found = peak(model, least_order(model, activations(model)))
    assert found == min(peak(model, order) for order in orders(model))


def test_operators_with_an_effect_keep_their_order() -> None:
    model = flatfile.unpack(branches(File(40)))
    model.subgraphs[0].tensors[0].isVariable = True
    assert least_order(model, activations(model)) == [0, 1, 2, 3, 4]


# -- the plan in the file --------------------------------------------------------------------------


def entries(content: bytes) -> list[NDArray[np.int32]]:
    """The plans that a file holds."""
    model = flatfile.unpack(content)
    return [
        model.buffers[entry.buffer].data.view("<i4")
        for entry in model.metadata or []
        if entry.name.decode() == memory_plan.NAME
    ]


@given(files())
def test_a_planned_file_computes_the_same(content: bytes) -> None:
    planned = memory_plan.with_plan(content)
    assert same(content, planned)
    assert memory_plan.with_plan(content) == planned, "the same bytes each time"
    (entry,) = entries(planned)
    model = flatfile.unpack(planned)
    found = activations(model)
    assert entry[:3].tolist() == [0, 0, len(model.subgraphs[0].tensors)]
    places = entry[3:]
    assert set(np.flatnonzero(places >= 0)) == set(found.tensors)
    ends = [places[t] + b.size for t, b in zip(found.tensors, found.arena.buffers, strict=True)]
    assert max(ends) == found.arena.planned_bytes() >= found.arena.peak_bytes
    assert found.arena.peak_bytes <= live_peak(content)


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of real networks for a microcontroller."""
    folder = tmp_path_factory.mktemp("emitted")
    graphs = {"digits": keras_io.from_keras(load.load(DIGITS))}
    graphs |= {n: helpers.graph_of(getattr(helpers, n)()) for n in ("residual", "branches")}
    target = TFLite("int8", int8_io=True).with_plan()
    return {
        name: target.emit(graph, folder / name, helpers.random_inputs(graph, 8)).path
        for name, graph in graphs.items()
    }


def test_emitted_files_are_planned_without_gaps(emitted: dict[str, Path]) -> None:
    for path in emitted.values():
        content = path.read_bytes()
        assert TFLite().arena_bytes(path) == live_peak(content)
        assert len(entries(content)) == 1


def heads(paths: list[Path]) -> list[int]:
    """The bytes of activations that TensorFlow Lite Micro needs for each file, by its account."""
    code = (
        "import sys\nfrom tflite_micro.python.tflite_micro import runtime\n"
        "for path in sys.argv[1:]:\n"
        " runtime.Interpreter.from_file(path, arena_size=1 << 20).print_allocations()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, check=True
    )
    found = re.findall(r"Arena allocation head (\d+)", done.stdout + done.stderr)
    return [int(head) for head in found]


@pytest.mark.skipif(
    importlib.util.find_spec("tflite_micro") is None,
    reason="TensorFlow Lite Micro is not installed (pip install 'lrfc[micro]')",
)
def test_microcontrollers_take_what_is_planned(emitted: dict[str, Path], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    paths = list(emitted.values())
    for number in range(20):
        path = tmp_path / f"{number}.tflite"
        path.write_bytes(memory_plan.with_plan(random_file(random)))
        paths.append(path)
    planned = [TFLite().arena_bytes(path) for path in paths]
    assert heads(paths) == planned


def random_file(random: np.random.Generator) -> bytes:
    """A file of ten operators on random earlier tensors."""
    file = File(int(random.integers(1, 50)))
    tensors = [file.graph.inputs[0]]
    for _ in range(10):
        one, other = (tensors[i] for i in random.integers(len(tensors), size=2))
        width = int(random.integers(1, 1 + file.width(one)))
        kind = ("NEG", "SLICE", "CONCATENATION")[random.integers(3)]
        sources = (one, other) if kind == "CONCATENATION" else (one,)
        tensors.append(file.op(kind, *sources, width=width if kind == "SLICE" else None))
    read = {t for op in file.graph.operators for t in op.inputs}
    return file.content(*(t for t in tensors if t not in read))


def test_only_microcontrollers_get_a_plan() -> None:
    planned = {
        name: destination(Goal("tflite", "int8", device.load(name), 1, name)).target.memory_plan
        for name in ("cortex-m4", "cortex-m7", "host", "ethos-u55-128")
    }
    assert planned == {
        "cortex-m4": True, "cortex-m7": True, "host": False, "ethos-u55-128": False
    }  # fmt: skip
