"""Which filters hang together, and why others stay."""

from __future__ import annotations

import numpy as np

from lrfc.pruning.groups import groups
from tests.helpers import (
    branches,
    conv_net,
    dense_net,
    graph_of,
    random_weights,
    residual,
    shared_conv,
)
from tests.test_pruning_cut import check


def functional(inputs, outputs):
    import keras

    return random_weights(keras.Model(inputs, outputs))


def names(parts):
    return [part.layer for part in parts]


def image(channels=3, size=6):
    import keras

    return keras.Input((size, size, channels), name="image")


def test_a_chain_has_a_group_for_each_layer_but_the_last():
    found = groups(graph_of(conv_net()))
    assert [
        (g.name, g.width, names(g.producers), names(g.members), names(g.consumers))
        for g in found.groups
    ] == [
        ("conv0", 8, ["conv0"], ["bn0"], ["conv1"]),
        ("conv1", 12, ["conv1"], ["bn1"], ["head"]),
    ]
    assert found.refused == {"head": "its filters are the model's output 'head'"}


def test_a_residual_addition_couples_its_layers():
    (group,) = groups(graph_of(residual())).groups
    assert (names(group.producers), names(group.members), names(group.consumers)) == (
        ["stem", "conv"],
        ["bn0", "bn1"],
        ["conv", "head"],
    )


def test_survivors_are_the_channels_that_a_layer_keeps():
    found = groups(graph_of(conv_net()))
    left = found.survivors(found.removed({"conv0": np.array([1, 6])}))
    assert {layer: kept.tolist() for layer, kept in left.items()} == {"bn0": [1, 6]}


def test_rows_behind_a_flatten_and_offsets_behind_a_concatenation():
    found = groups(graph_of(branches()))
    label = next(part for part in found["point"].consumers if part.layer == "label")
    assert label.where([0]).tolist() == list(
        range(6, 90, 10)
    )  # 6 channels of 'sum', 4 of 'point', at 9 positions; then 6 of 'embed'
    assert found["embed"].consumers[0].where([0, 5]).tolist() == [90, 95]


def test_a_unit_of_a_grouped_convolution():
    """Of few wide groups, each loses a position; of many narrow ones, whole groups are removed."""
    from keras import layers

    inputs = image()
    x = layers.Conv2D(16, 1, name="stem")(inputs)
    x = layers.Conv2D(24, 3, groups=2, name="wide")(x)
    x = layers.Conv2D(24, 3, groups=8, name="narrow")(x)
    found = groups(graph_of(functional(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))))
    assert [(g.name, g.width, names(g.members), names(g.consumers)) for g in found.groups] == [
        ("stem", 8, [], ["wide"]),
        ("wide", 4, ["narrow"], ["head"]),
    ]
    assert found["stem"].producers[0].where([0]).tolist() == [0, 8]
    # Positions of both groups of 'wide' and whole groups of three in 'narrow' are joined: filters
    # 0-2 and 12-14 are one unit.
    assert found["wide"].producers[0].where([0]).tolist() == [0, 1, 2, 12, 13, 14]


def test_model_inputs_are_frozen():
    from keras import layers

    inputs = image(channels=4)
    x = layers.Add(name="add")([layers.Conv2D(4, 1, name="conv")(inputs), inputs])
    found = groups(graph_of(functional(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))))
    assert not found.groups
    assert found.refused["conv"] == "its filters meet the model's input 'image' in 'add' (Add)"
    assert groups(graph_of(shared_conv())).refused == {
        "conv": "its filters are the model's output 'flat'"
    }


def test_layers_that_mix_channels_freeze_them():
    from keras import layers, ops

    inputs = image()
    x = layers.LayerNormalization(name="norm")(layers.Conv2D(4, 1, name="a")(inputs))
    x = ops.sort(layers.Conv2D(4, 1, name="b")(x), axis=-1)
    x = layers.Softmax(name="soft")(layers.Conv2D(4, 1, name="c")(x))
    x = layers.Dense(5, activation="softmax", name="d")(x)
    x = layers.GroupNormalization(1, name="group")(layers.Conv2D(4, 1, name="e")(x))
    refused = groups(
        graph_of(functional(inputs, layers.Dense(2, name="head")(layers.Flatten()(x))))
    ).refused
    assert refused["a"] == "its filters are read by 'norm' (LayerNormalization), which mixes them"
    assert refused["b"] == "its filters are read by 'sort' (ops.Sort), which may mix channels"
    assert refused["c"] == "its filters are read by 'soft' (Softmax), which mixes them"
    assert refused["d"] == "its filters go through the activation softmax of 'd', which mixes them"
    assert refused["e"] == "its filters are read by 'group' (GroupNormalization), which mixes them"


def test_custom_layers_freeze_what_they_read():
    import keras
    from keras import layers

    class Conv2D(layers.Conv2D):
        """A namesake that may do anything."""

    inputs = image()
    x = Conv2D(4, 1, name="own")(layers.Conv2D(4, 1, name="plain")(inputs))
    found = groups(
        graph_of(
            keras.Model(
                inputs,
                layers.Dense(2, name="head")(
                    layers.Flatten()(layers.Conv2D(4, 1, name="behind")(x))
                ),
            )
        )
    )
    assert [group.name for group in found.groups] == ["behind"]
    assert "which may mix channels" in found.refused["plain"]
    assert "own" not in found.refused


def test_attention_is_refused_with_its_reason():
    import keras
    from keras import layers

    inputs = keras.Input((5, 6))
    x = layers.Dense(8, name="widen")(inputs)
    x = layers.Dense(4, name="behind")(layers.MultiHeadAttention(2, 4, name="attention")(x, x))
    found = groups(graph_of(functional(inputs, layers.Dense(2, name="head")(x))))
    assert [group.name for group in found.groups] == ["behind"]
    assert found.refused["widen"].startswith(
        "its filters are read by 'attention' (MultiHeadAttention), an attention layer that has to"
        " stay whole"
    )


def test_a_group_of_one_unit_is_refused():
    from keras import layers

    inputs = image()
    x = layers.Conv2D(1, 1, name="mono")(inputs)
    x = layers.Multiply(name="gate")(
        [layers.Conv2D(4, 1, name="wide")(inputs), layers.Activation("sigmoid")(x)]
    )
    found = groups(graph_of(functional(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))))
    assert found.refused["mono"] == "it has one filter"
    assert [(group.name, group.width) for group in found.groups] == [("wide", 4)]
    single = graph_of(
        functional(
            inputs,
            layers.Dense(2, name="head")(
                layers.GlobalAveragePooling2D()(layers.Conv2D(1, 1, name="one")(inputs))
            ),
        )
    )
    assert groups(single).refused["one"] == "it has one filter"


def test_a_shortcut_padded_with_zero_channels():
    """The CIFAR ResNets' shortcuts: filters added to zeros do not depend on the narrower stage."""
    from keras import layers, ops

    inputs = image()
    x = layers.Conv2D(4, 1, name="narrow")(inputs)
    shortcut = ops.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (2, 2)), constant_values=0.5)
    x = layers.Add()([layers.Conv2D(8, 3, strides=2, padding="same", name="wide")(x), shortcut])
    found, _ = check(functional(inputs, layers.Dense(2, name="head")(layers.Flatten()(x))))
    assert [(group.name, group.width, names(group.producers)) for group in found.groups] == [
        ("narrow", 4, ["narrow", "wide"]),
        ("wide", 4, ["wide"]),
    ]
    assert found["wide"].producers[0].where(range(4)).tolist() == [0, 1, 6, 7]
    x = ops.pad(
        layers.Conv2D(4, 1, name="edge")(inputs), ((0, 0), (0, 0), (0, 0), (2, 2)), mode="reflect"
    )
    assert (
        "are padded by"
        in groups(graph_of(functional(inputs, layers.Conv2D(2, 1)(x)))).refused["edge"]
    )


def test_both_parts_of_a_slice_keep_a_unit():
    """Otherwise the consumers of one half could lose all of their inputs."""
    from keras import layers, ops

    inputs = image()
    x = layers.Conv2D(6, 1, name="conv")(inputs)
    left, right = ops.split(x, [2], axis=-1)
    y = ops.squeeze(ops.mean(ops.expand_dims(x[..., 3:], 1), axis=(2, 3)), 1)
    y = ops.reshape(ops.reshape(y, (-1, 1, 3)), (-1, 3))
    found, _ = check(
        functional(
            inputs,
            [
                layers.Conv2D(2, 1, name="a")(left),
                layers.Conv2D(2, 1, name="b")(right),
                layers.Dense(2, name="c")(y),
            ],
        ),
        share=0.1,
    )
    assert [
        (group.name, group.producers[0].where(range(group.width)).tolist())
        for group in found.groups
    ] == [
        ("conv", [0, 1]),
        ("conv#3", [3, 4, 5]),
    ]


def test_only_and_keep():
    graph = graph_of(dense_net(widths=(8, 6, 5)))
    assert [group.name for group in groups(graph, only=["dense1"]).groups] == ["dense1"]
    assert (
        groups(graph, only=["dense1"]).refused["dense0"]
        == "its filters include those of 'dense0', which is not named by --only"
    )
    assert [group.name for group in groups(graph, only=["dense[12]"]).groups] == [
        "dense1",
        "dense2",
    ]


# -- what users of other tools report (peers.md, 16 to 19) -----------------------------------------


def test_regression_concatenation_under_an_addition():
    """Torch-Pruning#481, #415, #146, nni#4934: offsets of a concatenation in an addition."""
    from keras import layers

    inputs = image()
    a, b = layers.Conv2D(3, 1, name="a")(inputs), layers.Conv2D(5, 1, name="b")(inputs)
    x = layers.Add()([layers.Concatenate()([a, b]), layers.Conv2D(8, 1, name="c")(inputs)])
    x = layers.Concatenate()([x, a, x])
    found, _ = check(functional(inputs, layers.Conv2D(2, 1, name="head")(x)), share=0.4)
    assert [(group.name, group.width, names(group.producers)) for group in found.groups] == [
        ("a", 3, ["a", "c"]),
        ("b", 5, ["b", "c"]),
    ]
    assert found["a"].consumers[0].where([1]).tolist() == [1, 9, 12]
    assert found["b"].producers[1].units.tolist() == [-1, -1, -1, 0, 1, 2, 3, 4]


def test_regression_depthwise_and_one_output_convolutions():
    """Torch-Pruning#179, #126: grouped convolutions may be depthwise, one of one channel is not."""
    from keras import layers

    inputs = image(channels=1)
    x = layers.Conv2D(6, 3, name="one_input")(inputs)
    x = layers.Conv2D(12, 3, groups=6, name="grouped")(x)
    y = layers.Conv2D(1, 1, name="one_output")(x)
    x = layers.DepthwiseConv2D(1, name="depthwise")(x)
    y = layers.DepthwiseConv2D(1, depth_multiplier=4, name="widening")(y)
    heads = [
        layers.Dense(2, name="head")(layers.Flatten()(x)),
        layers.Dense(2, name="other")(layers.Flatten()(y)),
    ]
    found, _ = check(functional(inputs, heads))
    (group,) = found.groups
    assert (names(group.producers), names(group.members)) == (
        ["one_input"],
        ["grouped", "depthwise"],
    )
    assert names(group.consumers) == ["one_output", "head"]
    assert found.refused["one_output"] == "it has one filter"
    assert found.refused["grouped"] == "its filters go with the channels that it reads"


def test_regression_kept_layers_stay_whole_on_both_sides():
    """Torch-Pruning#341, nncf#482: inputs and outputs of a kept head are frozen on every path."""
    from keras import layers

    inputs = image()
    a, b = layers.Conv2D(4, 1, name="a")(inputs), layers.Conv2D(4, 1, name="b")(inputs)
    x = layers.Add()([a, b])
    x = layers.Conv2D(5, 1, name="box_head")(x)
    x = layers.Conv2D(6, 1, name="c")(x)
    graph = graph_of(functional(inputs, layers.Dense(2, name="head")(layers.Flatten()(x))))
    assert [group.name for group in groups(graph).groups] == ["a", "box_head", "c"]
    found = groups(graph, keep=["box_*"])
    assert [group.name for group in found.groups] == ["c"]
    assert found.refused["b"] == "its filters are read by 'box_head', which is kept by --keep box_*"
    assert found.refused["box_head"] == "its filters are kept by --keep box_*"


def test_regression_outputs_are_frozen_by_default():
    """Every output, also one that other layers read."""
    from keras import layers

    inputs = image()
    x = layers.Conv2D(4, 1, name="features")(inputs)
    model = functional(
        inputs,
        [x, layers.Dense(2, name="head")(layers.Flatten()(layers.Conv2D(5, 1, name="on")(x)))],
    )
    found = groups(graph_of(model))
    assert [group.name for group in found.groups] == ["on"]
    assert found.refused["features"] == "its filters are the model's output 'features'"


def test_regression_frozen_layers_are_in_the_graph():
    """Torch-Pruning#211, #188: layers that are not trainable are pruned like all others."""
    from keras import layers

    inputs = image()
    first, norm = layers.Conv2D(4, 1, name="first"), layers.BatchNormalization(name="norm")
    model = functional(inputs, layers.Dense(2, name="head")(layers.Flatten()(norm(first(inputs)))))
    first.trainable = norm.trainable = False
    found, smaller = check(model)
    assert [(group.name, names(group.members)) for group in found.groups] == [("first", ["norm"])]
    assert smaller.op("norm").weights["moving_mean"].shape == (2,)
    np.testing.assert_equal(smaller.op("first").attrs["trainable"], False)
