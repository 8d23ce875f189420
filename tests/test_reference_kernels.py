"""The accuracy of integer files by LiteRT's reference kernels, and the devices that follow them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrfc.config.build import Drop
from lrfc.engine import reference_kernels as kernels_
from lrfc.engine.reference_kernels import kernels
from lrfc.errors import ModelError
from lrfc.ir.fold import fold_batchnorm
from lrfc.metrics.contract import contract
from lrfc.metrics.metric import metric
from lrfc.protocols import Artifact
from lrfc.state import State
from lrfc.targets.devices import device
from lrfc.targets.onnx.target import ONNX
from lrfc.targets.tflite.target import TFLite
from tests import helpers
from tests.compression import learnt


@pytest.fixture(scope="module")
def state() -> State:
    known = learnt()
    return replace(known, graph=fold_batchnorm(known.graph))


def emitted(state: State, folder: Path, target: Any) -> Artifact:
    found: Artifact = target.emit(
        state.graph, folder / f"m.{target.name}", tuple(x[:100] for x in state.data.train.inputs)
    )
    return found


def test_floats_are_the_same_by_both(state: State, tmp_path: Path) -> None:
    target = TFLite()
    file, inputs = emitted(state, tmp_path, target), state.data.test.inputs
    (some,), (others,) = target.load(file)(inputs), target.reference(file)(inputs)
    assert len(inputs[0]) > 32  # several threads have a share
    np.testing.assert_allclose(others, some, atol=1e-5)


@pytest.mark.parametrize("name", ["branches", "two_inputs"])
def test_several_outputs_and_inputs_stay_in_order(name: str, tmp_path: Path) -> None:
    graph, target = helpers.graph_of(getattr(helpers, name)()), TFLite("int8")
    inputs = helpers.random_inputs(graph, 70)
    file = target.emit(graph, tmp_path / "m.tflite", inputs)
    for one, other in zip(target.load(file)(inputs), target.reference(file)(inputs), strict=True):
        assert one.shape == other.shape
        assert (
            np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.99
        )  # not the same: that is the point


@pytest.mark.parametrize("precision", ["int8", "int16x8"])
def test_scores_by_both_kernels(
    precision: Any, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, test = TFLite(precision), state.data.test
    file, accuracy = emitted(state, tmp_path, target), metric("accuracy", state.graph, test)
    outputs = target.load(file)(test.inputs)
    monkeypatch.setattr(kernels_, "MACS", 40 * 1_000)
    found = kernels(file, accuracy, test, outputs, macs=1_000)
    assert found is not None
    rows = np.linspace(0, len(test) - 1, 40).astype(int)
    some = test.take(rows)
    assert found.samples == found.change.samples == 40
    assert found.optimised == accuracy.score(tuple(y[rows] for y in outputs), some)
    assert found.reference == accuracy.score(target.reference(file)(some.inputs), some) > 0.6
    assert found.change.drop == pytest.approx(found.optimised - found.reference)
    found = kernels(file, accuracy, test, outputs, macs=10**9)
    assert found is not None
    assert found.samples == kernels_.FEWEST


@pytest.mark.parametrize("target", [TFLite(), TFLite("dynamic"), ONNX(), ONNX("int8")])
def test_only_tflite_files_of_integers_have_both(target: Any, state: State, tmp_path: Path) -> None:
    file = emitted(state, tmp_path, target)
    assert (
        kernels(file, metric("accuracy", state.graph, state.data.test), state.data.test, (), 1)
        is None
    )


def test_a_file_that_the_reference_kernels_refuse(state: State, tmp_path: Path) -> None:
    broken = tmp_path / "m.tflite"
    broken.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"LiteRT cannot load .*m\.tflite"):
        kernels(
            Artifact(broken, "tflite", "int8"),
            metric("accuracy", state.graph, state.data.test),
            state.data.test,
            (),
            1,
        )


def test_what_the_kernels_lose_comes_on_top() -> None:
    rng = np.random.default_rng(0)
    before = rng.random(2_000) < 0.9
    after, there = (
        np.where(rng.random(2_000) < 0.02, rng.random(2_000) < 0.5, before) for _ in range(2)
    )
    first, second = (
        contract(before, after, Drop(value=0.02, confidence=0.95)),
        contract(after[:500], there[:500], None),
    )
    both = first.then(second)
    assert both.drop == pytest.approx(first.drop + second.drop)
    assert both.high - both.drop == pytest.approx(
        np.hypot(first.high - first.drop, second.high - second.drop)
    )
    assert both.drop - both.low == pytest.approx(
        np.hypot(first.drop - first.low, second.drop - second.low)
    )
    assert (both.samples, both.allowed, both.confidence) == (
        first.samples,
        first.allowed,
        first.confidence,
    )


def test_which_devices_follow_them() -> None:
    assert {name for name, _, each in device.known() if each.rounds_like_reference} == {
        "cortex-m4",
        "cortex-m7",
        "ethos-u55-128",
        "ethos-u55-256",
        "ethos-u65-512",
        "ethos-u85-512",
    }
