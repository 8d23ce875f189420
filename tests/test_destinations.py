"""One build for several destinations, and the original's own drop in the precision of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lrfc
from lrfc.engine import driver as line
from lrfc.engine import preflight
from lrfc.engine.baseline import ways_out
from lrfc.engine.candidate import Trial
from lrfc.engine.destinations import destination
from lrfc.engine.package import Result
from lrfc.errors import BudgetError, NoGainError
from lrfc.results.folder import sha256
from lrfc.state import Progress
from tests import helpers


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current folder, and no cache of an earlier build."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LRFC_CACHE", str(tmp_path / "cache"))


def samples(model: Any) -> dict[str, Any]:
    """Samples with the model's own predictions as labels."""
    x = np.random.default_rng(1).standard_normal((200, *model.input_shape[1:])).astype(np.float32)
    return {"x": x, "y": np.argmax(model.predict(x, verbose=0), axis=1)}


def failed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the first file of every destination lose twice the allowed drop.

    The driver then tries another plan.
    """
    real = line.try_out

    def try_out(*args: Any, looks: int) -> Trial:
        made = real(*args, looks=looks)
        assert made.contract is not None
        assert made.contract.allowed is not None
        if looks > 1:
            return made
        return replace(made, contract=replace(made.contract, drop=2 * made.contract.allowed.value))

    monkeypatch.setattr(line, "try_out", try_out)


def test_the_order_of_destinations_changes_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    failed_once(monkeypatch)
    model = helpers.conv_net(size=8, filters=(16, 24))
    data = samples(model)

    def built(*devices: str) -> dict[str, Result]:
        options: dict[str, Any] = {
            "methods": ("channel_svd", "svd"),
            "epochs": 0,
            "max_drop": "20pp",
            "out": "-".join(devices),
        }
        try:
            results = lrfc.build(model, device=devices, data=data, **options)
        except (BudgetError, NoGainError) as error:
            results = error.result
        return {result.manifest.device: result for result in results}

    one, other = built("cortex-m7", "ethos-u55-128"), built("ethos-u55-128", "cortex-m7")
    assert set(one) == set(other) == {"cortex-m7", "ethos-u55-128"}
    for device, result in one.items():
        again = other[device].manifest
        first, second = result.manifest.search.attempts[:2]
        assert second.allowed_divergence == pytest.approx(0.5 * first.allowed_divergence), (
            "it was repeated with less"
        )
        assert again.search.attempts == result.manifest.search.attempts
        assert again.layers == result.manifest.layers
        assert sha256(other[device].artifact) == sha256(result.artifact)


def test_the_drop_of_the_original_is_logged_before_further_attempts() -> None:
    """One channel is a thousand times as large as those that decide: int8 loses the network."""
    import keras

    inputs = keras.Input((16,), name="features")
    hidden = keras.layers.Dense(32, name="wide")(inputs)
    outputs = keras.layers.Dense(4, name="head")(keras.layers.Dense(32, name="hidden")(hidden))
    model = helpers.random_weights(keras.Model(inputs, outputs, name="uneven"))
    kernel, bias = model.get_layer("wide").get_weights()
    kernel[:, 0] *= 3000
    model.get_layer("wide").set_weights([kernel, bias])
    kernel, bias = model.get_layer("hidden").get_weights()
    kernel[0] = 0
    model.get_layer("hidden").set_weights([kernel, bias])
    lines: list[str] = []
    options: dict[str, Any] = {
        "methods": ("svd",),
        "epochs": 0,
        "device": "cortex-m7",
        "max_macs": "90%",
        "max_drop": "1pp",
    }
    with pytest.raises(BudgetError) as caught:
        lrfc.build(model, data=samples(model), progress=Progress(log=lines.append), **options)
    (place,) = [
        number for number, text in enumerate(lines) if text.startswith("the original itself loses ")
    ]
    text = lines[place]
    assert "in int8 where 1pp is allowed: --qat or a larger --max-drop may keep more" in text
    assert not any("higher ranks in attempt" in text for text in lines[:place])
    assert text in str(caught.value)
    assert caught.value.result is not None
    assert text in caught.value.result.manifest.problem


@pytest.mark.parametrize(
    ("target", "precision", "qat", "ways"),
    [
        ("tflite", "int8", False, ("--qat", "--precision int16x8", "--precision fp16")),
        ("tflite", "int8", True, ("--precision int16x8", "--precision fp16")),
        ("tflite", "int16x8", False, ("--precision fp16",)),
        ("tflite", "dynamic", False, ("--precision fp16",)),
        ("onnx", "int8", False, ("--precision fp16",)),
    ],
)
def test_the_ways_out_are_those_that_the_device_has(
    target: str, precision: str, qat: bool, ways: tuple[str, ...]
) -> None:
    goals = preflight.goals([target], ["host"], precision, None)
    assert ways_out(destination(goals[0]), qat=qat) == (*ways, "a larger --max-drop")
