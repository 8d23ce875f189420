"""Attention layers as fully connected layers: the same outputs, masks included, and what stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lrfc
from lrfc.data.dataset import Data, Split
from lrfc.engine.candidate import parity
from lrfc.factorization import METHODS
from lrfc.ir import ops
from lrfc.ir.attention import without_attention
from lrfc.ir.attention_call import refusal
from lrfc.ir.batch import Batch
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.whole_attention import with_attention
from lrfc.passes.canonicalise import AttentionLayers, Canonicalise
from lrfc.protocols import Artifact
from lrfc.state import Progress, State
from lrfc.targets.catalog import target
from tests import helpers

EXACT = 1e-5


def macs(graph: Graph) -> int:
    return sum(ops.macs(op, graph.input_tensors(op.name), graph.tensors(op.name)) for op in graph)


def whole(graph: Graph) -> list[str]:
    """The attention layers of a graph."""
    return [op.name for op in graph if op.info.family == "attention"]


def lowered(model: Any, inputs: Batch) -> Graph:
    """The graph without attention layers, with the outputs, MACs and parameters of the model."""
    import keras

    graph = helpers.graph_of(model)
    result, _ = without_attention(graph)
    result.check()
    assert whole(graph)
    assert not whole(result)
    packed = list(inputs) if len(inputs) > 1 else inputs[0]
    expected = tuple(np.asarray(y) for y in keras.tree.flatten(model(packed)))
    assert helpers.difference(expected, keras_io.predict(graph, inputs)) <= EXACT
    assert helpers.difference(expected, keras_io.predict(result, inputs)) <= EXACT
    assert macs(result) == macs(graph)
    assert result.params == graph.params
    return result


def values(*shapes: tuple[int, ...], seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(3, *shape)).astype(np.float32) for shape in shapes)


def masks(*shapes: tuple[int, ...], seed: int = 1) -> Batch:
    """Random masks; the first sample's hides everything from the first position, or everything."""
    rng = np.random.default_rng(seed)
    found = [rng.random((3, *shape)) > 0.4 for shape in shapes]
    for mask, shape in zip(found, shapes, strict=True):
        mask[(0,) * len(shape)] = False
    return tuple(found)


@st.composite
def layer(draw: Any) -> tuple[dict[str, Any], bool, bool]:
    """Options of a MultiHeadAttention, whether it is causal, and whether it returns its weights."""
    options = {
        "num_heads": draw(st.integers(1, 4)),
        "key_dim": draw(st.integers(1, 5)),
        "value_dim": draw(st.none() | st.integers(1, 5)),
        "use_bias": draw(st.booleans()),
        "use_gate": draw(st.booleans()),
        "dropout": draw(st.sampled_from((0.0, 0.2))),
        "output_shape": draw(st.none() | st.integers(1, 6)),
        "sliding_window": draw(st.none() | st.integers(1, 4)),
    }
    return options, draw(st.booleans()), draw(st.booleans())


@settings(max_examples=12, deadline=None)
@given(layer(), st.integers(1, 6), st.integers(2, 6), st.booleans())
def test_any_attention_computes_the_same(drawn, queries, steps, masked) -> None:
    import keras

    options, causal, scores = drawn
    query, value = keras.Input((queries, 6)), keras.Input((steps, 4))
    mask = keras.Input((queries, steps), dtype="bool")
    outputs = keras.layers.MultiHeadAttention(**options)(
        query,
        value,
        attention_mask=mask if masked else None,
        use_causal_mask=causal,
        return_attention_scores=scores,
    )
    inputs = [query, value, mask] if masked else [query, value]
    model = helpers.random_weights(keras.Model(inputs, outputs))
    arrays = values((queries, 6), (steps, 4)) + (masks((queries, steps)) if masked else ())
    lowered(model, arrays)


@pytest.mark.parametrize("options", [{}, {"use_gate": True, "dropout": 0.1}, {"use_bias": False}])
def test_heads_that_share_keys_and_values(options) -> None:
    import keras

    query, value = keras.Input((5, 6)), keras.Input((7, 6))
    mask = keras.Input((7,), dtype="bool")
    attention = keras.layers.GroupQueryAttention(3, 4, 2, name="attention", **options)
    model = keras.Model([query, value, mask], attention(query, value, value_mask=mask))
    graph = lowered(helpers.random_weights(model), values((5, 6), (7, 6)) + masks((7,)))
    assert helpers.graph_of(model).op("attention").kind == "GroupQueryAttention"
    assert graph.op("attention__key")["units"] == 6
    assert graph.op("attention__query")["units"] == 12


def test_a_mask_of_the_query_that_keras_does_not_read() -> None:
    import keras

    query, mask = keras.Input((5, 6)), keras.Input((5,), dtype="bool")
    outputs = keras.layers.MultiHeadAttention(2, 3)(query, query, query_mask=mask)
    model = helpers.random_weights(keras.Model([query, mask], outputs))
    lowered(model, values((5, 6)) + masks((5,)))


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (1, 2, 5, 7)])
def test_masks_that_are_constants(shape) -> None:
    import keras

    query, value = keras.Input((5, 6)), keras.Input((7, 6))
    mask = np.random.default_rng(0).random(shape) > 0.4
    outputs = keras.layers.MultiHeadAttention(2, 3)(query, value, attention_mask=mask)
    model = helpers.random_weights(keras.Model([query, value], outputs))
    lowered(model, values((5, 6), (7, 6)))


def test_the_calls_of_a_shared_layer_share_their_projections() -> None:
    import keras

    one, two = keras.Input((5, 6), name="one"), keras.Input((7, 6), name="two")
    attention = keras.layers.MultiHeadAttention(2, 3, name="attention")
    model = keras.Model([one, two], [attention(one, one), attention(two, one)])
    before = helpers.graph_of(helpers.random_weights(model))
    graph = lowered(model, values((5, 6), (7, 6)))
    calls = graph.calls(graph.op("attention__query"))
    assert len(calls) == 2
    assert calls[0].weights["kernel"] is calls[1].weights["kernel"]
    assert graph.outputs == before.outputs


def test_lengths_that_are_not_fixed() -> None:
    import keras

    inputs = keras.Input((None, 6))
    outputs = keras.layers.MultiHeadAttention(2, 3)(inputs, inputs)
    graph = helpers.graph_of(helpers.random_weights(keras.Model(inputs, outputs)))
    (result, _), arrays = without_attention(graph), values((5, 6))
    result.check()
    assert not whole(result)
    predicted = [keras_io.predict(each, arrays) for each in (graph, result)]
    assert helpers.difference(*predicted) <= EXACT


# -- what stays ------------------------------------------------------------------------------------


def _axes() -> Any:
    import keras

    image = keras.Input((3, 4, 6))
    return keras.Model(image, keras.layers.MultiHeadAttention(2, 3, name="attention")(image, image))


def _trained() -> Any:
    import keras

    x = keras.Input((4, 6))
    attention = keras.layers.MultiHeadAttention(2, 3, dropout=0.1, name="attention")
    return keras.Model(x, attention(x, x, training=True))


def _open() -> Any:
    import keras

    x = keras.Input((None, 6))
    attention = keras.layers.MultiHeadAttention(2, 3, name="attention")
    return keras.Model(x, attention(x, x, use_causal_mask=True))


def _several_axes() -> Any:
    import keras

    x = keras.Input((4, 6))
    attention = keras.layers.MultiHeadAttention(2, 3, output_shape=(2, 5), name="attention")
    return keras.Model(x, attention(x, x))


def _masked() -> Any:
    """A mask reaches the layer with its inputs."""
    import keras
    from keras import layers

    tokens = keras.Input((6,), dtype="int32")
    x = layers.LayerNormalization()(layers.Embedding(9, 8, mask_zero=True)(tokens))
    return keras.Model(tokens, layers.MultiHeadAttention(2, 3, name="attention")(x, x))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (_axes, "it attends along several axes"),
        (_trained, "it was called with training=True"),
        (_open, "its mask depends on a number of steps that is not fixed"),
        (_several_axes, "its output has several axes"),
        (_masked, "Keras may hand it a mask with its inputs, which its call does not name"),
    ],
)
def test_what_cannot_be_replaced_stays_and_says_why(model, reason) -> None:
    graph = helpers.graph_of(helpers.random_weights(model()))
    assert refusal(graph, graph.op("attention")) == reason
    lines: list[str] = []
    empty = Split((np.zeros((0, 1), np.float32),))
    data = Data("none", empty, empty, empty)
    state = Canonicalise()(State(graph, graph, data, progress=Progress(log=lines.append)))
    assert whole(state.graph) == ["attention"]
    assert lines == [f"  attention stays whole: {reason}"]


# -- the projections as fully connected layers -----------------------------------------------------


def transformer(width: int = 12, blocks: int = 2) -> Any:
    """Blocks of a transformer on 6 steps, every other one causal, and a classifier."""
    import keras
    from keras import layers

    x = inputs = keras.Input((6, width), name="steps")
    for n in range(blocks):
        y = layers.LayerNormalization(name=f"norm{n}")(x)
        y = layers.MultiHeadAttention(2, width // 3, dropout=0.1, name=f"attention{n}")(
            y, y, use_causal_mask=n % 2 == 1
        )
        x = layers.Add(name=f"added{n}")([x, y])
        y = layers.Dense(2 * width, activation="gelu", name=f"wide{n}")(x)
        x = layers.Add(name=f"mixed{n}")([x, layers.Dense(width, name=f"narrow{n}")(y)])
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return helpers.random_weights(keras.Model(inputs, layers.Dense(3, name="head")(x)))


@pytest.mark.parametrize("part", ["query", "key", "value", "output"])
def test_a_projection_of_full_rank_is_the_layer(part) -> None:
    graph, _ = without_attention(helpers.graph_of(transformer()))
    op = graph.op("attention0" if part == "output" else f"attention0__{part}")
    source = graph.input_tensors(op.name)[0]
    method = METHODS["svd"]
    stages = method.decompose(op, source).stages(method.full(op, source))
    factored = graph.copy()
    factored.splice(op.name, stages)
    inputs = helpers.random_inputs(graph, 5)
    both = [keras_io.predict(each, inputs) for each in (graph, factored)]
    assert helpers.difference(*both) <= EXACT


@pytest.mark.parametrize(
    ("name", "precision"), [("tflite", "fp32"), ("tflite", "int8"), ("onnx", "fp32")]
)
def test_the_file_computes_what_the_network_computes(name, precision, tmp_path) -> None:
    graph = Canonicalise()(_state(helpers.graph_of(transformer()))).graph
    assert not whole(graph)
    inputs = helpers.random_inputs(graph, 20)
    to = target(name, precision)
    file = to.emit(graph, tmp_path / f"m{to.suffix}", inputs)
    found = parity(file, to.load(file), inputs, keras_io.predict(graph, inputs))
    assert found.samples == 20


def test_a_transformer_is_built(tmp_path) -> None:
    import keras

    model, samples = transformer(48, blocks=1), values((6, 48))[0]
    model.save(tmp_path / "m.keras")
    x = np.concatenate([samples + 0.1 * n for n in range(40)])
    result = lrfc.build(
        tmp_path / "m.keras",
        data={"x": x},
        max_macs="70%",
        objective="macs",
        methods=("svd",),
        epochs=0,
        out=tmp_path / "out",
    )
    assert result.manifest.after.macs <= 0.7 * result.manifest.before.macs
    methods = {layer.name: layer.method for layer in result.manifest.layers}
    assert any(method == "svd" for name, method in methods.items() if "attention" in name)
    file = Artifact(result.artifact, "tflite", "fp32")
    shipped = keras.models.load_model(tmp_path / "out" / "model.keras")
    parity(file, target("tflite", "fp32").load(file), (samples,), (np.asarray(shipped(samples)),))


# -- put back --------------------------------------------------------------------------------------


def _gated() -> Any:
    import keras

    one, two = keras.Input((5, 6)), keras.Input((7, 6))
    attention = keras.layers.MultiHeadAttention(2, 3, value_dim=4, use_bias=False, name="attention")
    return keras.Model([one, two], attention(value=two, query=one, use_causal_mask=True))


def _grouped() -> Any:
    import keras

    x = keras.Input((5, 6))
    attention = keras.layers.GroupQueryAttention(3, 4, 2, dropout=0.1, name="attention0")
    return keras.Model(x, attention(x, x))


@pytest.mark.parametrize("model", [transformer, _gated, _grouped])
def test_layers_whose_projections_stayed_are_put_back(model) -> None:
    graph = helpers.graph_of(helpers.random_weights(model()))
    state = Canonicalise()(_state(graph))
    changed = {
        op.name: {name: 1.5 * array for name, array in op.weights.items()}
        for op in state.graph
        if op.kind == "Dense"
    }
    trained = state.graph.with_weights(changed)
    back = with_attention(trained, state.fact(AttentionLayers).groups)
    back.check()
    assert whole(back) == whole(graph)
    assert [back.op(name).attrs for name in whole(back)] == [
        graph.op(n).attrs for n in whole(graph)
    ]
    helpers.same(trained, back)


def test_a_layer_with_a_factorized_projection_stays_replaced() -> None:
    state = Canonicalise()(_state(helpers.graph_of(transformer())))
    op = state.graph.op("attention0__key")
    source, plan = state.graph.input_tensors(op.name)[0], state.graph.copy()
    plan.splice(op.name, METHODS["svd"].decompose(op, source).stages((2,)))
    back = with_attention(plan, state.fact(AttentionLayers).groups)
    back.check()
    assert whole(back) == ["attention1"]
    helpers.same(plan, back)


def _normalised() -> Any:
    """A normalisation that adds a bias to projections which had none."""
    import keras
    from keras import layers

    x = keras.Input((5, 6))
    y = layers.Rescaling(0.5, offset=0.25)(x)
    return keras.Model(x, layers.MultiHeadAttention(2, 3, use_bias=False, name="attention")(y, y))


def _taken() -> Any:
    """A layer that has the name of a projection."""
    import keras
    from keras import layers

    x = keras.Input((5, 6))
    y = layers.Dense(6, name="attention__key")(x)
    return keras.Model(x, layers.MultiHeadAttention(2, 3, name="attention")(y, y))


@pytest.mark.parametrize("model", [_normalised, _taken])
def test_parts_that_are_not_those_of_the_layer_stay(model) -> None:
    graph = helpers.graph_of(helpers.random_weights(model()))
    state = Canonicalise()(_state(graph))
    helpers.same(graph, state.graph)
    back = with_attention(state.graph, state.fact(AttentionLayers).groups)
    assert not whole(back)
    helpers.same(graph, back)


@pytest.mark.parametrize("scores", [False, True])
def test_what_cannot_be_put_back_stays_replaced(scores) -> None:
    """A mask that is a tensor, and scores that are an output."""
    import keras

    x, mask = keras.Input((5, 6)), keras.Input((5, 5), dtype="bool")
    attention = keras.layers.MultiHeadAttention(2, 3, name="attention")
    options = {"return_attention_scores": True} if scores else {"attention_mask": mask}
    model = keras.Model([x, mask], attention(x, x, **options))
    state = Canonicalise()(_state(helpers.graph_of(helpers.random_weights(model))))
    assert not whole(with_attention(state.graph, state.fact(AttentionLayers).groups))


def _state(graph: Graph) -> State:
    empty = Split((np.zeros((0, 6, 12), np.float32),))
    return State(graph, graph, Data("none", empty, empty, empty))
