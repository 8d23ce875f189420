"""Estimated latencies of emitted files on a device that cannot be reached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lrfc import api
from lrfc.cli import app as cli
from lrfc.costs import latency
from lrfc.costs.workload import workloads
from lrfc.errors import DeviceError, LrfcError, UsageError
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.keras import io as keras_io
from lrfc.targets.tflite import operators
from lrfc.targets.tflite.target import TFLite
from tests import helpers

MODELS = {
    "conv_net": lambda: helpers.conv_net(size=8, filters=(6, 8)),
    "residual": helpers.residual,
    "branches": helpers.branches,
    "dense": helpers.dense_net,
}


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """Each of MODELS as a graph and as an int8 file."""
    files = {}
    for name, model in MODELS.items():
        graph = fold_batchnorm(keras_io.from_keras(model()))
        path = tmp_path_factory.mktemp("emitted") / f"{name}.tflite"
        TFLite("int8").emit(graph, path, helpers.random_inputs(graph, 8))
        files[name] = (graph, path)
    return files


@pytest.mark.parametrize("name", MODELS)
def test_a_file_has_the_estimate_of_the_graph_that_it_was_emitted_from(
    name: str, emitted: dict[str, tuple[Any, Path]]
) -> None:
    graph, path = emitted[name]
    profile = latency.load("cortex-m7", "tflite", "int8", 1)
    assert profile is not None
    network = operators.read(path)
    assert network.precision == "int8"
    expected = [op for _, op in workloads(graph)]
    # A file has a bias for each of its convolutions, and its own order.
    layers, own = (
        sorted((op.kind, op.kernel, op.groups, op.macs) for op in ops if op.macs)
        for ops in (network.workloads, expected)
    )
    assert layers == own
    (measured,) = api.measure([path], device="cortex-m7")
    assert measured.source == "estimated"
    assert (
        measured.median_ms == measured.p90_ms == pytest.approx(profile.predict(expected), rel=0.03)
    ), "a file may convert between scales"


def test_the_command_calls_it_an_estimate(
    emitted: dict[str, tuple[Any, Path]], capfd: pytest.CaptureFixture[str]
) -> None:
    one, other = emitted["conv_net"][1], emitted["dense"][1]
    assert (
        CliRunner()
        .invoke(cli.app, ["measure", str(one), str(other), "--device", "cortex-m7"])
        .exit_code
        == 0
    )
    text = capfd.readouterr().out
    assert "estimated by TensorFlow Lite Micro with CMSIS-NN" in text
    assert "no device was timed; arena measured with TensorFlow Lite Micro" in text
    assert "arena tail" in text
    assert (
        CliRunner()
        .invoke(cli.app, ["measure", str(one), "--device", "cortex-m7", "--json"])
        .exit_code
        == 0
    )
    (row,) = json.loads(capfd.readouterr().out)["measurements"]
    assert row["source"] == "estimated"
    assert row["cold_start_ms"] is row["peak_rss_bytes"] is None
    assert row["arena_head_bytes"] > 0 < row["arena_tail_bytes"]


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("fp32", "fp32"),
        ("fp16", "fp16"),
        ("dynamic", "dynamic"),
        ("int16x8", "int16x8"),
        ("int8", "int8"),
    ],
)
def test_the_precision_is_that_of_the_layers(precision: Any, expected: str, tmp_path: Path) -> None:
    graph = fold_batchnorm(keras_io.from_keras(helpers.dense_net(features=48, widths=(64, 32))))
    path = (
        TFLite(precision).emit(graph, tmp_path / "net.tflite", helpers.random_inputs(graph, 8)).path
    )
    assert operators.read(path).precision == expected
    if precision != "int8":
        with pytest.raises(
            UsageError,
            match=f"device 'cortex-m7' computes in int8, and .*net.tflite is in {precision}",
        ):
            api.measure([path], device="cortex-m7")


def test_an_operator_that_has_no_price_is_named(tmp_path: Path) -> None:
    import keras

    inputs = keras.Input((6, 4), name="steps")
    graph = keras_io.from_keras(
        keras.Model(
            inputs, keras.layers.LSTM(5, unroll=False, name="memory")(inputs), name="recurrent"
        )
    )
    path = TFLite().emit(graph, tmp_path / "net.tflite").path
    with pytest.raises(
        DeviceError,
        match=(
            r"net\.tflite: no time can be computed for its operator"
            r" (WHILE|UNIDIRECTIONAL_SEQUENCE_LSTM)"
        ),
    ):
        operators.read(path)


def test_a_damaged_file_ends_in_one_line(
    emitted: dict[str, tuple[Any, Path]], tmp_path: Path
) -> None:
    content = bytearray(emitted["conv_net"][1].read_bytes())
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.tflite"
    lines: list[str] = []
    for turn in range(150):
        damaged = bytearray(content[: rng.integers(8, len(content))] if turn % 3 == 0 else content)
        for place in rng.integers(8, len(damaged), 1 + turn % 20):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            api.measure([path], device="cortex-m7")
        except LrfcError as error:
            lines.append(str(error))
    assert len(lines) > 50
    assert not any("\n" in line for line in lines)
    path.write_bytes(b"not a flatbuffer at all")
    with pytest.raises(DeviceError, match=r"damaged\.tflite is not a \.tflite file"):
        operators.read(path)
