"""Import and export of Keras models: exact for every way in which Keras connects layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Ref, Slot
from tests import helpers
from tests.round_trips import EXACT, kinds, round_trip


@pytest.mark.parametrize(
    "build",
    [
        helpers.conv_net,
        helpers.dense_net,
        helpers.residual,
        helpers.branches,
        helpers.two_inputs,
        helpers.shared_conv,
        helpers.nested_twice,
    ],
)
def test_small_models_survive(build) -> None:
    round_trip(build())


def test_a_printed_model() -> None:
    assert str(helpers.graph_of(helpers.shared_conv())) == "\n".join(
        [
            "graph shared_conv",
            "  left = InputLayer() -> (?, 6, 6, 3)",
            "  right = InputLayer() -> (?, 6, 6, 3)",
            (
                "  conv = Conv2D(left) filters=3 kernel_size=3 padding=same shared=conv -> (?, 6,"
                " 6, 3)"
            ),
            (
                "  conv@1 = Conv2D(right) filters=3 kernel_size=3 padding=same shared=conv -> (?,"
                " 6, 6, 3)"
            ),
            "  add = Add(conv, conv@1) -> (?, 6, 6, 3)",
            (
                "  conv@2 = Conv2D(add) filters=3 kernel_size=3 padding=same shared=conv -> (?, 6,"
                " 6, 3)"
            ),
            "  flat = Flatten(conv@2) -> (?, 108)",
            "  return flat",
        ]
    )


def test_shared_layers_count_once_before_and_after() -> None:
    model = helpers.shared_conv()
    graph = round_trip(model)
    assert graph.params == model.count_params() == 3 * 3 * 3 * 3 + 3
    assert graph.op("conv").weights["kernel"] is graph.op("conv@2").weights["kernel"]
    rebuilt = keras_io.to_keras(graph)
    assert [layer.name for layer in rebuilt.layers if layer.weights] == ["conv"]
    assert rebuilt.count_params() == model.count_params()


def test_several_inputs_and_outputs_keep_their_order() -> None:
    graph = round_trip(helpers.branches())
    assert graph.inputs == ("photo", "extra")  # not sorted by name
    assert graph.outputs == (Ref("value"), Ref("label"))
    assert graph.structure == (None, None)


def test_dicts_of_inputs_and_outputs() -> None:
    model = helpers.two_inputs()
    graph = round_trip(model)
    assert graph.structure == (
        {"image": Slot(0), "vector": Slot(1)},
        {"label": Slot(0), "value": Slot(1)},
    )
    rebuilt = keras_io.to_keras(graph)
    batch = helpers.random_inputs(graph)
    outputs = rebuilt(dict(zip(("image", "vector"), batch, strict=True)))
    assert set(outputs) == {"label", "value"}


def test_nested_models_are_inlined_with_path_names() -> None:
    graph = round_trip(helpers.nested_twice())
    assert [op.name for op in graph if op.weights] == [
        "backbone__conv1", "backbone__inner__point", "backbone__inner__bn",
        "backbone__conv1@1", "backbone__inner__point@1", "backbone__inner__bn@1", "head",
    ]  # fmt: skip
    assert len([op for op in graph.layers() if op.weights]) == 4


def moved(model: Any, name: str) -> np.ndarray:
    """The change of a BatchNorm's moving mean in one call in training mode."""
    (norm,) = [layer for layer in model._flatten_layers() if layer.name.endswith(name)]
    before = np.array(norm.moving_mean)
    keras_io.call(model, helpers.random_inputs(helpers.graph_of(model)), training=True)
    return np.array(norm.moving_mean) - before


@pytest.mark.parametrize("training", [None, False])
def test_training_does_to_the_rebuilt_model_what_it_does_to_the_original(training) -> None:
    model = helpers.nested_twice(training)
    graph = round_trip(model)
    recorded = [op.call[1] for op in graph if op.kind == "BatchNormalization" and op.call]
    assert recorded == ([] if training is None else [{"training": False}] * 2)
    assert moved(keras_io.to_keras(graph), "bn") == pytest.approx(moved(model, "bn"), abs=1e-6)


def test_frozen_layers_stay_frozen() -> None:
    model = helpers.nested_twice()
    model.get_layer("backbone").trainable = False
    rebuilt = keras_io.to_keras(round_trip(model))
    assert [v.path for v in rebuilt.trainable_variables] == ["head/kernel", "head/bias"]
    assert not moved(rebuilt, "bn").any()
    assert moved(keras_io.to_keras(helpers.graph_of(helpers.nested_twice())), "bn").any()


def test_the_unread_output_of_a_nested_model_is_left_out() -> None:
    """Its layers do not contribute to the model, but would count as parameters and MACs.

    Keras drops them when it rebuilds the model.
    """
    import keras

    x = keras.Input((4,))
    inner = keras.Model(
        x,
        [keras.layers.Dense(2, name="idle")(x), keras.layers.Dense(3, name="used")(x)],
        name="inner",
    )
    inputs = keras.Input((4,), name="x")
    graph = helpers.graph_of(helpers.random_weights(keras.Model(inputs, inner(inputs)[1])))
    assert [op.name for op in graph] == ["x", "inner__used"]
    helpers.same(graph, keras_io.absorb(graph, keras_io.to_keras(graph)), EXACT)


def test_a_nested_model_takes_inputs_of_other_types_and_ranks() -> None:
    """Ops of the graph cast the input and add or drop a last axis, as Keras does in the call."""
    import keras
    from keras import layers

    column, row = keras.Input((4, 1)), keras.Input((4,))
    as_row = keras.Model(column, layers.Flatten(name="flat")(column), name="column")
    as_column = keras.Model(row, layers.Flatten(name="flat")(row), name="row")
    dense = keras.Model(row, layers.Dense(2, name="dense")(row), name="dense")
    x, y, z = (
        keras.Input((4,), name="x"),
        keras.Input((4, 1), name="y"),
        keras.Input((4,), dtype="int32", name="z"),
    )
    graph = round_trip(
        helpers.random_weights(keras.Model([x, y, z], [as_row(x), as_column(y), dense(z)]))
    )
    assert {"ops.ExpandDims", "ops.Squeeze", "ops.Cast"} <= set(kinds(graph))


def test_two_nested_models_with_equal_layer_names() -> None:
    import keras

    def part(name: str) -> Any:
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="dense")], name=name)

    inputs = keras.Input((4,))
    graph = round_trip(helpers.random_weights(keras.Model(inputs, part("b")(part("a")(inputs)))))
    assert [op.name for op in graph if op.weights] == ["a__dense", "b__dense"]
    assert graph.params == 40


def test_an_output_that_is_also_read_and_one_given_twice() -> None:
    import keras

    inputs = keras.Input((4,), name="x")
    first = keras.layers.Dense(3, name="first")(inputs)
    second = keras.layers.Dense(2, name="second")(first)
    graph = round_trip(helpers.random_weights(keras.Model(inputs, [first, second, first])))
    assert graph.outputs == (Ref("first"), Ref("second"), Ref("first"))


def test_add_of_one_tensor_with_itself() -> None:
    import keras

    inputs = keras.Input((4,), name="x")
    assert round_trip(keras.Model(inputs, keras.layers.Add(name="add")([inputs, inputs]))).operands(
        "add"
    ) == (Ref("x"), Ref("x"))


def test_a_part_of_a_larger_model() -> None:
    """The graph has only the layers between the inputs and outputs of the part."""
    import keras

    whole = helpers.conv_net()
    part = keras.Model(whole.get_layer("relu0").output, whole.get_layer("pool").output, name="part")
    graph = round_trip(part)
    assert [op.name for op in graph if op.weights] == ["conv1", "bn1"]


def test_a_pretrained_body_with_a_new_head() -> None:
    """In transfer learning, layers of an inner model are often used without calling it."""
    import keras

    body = helpers.conv_net(batch_norm=True)
    head = keras.layers.Dense(2, name="new_head")(body.get_layer("pool").output)
    assert round_trip(
        helpers.random_weights(keras.Model(body.input, head, name="transfer"))
    ).outputs == (Ref("new_head"),)
