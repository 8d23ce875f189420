"""The profile of a graph: its totals are those of Keras, its rows add up."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lrfc.data.dataset import Data, Split
from lrfc.errors import ModelError, UsageError
from lrfc.ir.graph import Graph
from lrfc.passes.profile import Profile, ProfileModel, profile
from lrfc.pipeline import plan, run
from lrfc.state import State
from tests import helpers


def state(graph: Graph) -> State:
    split = Split((np.zeros((1, 1)),))
    return State(graph, graph, Data("none", split, split, split))


@pytest.mark.parametrize(
    "build",
    [
        helpers.conv_net,
        helpers.dense_net,
        helpers.residual,
        helpers.two_inputs,
        helpers.shared_conv,
        helpers.nested_twice,
    ],
)
def test_parameters_are_those_of_keras(build) -> None:
    model = build()
    found = profile(helpers.graph_of(model))
    assert found.params == model.count_params()
    assert found.weight_bytes == 4 * found.params


def test_rows_by_hand() -> None:
    found = profile(
        helpers.graph_of(helpers.conv_net(size=12, channels=3, filters=(8, 12), classes=5))
    )
    rows = {row.name: row for row in found.rows}
    assert rows["conv0"].macs == 12 * 12 * 9 * 3 * 8
    assert rows["conv1"].macs == 6 * 6 * 9 * 8 * 12
    assert rows["conv1"].shapes == ((None, 6, 6, 12),)
    assert rows["conv1"].live_bytes == 4 * (12 * 12 * 8 + 6 * 6 * 12)
    assert rows["head"].params == 12 * 5 + 5
    assert (
        found.macs
        == sum(row.macs for row in found.rows)
        == rows["conv0"].macs + rows["conv1"].macs + 60
    )
    assert (
        found.arena.at_op == "conv0" or found.arena.peak_bytes == rows[found.arena.at_op].live_bytes
    )
    assert found.arena_bytes >= found.arena.peak_bytes == max(row.live_bytes for row in found.rows)


def test_a_shared_layer_counts_its_weights_once_and_its_work_each_time() -> None:
    rows = [
        row for row in profile(helpers.graph_of(helpers.shared_conv())).rows if row.kind == "Conv2D"
    ]
    assert [row.params > 0 for row in rows] == [True, False, False]
    assert len({row.macs for row in rows}) == 1


def test_int8_bytes() -> None:
    graph = helpers.graph_of(helpers.dense_net(features=16, widths=(24,), classes=4))
    found = profile(graph, "int8")
    assert found.weight_bytes == 16 * 24 + 24 * 4 + 4 * (24 + 4)
    assert found.arena.peak_bytes * 4 == profile(graph).arena.peak_bytes


def test_the_pass_adds_the_fact_and_does_not_change_the_graph() -> None:
    before = state(helpers.graph_of(helpers.residual()))
    after = run(before, plan([ProfileModel()]))
    assert after.graph is before.graph
    assert after.fact(Profile) == profile(before.graph)


def test_json_is_plain() -> None:
    found = profile(helpers.graph_of(helpers.residual()))
    value = json.loads(json.dumps(found.to_json()))
    assert value["params"] == found.params
    assert [row["name"] for row in value["ops"]] == [row.name for row in found.rows]
    assert value["ops"][0]["shapes"] == [[None, 8, 8, 3]]


def test_refusals() -> None:
    import keras

    inputs = keras.Input((None, None, 3), name="image")
    graph = helpers.graph_of(keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs)))
    with pytest.raises(ModelError, match="fixed Input shape"):
        profile(graph)
    with pytest.raises(UsageError, match="fp32, fp16, dynamic, int8 or int16x8"):
        profile(graph, "int4")
