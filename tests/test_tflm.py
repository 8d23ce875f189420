"""TensorFlow Lite Micro: its arena, its outputs, and what it says of files that it cannot run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from lrfc.costs import tail
from lrfc.engine.benchmark import check_operators
from lrfc.engine.estimate import with_arena
from lrfc.errors import DependencyError, DeviceError
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.keras import io as keras_io
from lrfc.protocols import Artifact
from lrfc.targets.devices import device as devices
from lrfc.targets.devices.measure import Measurement
from lrfc.targets.micro import tflm
from lrfc.targets.tflite import operators, probe
from lrfc.targets.tflite.target import TFLite
from tests import helpers

NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}


# -- files -----------------------------------------------------------------------------------------


def network(seed: int) -> bytes:
    """A small int8 network of convolutions, poolings and additions, with branches."""
    random = np.random.default_rng(seed)
    file = probe._File(random=random)
    size, channels = int(random.integers(5, 13)), int(random.integers(1, 13))
    tensors = [file._activation((size, size, channels), "input")]
    file.inputs.append(tensors[0])
    for number in range(int(random.integers(4, 12))):
        source = tensors[-1] if random.random() < 0.7 else int(random.choice(tensors))
        height, _, width = file.tensors[source].shape[1:]
        equal = [t for t in tensors if t != source and same_shape(file, t, source)]
        name, kind = f"op{number}", random.choice(["conv", "depthwise", "pool", "add"])
        shape = (height, height, width)
        if kind == "add" and equal:
            result = file._activation(shape, name)
            options = ("AddOptions", schema.AddOptionsT())
            file.operator("ADD", [source, int(random.choice(equal))], result, options)
        elif kind == "pool" and height > 3:
            result = file._activation((height // 2, height // 2, width), name)
            window = file.window("Pool2DOptions", (2, 2), same=False)
            window[1].filterHeight = window[1].filterWidth = 2
            file.operator("MAX_POOL_2D", [source], result, window)
        elif kind == "depthwise":
            result = file._activation(shape, name)
            window = file.window("DepthwiseConv2DOptions", (1, 1), same=True)
            window[1].depthMultiplier = 1
            file._linear("DEPTHWISE_CONV_2D", source, result, (1, 3, 3, width), window, 3)
        else:  # as wide as its input every other time: buffers of equal size
            filters = width if random.random() < 0.5 else int(random.integers(1, 25))
            result = file._activation((height, height, filters), name)
            kernel = int(random.choice([1, 3]))
            window = file.window("Conv2DOptions", (1, 1), same=True)
            weights = (filters, kernel, kernel, width)
            file._linear("CONV_2D", source, result, weights, window, 0)
        tensors.append(result)
    file.outputs.append(tensors[-1])
    return file.content()


def same_shape(file: probe._File, one: int, other: int) -> bool:
    return list(file.tensors[one].shape) == list(file.tensors[other].shape)


def softmax(scale: float) -> bytes:
    """A network of a softmax, whose input has this scale."""
    file = probe._File()
    source, result = file._activation((1, 1, 4), "logits"), file._activation((1, 1, 4), "y")
    file.tensors[source].quantization.scale = np.asarray([scale], np.float32)
    file.tensors[result].quantization.scale = np.asarray([1 / 256], np.float32)
    file.tensors[result].quantization.zeroPoint = np.asarray([-128], np.int64)
    options = schema.SoftmaxOptionsT()
    options.beta = 1.0
    file.operator("SOFTMAX", [source], result, ("SoftmaxOptions", options))
    file.inputs, file.outputs = [source], [result]
    return file.content()


def with_operators(content: bytes, *names: str) -> bytes:
    """The file with further operators in front of its output, which most runtimes lack."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    graph = model.subgraphs[0]
    for name in names:
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name, schema.BuiltinOperator.CUSTOM)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.customCode = None if hasattr(schema.BuiltinOperator, name) else name
        operator = schema.OperatorT()
        operator.opcodeIndex = len(model.operatorCodes)
        operator.inputs, operator.outputs = [graph.outputs[0]], [graph.outputs[0]]
        model.operatorCodes.append(code)
        graph.operators.append(operator)
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """Networks as graphs, and as int8 files with float inputs and outputs."""
    models = {"convolutions": helpers.conv_net(), "dense": helpers.dense_net()}
    files = {}
    for name, model in models.items():
        graph = fold_batchnorm(keras_io.from_keras(model))
        path = tmp_path_factory.mktemp("emitted") / f"{name}.tflite"
        TFLite("int8").emit(graph, path, helpers.random_inputs(graph, 16))
        files[name] = (graph, path)
    return files


# -- its arena -------------------------------------------------------------------------------------


def planned(content: bytes) -> int:
    """The head of a file without a plan of its own.

    The rule of TFLM's GreedyMemoryPlanner: the largest first, of equal ones the last tensor; each
    into the first sufficient gap between those alive at the same time.
    """
    graph = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content)).subgraphs[0]
    alive: dict[int, list[int]] = {number: [0] for number in graph.inputs}
    for step, op in enumerate(graph.operators):
        for number in (*op.outputs, *(n for n in op.inputs if n in alive)):
            alive.setdefault(number, []).append(step)
    for number in graph.outputs:
        alive[number].append(len(graph.operators))
    sizes = {n: -(-int(np.prod(graph.tensors[n].shape)) // 16) * 16 for n in alive}
    placed: dict[int, int] = {}
    for number in sorted(alive, key=lambda n: (-sizes[n], -n)):
        offset = 0
        for other in sorted(placed, key=lambda n: placed[n]):
            meet = alive[other][0] <= alive[number][-1] and alive[number][0] <= alive[other][-1]
            if meet and placed[other] < offset + sizes[number]:
                offset = max(offset, placed[other] + sizes[other])
        placed[number] = offset
    return max(placed[number] + sizes[number] for number in alive)


def counted(content: bytes) -> int:
    """The tail of a file by the formula, from its tensors and operators."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    graph = model.subgraphs[0]
    total = tail.BASE + tail.TENSOR * len(graph.tensors)
    for op in graph.operators:
        code = model.operatorCodes[op.opcodeIndex]
        name = NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]
        layer = "CONV" in name or name == "FULLY_CONNECTED"
        channels = int(graph.tensors[op.outputs[0]].shape[-1]) if layer else 0
        total += tail.operator_bytes(name, 0, channels)
    return total


@pytest.mark.parametrize("seed", range(20))
def test_the_head_follows_the_rule_and_the_tail_the_formula(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(network(seed))
    arena = tflm.arena(path)
    assert arena.head_bytes == planned(path.read_bytes())
    assert arena.tail_bytes == pytest.approx(counted(path.read_bytes()), rel=0.01)
    assert arena.total_bytes == arena.head_bytes + arena.tail_bytes


def _reductions(x: Any) -> Any:
    import keras
    from keras import layers

    x = layers.Conv2D(96, 1, name="wide")(layers.GlobalMaxPooling2D(keepdims=True, name="max")(x))
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return layers.Dense(3, name="head")(keras.ops.sum(x[:, None], axis=1))


def _transposed(x: Any) -> Any:
    from keras import layers

    return layers.Conv2DTranspose(2, 3, strides=2, name="up")(x)


@pytest.mark.parametrize("precision", ["int8", "int16x8", "fp32"])
@pytest.mark.parametrize("call", [_reductions, _transposed])
def test_what_kernels_need_beside_tensors_is_planned(call, precision, tmp_path) -> None:
    import keras

    inputs = keras.Input((4, 4, 8))
    graph = helpers.graph_of(helpers.random_weights(keras.Model(inputs, call(inputs))))
    target = TFLite(precision, memory_plan=True)
    file = target.emit(graph, tmp_path / "m.tflite", helpers.random_inputs(graph, 4))
    assert target.arena_bytes(file.path) == tflm.arena(file.path).head_bytes


def test_the_tail_is_known_before_there_is_a_file(emitted: dict[str, tuple[Any, Path]]) -> None:
    for _, path in emitted.values():
        workloads = operators.read(path).workloads
        measured = tflm.arena(path).tail_bytes
        # A flattening is no workload, but an operator with two tensors.
        views = counted(path.read_bytes()) - tail.tail_bytes(workloads, float_io=True)
        assert tail.tail_bytes(workloads, float_io=True) + views == pytest.approx(
            measured, rel=0.02
        )
        assert views in (0, 148, 296)


def test_a_stage_of_a_chain_adds_to_the_tail() -> None:
    stage = tail.operator_bytes("CONV_2D", 3, 16)
    assert stage == 3 * 24 + 64 + 108 + 2 * 4 * 16
    assert tail.operator_bytes("CONV_2D", 3, 17) == stage + 32, "arrays are aligned"


# -- its outputs -----------------------------------------------------------------------------------


def test_outputs_are_those_of_the_reference_kernels(emitted: dict[str, tuple[Any, Path]]) -> None:
    for graph, path in emitted.values():
        samples = helpers.random_inputs(graph, 40, seed=1)
        file = Artifact(path, "tflite", "int8")
        outputs, reference = tflm.Micro(path)(samples), TFLite("int8").reference(file)(samples)
        for one, other in zip(outputs, reference, strict=True):
            assert one.shape == other.shape
            assert one.dtype == other.dtype == np.float32
            assert np.mean(one == other) > 0.9
            assert np.abs(one - other).max() <= 0.02 * np.abs(other).max()
        assert np.ptp(outputs[0]) > 0


def test_convolutions_are_equal_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    for seed in (1, 2):
        path.write_bytes(network(seed))
        reference = TFLite("int8").reference(Artifact(path, "tflite", "int8"))
        shape = schema.Model.GetRootAs(path.read_bytes()).Subgraphs(0).Tensors(0).ShapeAsNumpy()
        x = np.random.default_rng(0).normal(0, 1, (20, *shape[1:])).astype(np.float32)
        np.testing.assert_array_equal(tflm.Micro(path)((x,))[0], reference((x,))[0])


# -- what it cannot run ----------------------------------------------------------------------------


def test_all_operators_that_it_lacks_are_named(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(with_operators(network(0), "GELU", "Mine", "DENSIFY"))
    with pytest.raises(DeviceError) as refused:
        tflm.arena(path)
    assert str(refused.value) == (
        "cannot run net.tflite by TensorFlow Lite Micro: it has no operator GELU, Mine, DENSIFY"
    )


def test_a_build_ends_before_any_work(
    emitted: dict[str, tuple[Any, Path]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graph, path = emitted["convolutions"]

    def emit(self: Any, graph: Any, path: Path, calibration: Any = None) -> Artifact:
        path.write_bytes(content)
        return Artifact(path, "tflite", "int8")

    monkeypatch.setattr(TFLite, "emit", emit)
    samples = helpers.random_inputs(graph, 2)
    arguments = TFLite("int8"), devices.load("cortex-m7"), graph, samples, tmp_path
    content = path.read_bytes()
    check_operators(*arguments)
    content = with_operators(content, "GELU")
    with pytest.raises(
        DeviceError, match=r"^device 'cortex-m7': cannot run .+: it has no operator GELU$"
    ):
        check_operators(*arguments)
    monkeypatch.setattr(tflm, "installed", lambda: False)
    check_operators(*arguments)


def test_a_file_that_it_dies_of_gives_one_line(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.tflite", tmp_path / "bad.tflite"
    good.write_bytes(softmax(0.1))
    assert tflm.arena(good).head_bytes == 32
    bad.write_bytes(softmax(1e-12))
    with pytest.raises(DeviceError) as died:
        tflm.arena(bad)
    assert str(died.value) == (
        "the process to run bad.tflite by TensorFlow Lite Micro was killed by SIGABRT: a check of"
        " TensorFlow Lite Micro failed"
    )


@pytest.mark.parametrize("length", [0, 3, 400])
def test_a_damaged_file_gives_one_line(length: int, tmp_path: Path) -> None:
    path = tmp_path / "half.tflite"
    path.write_bytes(network(0)[:length])
    with pytest.raises(DeviceError, match=r"^cannot run half\.tflite by TensorFlow Lite Micro: .+"):
        tflm.arena(path)


# -- without the package ---------------------------------------------------------------------------


def test_without_the_package_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tflite_micro" else find(name)
    )
    path = tmp_path / "net.tflite"
    path.write_bytes(network(0))
    with pytest.raises(DependencyError, match=r"pip install 'lrfc\[micro\]' \(CPython 3\.10 to"):
        tflm.arena(path)
    with pytest.raises(DependencyError, match=r"'lrfc\[micro\]'"):
        tflm.Micro(path)
    row = with_arena(estimate(path), devices.load("cortex-m7"))
    assert row.arena_head_bytes is row.arena_tail_bytes is None
    assert row.notes == (
        "the memory on cortex-m7 is not measured: pip install 'lrfc[micro]' measures it",
    )


def test_only_microcontrollers_are_measured(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(network(0))
    row = estimate(path)
    assert with_arena(row, devices.load("raspberry-pi-4")) == row
    assert with_arena(row, devices.load("cortex-m4")).arena_head_bytes == planned(network(0))


def estimate(path: Path) -> Measurement:
    return Measurement(
        path=path,
        median_ms=1.0,
        p90_ms=1.0,
        iqr_ms=0.0,
        n=1,
        inner=1,
        rounds_ms=(1.0,),
        threads=1,
        cold_start_ms=None,
        runtime="",
        runtime_version="",
        baseline_rss_bytes=None,
        peak_rss_bytes=None,
    )
