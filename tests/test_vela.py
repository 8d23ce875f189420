"""Arm's Vela compiler as a device: its figures, which op they belong to, and its errors.

Vela is deterministic, so the figures are tested.
"""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from lrfc.engine.benchmark import fallbacks, spent
from lrfc.errors import BudgetError, DependencyError, DeviceError, NoGainError, UsageError
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.keras import io as keras_io
from lrfc.protocols import Artifact
from lrfc.results.op_costs import OpProfile
from lrfc.targets.devices import device
from lrfc.targets.devices.device import Device, Vela
from lrfc.targets.devices.speed import speedup
from lrfc.targets.ethos_u import flash, vela
from lrfc.targets.ethos_u.runner import VelaRunner, measurement
from lrfc.targets.tflite.target import TFLite
from tests.helpers import conv_net, residual

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ethosu") is None,
    reason="ethos-u-vela is not installed: pip install 'lrfc[npu]'",
)

U55 = Vela(
    accelerator="ethos-u55-128",
    system_config="Ethos_U55_High_End_Embedded",
    memory_mode="Shared_Sram",
)
DEVICES = ("ethos-u55-128", "ethos-u55-256", "ethos-u65-512", "ethos-u85-512")


@pytest.fixture(scope="module")
def graph():
    return fold_batchnorm(keras_io.from_keras(residual(size=16, filters=16)))


@pytest.fixture(scope="module")
def file(graph, tmp_path_factory):
    images = np.random.default_rng(0).random((8, 16, 16, 3), np.float32)
    return TFLite("int8").emit(
        graph, tmp_path_factory.mktemp("vela") / "residual.tflite", (images,)
    )


@pytest.fixture(scope="module")
def compiled(file):
    return vela.compiled(file, U55)


def test_figures(compiled, file):
    assert compiled.cycles == sum(layer.cycles for layer in compiled.layers)
    assert compiled.ms == pytest.approx(compiled.cycles / 500e3)  # 500 MHz
    assert 16 * 16 * 16 < compiled.sram_bytes < 5 * 16 * 16 * 16  # a few feature maps of int8
    weights = 3 * 9 * 16 + 16 * 9 * 16 + 16 * 3
    assert weights / 2 < compiled.flash_bytes < 10_000
    assert compiled.content[4:8] == b"TFL3"
    assert compiled.content != file.path.read_bytes()
    assert not compiled.fallbacks
    for layer in compiled.layers:
        assert layer.cycles >= max(layer.npu_cycles, layer.sram_cycles)


def test_cycles_belong_to_ops(compiled, graph):
    cycles = vela.by_op(compiled, graph)
    assert sum(cycles.values()) == compiled.cycles
    assert set(cycles) == {
        "stem",
        "bn0",
        "conv",
        "add",
        "pool",
        "head",
    }  # the BatchNorm stays, since the skip connection reads before it
    macs = {layer.name: layer.macs for layer in compiled.layers}
    assert 16 * 16 * 9 * 16 * 16 in macs.values()
    assert cycles["conv"] > cycles["stem"] > cycles["head"]


@pytest.mark.parametrize("large", [False, True])
def test_layers_of_like_names(large, tmp_path, monkeypatch):
    """Keras counts names as the converter counts calls: 'conv' and 'conv_1' stay apart."""
    import keras

    if large:
        monkeypatch.setattr("lrfc.targets.tflite.target.LARGE", 0)
    inputs = keras.Input((8, 8, 8), name="image")
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="conv")(inputs)
    x = keras.layers.Conv2D(32, 3, padding="same", name="conv_1")(x)
    x = keras.layers.Activation("exponential", name="odd")(x)
    graph = keras_io.from_keras(keras.Model(inputs, keras.layers.Conv2D(4, 1, name="conv_1_1")(x)))
    images = np.random.default_rng(0).random((4, 8, 8, 8), np.float32)
    found = vela.by_op(
        vela.compiled(TFLite("int8").emit(graph, tmp_path / "names.tflite", (images,)), U55), graph
    )
    assert set(found) == {"conv", "conv_1", "conv_1_1"}
    assert found["conv_1"] > found["conv"] > found["conv_1_1"]


@pytest.mark.parametrize("name", DEVICES)
def test_shipped_devices(name):
    profile = device.load(name)
    assert profile.precisions[0] == "int8"
    assert not profile.measured
    with VelaRunner(profile) as runner:
        facts = runner.check()
    assert facts.machine == name
    assert facts.runtimes == {"tflite": f"Vela {vela.version()}"}


def test_measurements(file, compiled):
    with VelaRunner(device.load("ethos-u55-128")) as runner:
        first, second = runner.compare([file, file], runs=3)
    assert first == second
    assert first.source == "compiled"
    assert (first.cycles, first.sram_bytes, first.flash_bytes) == (
        compiled.cycles,
        compiled.sram_bytes,
        compiled.flash_bytes,
    )
    assert first.median_ms == compiled.ms
    assert (first.iqr_ms, first.n, first.cold_start_ms, first.peak_rss_bytes) == (
        0.0,
        1,
        None,
        None,
    )
    assert first.file_bytes == file.bytes
    assert not first.notes
    assert speedup(first, second).median == 1.0


def test_a_file_is_compiled_once(file, graph, monkeypatch):
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        return compile_file(*args, **kwargs)

    compile_file = vela.compiled
    monkeypatch.setattr(vela, "compiled", counted)
    with VelaRunner(device.load("ethos-u55-128")) as runner:
        before, _ = runner.compare([file, file])
        assert sum(runner.observed(file, graph).values()) == pytest.approx(before.cycles)
        assert sum(runner.observed(file, graph).values()) == pytest.approx(before.cycles)
    assert len(calls) == 2  # the file, and one probe for the ops in it


def test_files_are_held_within_an_sram_size(file, compiled, tmp_path):
    copy = tmp_path / "copy.tflite"  # another file of the same network: one more byte at its end
    copy.write_bytes(file.path.read_bytes() + b"\0")
    with VelaRunner(device.load("ethos-u55-128")) as runner:
        free = runner.compiled(file)
        runner.hold(free.sram_bytes * 3 // 4)
        assert runner.compiled(file) is free  # the original, compiled before
        held = runner.compiled(Artifact(copy, "tflite", "int8"))
    assert free.sram_bytes == compiled.sram_bytes
    assert held.sram_bytes <= free.sram_bytes * 3 // 4
    assert held.cycles >= free.cycles


def test_optimised_for_size(file, compiled):
    small = vela.compiled(file, U55.model_copy(update={"optimise": "Size"}))
    assert small.sram_bytes < compiled.sram_bytes
    assert "Size" in U55.model_copy(update={"optimise": "Size"}).configuration.split()


def test_a_larger_accelerator_is_faster(file, compiled):
    larger = vela.compiled(file, U55.model_copy(update={"accelerator": "ethos-u55-256"}))
    assert larger.cycles < compiled.cycles


def test_a_float_file_is_refused(tmp_path):
    file = TFLite("fp32").emit(keras_io.from_keras(conv_net()), tmp_path / "float.tflite")
    with pytest.raises(UsageError, match=r"float\.tflite is a float file .* --precision int8"):
        vela.compiled(file, U55)


def test_an_onnx_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="onnx file"):
        vela.compiled(Artifact(tmp_path / "model.onnx", "onnx", "fp32"), U55)


def test_fallbacks_are_named(tmp_path):
    import keras

    inputs = keras.Input((8, 8, 4))
    x = keras.layers.Conv2D(8, 3, name="first")(inputs)
    x = keras.layers.Activation("elu", name="odd")(x)
    graph = keras_io.from_keras(keras.Model(inputs, keras.layers.Conv2D(4, 3, name="second")(x)))
    images = np.random.default_rng(0).random((4, 8, 8, 4), np.float32)
    result = vela.compiled(TFLite("int8").emit(graph, tmp_path / "elu.tflite", (images,)), U55)
    assert [layer.operator for layer in result.fallbacks] == ["Elu"]
    assert "odd" in result.fallbacks[0].name
    assert measurement(Artifact(tmp_path / "elu.tflite", "tflite", "int8"), result).notes == (
        "1 operators run on the CPU, which Vela does not count: Elu",
    )
    assert set(vela.by_op(result, graph)) == {"first", "second"}


@pytest.mark.parametrize(
    ("connection", "message"),
    [
        (
            U55.model_copy(update={"accelerator": "ethos-u99"}),
            "ended with exit code 2 on .*invalid choice",
        ),
        (
            U55.model_copy(update={"system_config": "nowhere"}),
            r"ended with exit code 1 on .*System_Config\.nowhere not found",
        ),
        (U55.model_copy(update={"config": "/nowhere.ini"}), r"nowhere\.ini: no such file"),
    ],
)
def test_wrong_configurations(file, connection, message):
    with pytest.raises(DeviceError, match=message) as caught:
        vela.compiled(file, connection)
    assert "\n" not in str(caught.value)


def test_a_damaged_file(file, tmp_path):
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(file.path.read_bytes()[:3000])
    with pytest.raises(DeviceError, match=r"Vela .* on damaged\.tflite"):
        vela.compiled(Artifact(damaged, "tflite", "int8"), U55)
    with pytest.raises(DeviceError, match="cannot be read"):
        vela.compiled(Artifact(tmp_path / "missing.tflite", "tflite", "int8"), U55)


def test_time_is_up(file):
    with pytest.raises(DeviceError, match=r"took more than 0\.01 s"):
        vela.compiled(file, U55, timeout=0.01)


def test_vela_is_missing(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "ethosu.vela", None)
    with pytest.raises(DependencyError, match=r"pip install 'lrfc\[npu\]'"):
        vela.compiled(file, U55)


def test_another_device_is_refused():
    with pytest.raises(UsageError, match="reached by local"):
        VelaRunner(Device(name="here", description="this machine"))


def test_memory_modes_and_system_configs_are_fields_of_a_device(file, compiled, tmp_path):
    """Another memory mode or system configuration in the device's TOML changes Vela's figures."""
    text = (device.SHIPPED / "ethos-u55-128.toml").read_text(encoding="utf-8")

    def with_fields(**fields):
        lines = [
            (
                line
                if line.split(" = ")[0] not in fields
                else f'{line.split(" = ")[0]} = "{fields[line.split(" = ")[0]]}"'
            )
            for line in text.splitlines()
        ]
        path = tmp_path / "mine.toml"
        path.write_text("\n".join(lines), encoding="utf-8")
        return vela.compiled(file, device.load(path).connection)

    inside = with_fields(memory_mode="Sram_Only")
    assert inside.cycles != compiled.cycles
    assert inside.sram_bytes != compiled.sram_bytes
    slower = with_fields(system_config="Ethos_U55_Deep_Embedded")
    assert slower.clock_hz < compiled.clock_hz
    with pytest.raises(DeviceError, match=r"Memory_Mode\.nowhere not found"):
        with_fields(memory_mode="nowhere")


def test_cycles_of_each_op(compiled, graph):
    found = spent(compiled, graph)
    assert sum(each.cycles for each in found.values()) == compiled.cycles
    assert max(each.sram_bytes for each in found.values()) <= compiled.sram_bytes
    assert (
        found["conv"].sram_bytes > found["stem"].sram_bytes
    )  # the skip connection waits meanwhile
    assert not any(each.cpu for each in found.values())


def flash_of(model, folder, connection=U55):
    """Flash of each op, and of the file."""
    graph = fold_batchnorm(keras_io.from_keras(model))
    images = np.random.default_rng(0).random((4, *model.inputs[0].shape[1:]), np.float32)
    result = vela.compiled(
        TFLite("int8").emit(graph, folder / f"{model.name}.tflite", (images,)), connection
    )
    assert sum(layer.flash_bytes for layer in result.layers) <= result.flash_bytes
    return {
        name: each.flash_bytes for name, each in spent(result, graph).items()
    }, result.flash_bytes


def test_the_flash_of_all_ops_is_that_of_the_file(compiled, graph):
    found = {name: each.flash_bytes for name, each in spent(compiled, graph).items()}
    assert sum(found.values()) == compiled.flash_bytes
    assert found["conv"] > found["stem"] > found["add"] == 0
    weights = 16 * 9 * 16
    assert (
        0.5 * weights < found["conv"] < 1.2 * weights + 10 * 16
    )  # encoded, and 10 bytes of scale and bias a filter


def test_fewer_filters_take_less_flash(tmp_path):
    (whole, first), (cut, second) = (
        flash_of(residual(size=8, filters=filters), tmp_path) for filters in (32, 16)
    )
    assert 0.2 < cut["conv"] / whole["conv"] < 0.4
    assert first - second == sum(whole[name] - cut[name] for name in whole)


def cascade():
    """Large feature maps: with a small SRAM operators run by stripes and share a time."""
    import keras

    x = inputs = keras.Input((128, 128, 3), name="image")
    for i, filters in enumerate((16, 24)):
        x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"conv{i}")(x)
        x = keras.layers.MaxPooling2D(3, strides=1, padding="same", name=f"pool{i}")(x)
        x = keras.layers.Activation("tanh", name=f"tanh{i}")(x)
    shared = keras.layers.Conv2D(24, 3, padding="same", activation="relu", name="shared")
    x = keras.layers.Conv2D(8, 3, strides=2, name="last")(shared(shared(x)))
    return keras.Model(inputs, keras.layers.MaxPooling2D(63, name="head")(x), name="cascade")


@pytest.mark.parametrize("name", DEVICES)
def test_flash_in_a_cascade(name, tmp_path):
    found, whole = flash_of(cascade(), tmp_path, device.load(name).connection)
    assert (
        found["tanh0"] == found["tanh1"] == 256
    )  # a lookup table of int8, and none for the pooling before it
    scales = {16: 10 * 16, 24: 10 * 24}
    assert 9 * 3 * 16 / 2 < found["conv0"] < 9 * 3 * 16 * 2 + 2 * scales[16]
    assert 9 * 16 * 24 / 2 < found["conv1"] < 9 * 16 * 24 * 1.3 + 2 * scales[24]
    assert (
        9 * 24 * 24 / 2 < found["shared"] < 9 * 24 * 24 * 1.3 + 4 * scales[24]
    )  # the weights once, their scales twice
    assert found["head"] == 0
    assert sum(found.values()) == whole or name.startswith(
        ("ethos-u65", "ethos-u85")
    )  # those have feature maps in the same memory


def test_another_format_of_the_flash_tables_is_refused(file, monkeypatch):
    """Another version of Vela: better no figures than wrong ones."""
    by_row, texts = flash.by_row, []
    monkeypatch.setattr(flash, "by_row", lambda *both: texts.append(both) or by_row(*both))
    whole = vela.compiled(file, U55)
    ((log, database),) = texts
    assert sum(by_row(log, database)) == whole.flash_bytes
    logs = [
        "",
        log.replace("read-only", "constant"),
        log.replace(" Unknown ", " Encoded "),
        log.replace(" 768:", " 784:"),
    ]
    databases = [
        "",
        database.replace("time_index", "time"),
        database.replace('"perf"', '"performance"'),
    ]
    for texts in [(other, database) for other in logs] + [(log, other) for other in databases]:
        with pytest.raises(DeviceError, match=r"Vela does not list .* pip install") as caught:
            by_row(*texts)
        assert "\n" not in str(caught.value)


def elu_net():
    import keras

    inputs = keras.Input((8, 8, 4), name="image")
    x = keras.layers.Conv2D(32, 3, padding="same", name="first")(inputs)
    x = keras.layers.Activation("elu", name="odd")(x)
    x = keras.layers.Conv2D(32, 3, padding="same", name="second")(x)
    return keras.Model(
        inputs,
        keras.layers.Dense(3, activation="softmax", name="head")(
            keras.layers.Flatten(name="flat")(x)
        ),
        name="elu_net",
    )


def test_fallbacks_are_named_before_any_work(tmp_path):
    """In the first line of a build and in the folder's record; with the int8 file and Vela's."""
    import lrfc
    from lrfc.state import Progress

    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((96, 8, 8, 4)).astype(np.float32), rng.integers(0, 3, 96)
    said: list[str] = []
    try:
        result = lrfc.build(
            elu_net(),
            device="ethos-u55-128",
            data={"x": images, "y": labels},
            max_macs="70%",
            epochs=0,
            out=tmp_path / "out",
            methods=("channel_svd", "svd"),
            progress=Progress(log=said.append),
        )
    except (BudgetError, NoGainError) as error:
        result = error.result
    named = next(
        i
        for i, line in enumerate(said)
        if line == "ethos-u55-128 leaves to the CPU, and counts no cycles for: odd (Elu)"
    )
    assert named < next(i for i, line in enumerate(said) if line.startswith("ExploreLayers"))
    assert [(file.path, file.format) for file in result.manifest.artifacts] == [
        ("elu_net.tflite", "tflite"), ("elu_net_vela.tflite", "vela"), ("model.keras", "keras"),
    ]  # fmt: skip
    recompiled = vela.compiled(Artifact(result.artifact, "tflite", "int8"), U55)
    assert (result.out / "elu_net_vela.tflite").read_bytes() == recompiled.content
    ops = OpProfile.read(result.out)
    assert sum(op.cycles or 0 for op in ops.before) == result.manifest.before.cycles
    assert sum(op.cycles or 0 for op in ops.after) == recompiled.cycles
    assert sum(op.flash_bytes or 0 for op in ops.before) == result.manifest.before.flash_bytes
    assert sum(op.flash_bytes or 0 for op in ops.after) == recompiled.flash_bytes
    assert {op.name: op.flash_bytes for op in ops.after}["odd"] == 0  # the CPU's
    assert {op.name: op.cpu for op in ops.after if op.cpu} == {"odd": ("Elu",)}
    page = (result.out / "report.html").read_text(encoding="utf-8")
    assert 'id="npu"' in page
    assert ">Elu<" in page


def test_a_network_without_fallbacks_is_not_remarked_on(graph, tmp_path):
    images = np.random.default_rng(0).random((4, 16, 16, 3), np.float32)
    assert (
        fallbacks(TFLite("int8"), device.load("ethos-u55-128"), graph, (images,), tmp_path) is None
    )
