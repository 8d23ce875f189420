"""Cycles of single ops on an Ethos-U: from probes, and from compiled networks."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from lrfc.costs import latency, microbench, npu
from lrfc.costs.workload import Workload
from lrfc.errors import DeviceError
from lrfc.factorization import METHODS
from lrfc.ir.fold import fold_batchnorm, inference_form
from lrfc.ir.keras import io as keras_io
from lrfc.targets.devices import device
from lrfc.targets.devices.device import Vela
from lrfc.targets.ethos_u import vela
from lrfc.targets.ethos_u.pricing import observed, predicted, price
from lrfc.targets.ethos_u.pricing import profile as fitted
from lrfc.targets.tflite import probe
from lrfc.targets.tflite.target import TFLite
from tests.helpers import residual
from tests.test_vela import U55

needs_vela = pytest.mark.skipif(
    importlib.util.find_spec("ethosu") is None,
    reason="ethos-u-vela is not installed: pip install 'lrfc[npu]'",
)

CONV = Workload(
    "conv", ((16, 16, 16),), (16, 16, 16), (3, 3), (1, 1), (1, 1), params=2320, macs=589824
)
PADDING = Workload("zeropadding2d", ((16, 16, 16),), (18, 18, 16))


@pytest.fixture(scope="module")
def padded():
    """A convolution after its own padding, between others, and a skip connection around both."""
    import keras

    inputs = keras.Input((16, 16, 4), name="image")
    x = keras.layers.Conv2D(16, 1, name="stem")(
        inputs
    )  # the first op of all waits for its weights; this one has few
    skip = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="first")(x)
    x = keras.layers.ZeroPadding2D(1, name="padding")(skip)
    x = keras.layers.Conv2D(16, 3, name="second")(x)
    return keras_io.from_keras(keras.Model(inputs, keras.layers.Add(name="third")([x, skip])))


def compiled(graph, folder):
    images = np.random.default_rng(0).random(
        (4, *graph.tensors(graph.inputs[0])[0].shape[1:]), np.float32
    )
    return vela.compiled(TFLite("int8").emit(graph, folder / "graph.tflite", (images,)), U55)


def test_padding_is_taken_in(padded):
    assert [name for name, _ in npu.workloads(padded)] == ["stem", "first", "second", "third"]
    layer, source = padded.op("second"), padded.input_tensors("second")[0]
    whole = list(npu.chain(padded, "second", [layer]))
    assert [each.kind for each in whole] == ["conv"]
    first = list(npu.chain(padded, "second", METHODS["channel_svd"].outline(layer, source, (8,))))
    assert [each.kind for each in first] == ["conv", "conv"]
    separable = list(
        npu.chain(padded, "second", METHODS["spatial_svd"].outline(layer, source, (8,)))
    )
    assert [each.kind for each in separable] == [
        "zeropadding2d",
        "conv",
        "conv",
    ]  # one stage cannot take in both sides
    assert separable[0] == PADDING


@needs_vela
@pytest.mark.parametrize(("method", "ranks"), [("tucker2", (8, 8)), ("cp", (8,))])
def test_padding_moves_behind_a_pointwise_factor_layer(padded, method, ranks, tmp_path):
    layer, source = padded.op("second"), padded.input_tensors("second")[0]
    stages = METHODS[method].outline(layer, source, ranks)
    chain = list(npu.chain(padded, "second", stages))
    assert "zeropadding2d" not in [each.kind for each in chain]
    assert chain[0].output == (16, 16, 8)
    graph = padded.copy()
    graph.splice("second", METHODS[method].decompose(layer, source).stages(ranks))
    cycles = [compiled(each, tmp_path).cycles for each in (graph, inference_form(graph))]
    assert cycles[1] < 0.9 * cycles[0]
    names = {op.name for op in stages}
    again = [load for name, load in npu.workloads(inference_form(graph)) if name in names]
    assert again == chain


def test_an_unpadded_layer_has_no_padding(padded):
    assert [each.kind for each in npu.chain(padded, "first", [padded.op("first")])] == ["conv"]


@pytest.mark.parametrize(
    ("reader", "padding", "taken"),
    [
        (CONV, PADDING, True),
        (Workload("conv", ((18, 18, 16),), (18, 18, 4), (1, 1), (1, 1), (1, 1)), PADDING, False),
        (
            Workload("depthwise", ((18, 18, 16),), (16, 18, 16), (3, 1), (1, 1), (1, 1)),
            PADDING,
            False,
        ),
        (Workload("pool", ((18, 18, 16),), (9, 9, 16), (2, 2), (2, 2)), PADDING, True),
        (Workload("add", ((18, 18, 16),), (18, 18, 16)), PADDING, False),
        (
            CONV,
            Workload("zeropadding2d", ((12, 16, 16),), (18, 18, 16)),
            False,
        ),  # three rows on a side
    ],
)
def test_takes_in(reader, padding, taken):
    assert npu.takes_in(reader, padding) is taken


@needs_vela
def test_prices_are_those_of_a_network(padded, tmp_path):
    result = compiled(padded, tmp_path)
    known = price((each for _, each in npu.workloads(padded)), U55)
    assert known == price(known, U55)
    cycles = vela.by_op(result, padded)
    for name, workload in npu.workloads(padded):
        assert name == "stem" or known[workload] == pytest.approx(cycles[name], rel=0.1)
    assert predicted(padded, observed(result, padded)) == result.cycles


@needs_vela
def test_unfused_padding_is_priced(padded, tmp_path):
    graph = padded.copy()
    layer, source = graph.op("second"), graph.input_tensors("second")[0]
    graph.splice("second", METHODS["spatial_svd"].decompose(layer, source).stages((8,)))
    result = compiled(graph, tmp_path)
    known = price((each for _, each in npu.workloads(graph)), U55)
    assert known[PADDING] == pytest.approx(observed(result, graph)[PADDING], rel=0.1)
    assert (
        known[PADDING] > known[replace(CONV, activation="relu")]
    )  # dearer than a whole convolution


@needs_vela
def test_observed_ops_of_one_signature_share(tmp_path):
    graph = fold_batchnorm(keras_io.from_keras(residual(size=16, filters=16)))
    result = compiled(graph, tmp_path)
    assert predicted(graph, observed(result, graph)) == pytest.approx(result.cycles)


@needs_vela
def test_what_is_merged_is_attributed_to_both(padded, tmp_path):
    """An Ethos-U85 merges the addition into the convolution: Vela gives the addition no cycles."""
    connection = Vela(
        accelerator="ethos-u85-512",
        system_config="Ethos_U85_SYS_DRAM_Mid",
        memory_mode="Dedicated_Sram_384KB",
    )
    images = np.random.default_rng(0).random((4, 16, 16, 4), np.float32)
    result = vela.compiled(
        TFLite("int8").emit(padded, tmp_path / "graph.tflite", (images,)), connection
    )
    assert "third" not in vela.by_op(result, padded)
    ops = dict(npu.workloads(padded))
    together = observed(result, padded)
    assert together[ops["third"]] == 0
    prices = price(ops.values(), connection)
    apart = observed(result, padded, prices)
    assert apart[ops["third"]] > 0
    assert apart[ops["second"]] == prices[ops["second"]] < together[ops["second"]]
    assert sum(apart.values()) == pytest.approx(result.cycles)


@needs_vela
def test_every_kind_of_probe():
    wanted = [
        CONV,
        PADDING,
        Workload("conv", ((16, 16, 16),), (8, 8, 8), (3, 3), (2, 2), (1, 1), activation="relu"),
        Workload("conv", ((18, 18, 16),), (8, 8, 8), (3, 3), (2, 2), (1, 1), activation="relu6"),
        Workload("conv", ((20, 8),), (18, 8), (3,), (1,), (1,)),
        Workload("conv", ((16, 16, 16),), (12, 12, 16), (3, 3), (1, 1), (2, 2)),
        Workload("depthwise", ((16, 16, 16),), (16, 16, 32), (3, 3), (1, 1), (1, 1), groups=16),
        Workload("dense", ((64,),), (10,)),
        Workload("dense", ((5, 64),), (5, 10)),
        Workload("add", ((16, 16, 16), (16, 16, 16)), (16, 16, 16), activation="relu"),
        Workload("reduce", ((16, 16, 16),), (16,)),
        Workload("pool", ((16, 16, 16),), (8, 8, 16), (2, 2), (2, 2)),
    ]
    found = price(wanted, U55)
    assert set(found) == set(wanted)
    assert min(found.values()) > 0
    assert found[wanted[2]] < found[CONV]


def test_ops_that_no_probe_can_hold():
    assert not probe.can_hold(Workload("softmax", ((10,),), (10,)))
    assert not probe.can_hold(
        Workload("conv", ((4, 4, 4, 2),), (4, 4, 4, 2), (3, 3, 3), (1, 1, 1), (1, 1, 1))
    )
    assert not probe.can_hold(
        Workload("dense", ((4, 8),), (3,), macs=96)
    )  # an einsum over two axes


@needs_vela
def test_unknown_ops_have_no_price():
    assert price([Workload("softmax", ((10,),), (10,))], U55) == {}


@needs_vela
def test_time_is_up():
    with pytest.raises(DeviceError, match="Vela took more than"):
        price([CONV], U55, timeout=0.01)


def test_batches():
    workloads = [Workload("dense", ((width,),), (10,), params=10 * width) for width in range(1, 30)]
    parts = list(probe.batches(workloads, ops=8, weights=500))
    assert sorted((each for part in parts for each in part), key=str) == sorted(workloads, key=str)
    for part in parts:
        assert len(part) <= 8
        assert len(part) == 1 or sum(each.params for each in part) <= 500


@pytest.mark.parametrize(
    "name", ["ethos-u55-128", "ethos-u55-256", "ethos-u65-512", "ethos-u85-512"]
)
def test_shipped_profiles(name):
    profile = latency.load(name, "tflite", "int8", 1)
    assert profile is not None
    assert (profile.unit, profile.estimated, profile.device) == ("cycles", True, name)
    assert {"conv", "depthwise", "dense", "add", "pool", "reduce"} <= set(profile.families)
    wide = replace(CONV, output=(16, 16, 64), params=9232, macs=4 * CONV.macs)
    assert 0 < profile.op(CONV) < profile.op(wide)


@needs_vela
@pytest.mark.slow
def test_a_profile_is_fitted(monkeypatch):
    few = list(microbench.networks(16))
    monkeypatch.setattr(microbench, "networks", lambda: few)
    found = fitted(device.load("ethos-u55-128"))
    assert (found.unit, found.estimated, found.runtime_version) == ("cycles", True, vela.version())
    assert found.op(CONV) > 0
