"""Networks in parts: outputs are those of the whole, and only parts behind a change run again."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
import pytest

from lrfc.ir.keras import io as keras_io
from lrfc.search.segments import Segments, _groups
from tests import helpers


def residual() -> keras.Model:
    """Two inputs and two outputs, with tensors that skip several ops."""
    one, two = keras.Input((8, 8, 3), name="one"), keras.Input((5,), name="two")
    x = keras.layers.Conv2D(6, 3, padding="same", name="a")(one)
    y = keras.layers.BatchNormalization(name="norm")(
        keras.layers.Conv2D(6, 3, padding="same", name="b")(x)
    )
    x = keras.layers.Add(name="sum")([x, y])
    early = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Conv2D(6, 3, padding="same", name="c")(x)
    x = keras.layers.GlobalAveragePooling2D(name="late")(x)
    x = keras.layers.Concatenate(name="both")([x, two, early])
    return keras.Model([one, two], [keras.layers.Dense(4, name="d")(x), early])


def noted(ran, number, run, batch):
    ran.append(number)
    return run(batch)


NETS = {
    "residual": residual,
    "shared": helpers.shared_conv,
    "conv": lambda: helpers.conv_net(filters=(6, 8, 6)),
    "dense": helpers.dense_net,
}


@pytest.mark.parametrize("parts", [1, 2, 5, 50])
@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
def test_parts_compute_the_whole(build, parts) -> None:
    graph = helpers.graph_of(build())
    inputs = helpers.random_inputs(graph, 9)
    segments = Segments(graph, parts)
    reference = segments.hold(inputs)
    assert len(segments._parts) <= parts
    assert helpers.difference(keras_io.predict(graph, inputs), reference) < 1e-5
    assert helpers.difference(segments.predict(inputs, 4), reference) < 1e-5
    assert helpers.difference(segments.outputs([]), reference) == 0


@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
def test_a_change_is_followed_through_all_parts_behind_it_and_no_others(build) -> None:
    graph = helpers.graph_of(build())
    inputs = helpers.random_inputs(graph, 9)
    segments = Segments(graph, 4)
    reference = segments.hold(inputs)
    assert len(segments._parts) > 1
    model = keras_io.to_keras(graph)
    for name in dict.fromkeys(op.shared or op.name for op in graph if "kernel" in op.weights):
        ran: list[int] = []
        for number, part in enumerate(segments._parts):
            object.__setattr__(part, "run", partial(noted, ran, number, part.run))
        layers = [model.get_layer(name), *segments.layers(name)]
        before = np.array(layers[0].kernel)
        for layer in layers:
            layer.kernel.assign(1.5 * before)
        changed = segments.outputs([name])
        assert helpers.difference(keras_io.predict(model, inputs), changed) < 1e-4
        assert helpers.difference(changed, reference) > 1e-4
        first = next(
            i
            for i, part in enumerate(segments._parts)
            if any((op.shared or op.name) == name for op in graph if op.name in part.names)
        )
        assert sorted(set(ran)) == list(range(first, len(segments._parts)))
        for layer in layers:
            layer.kernel.assign(before)


def test_the_parts_have_about_equal_work() -> None:
    x = inputs = keras.Input((6, 6, 8))
    for _ in range(12):
        x = keras.layers.ReLU()(keras.layers.Conv2D(8, 3, padding="same")(x))
    graph = helpers.graph_of(keras.Model(inputs, x))
    groups = _groups(graph, 4)
    assert len(groups) == 4
    convolutions = [sum("Conv" in op.kind for op in group) for group, _, _ in groups]
    assert convolutions == [3, 3, 3, 3]


def test_a_network_with_masks_is_one_part() -> None:
    tokens = keras.Input((6,), dtype="int32")
    x = keras.layers.Embedding(9, 4, mask_zero=True)(tokens)
    x = keras.layers.Dense(5)(keras.layers.LSTM(4)(x))
    graph = helpers.graph_of(keras.Model(tokens, keras.layers.Dense(3)(x)))
    assert len(_groups(graph, 4)) == 1
