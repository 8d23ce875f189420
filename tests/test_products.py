"""Products of ``keras.ops`` with a constant as layers: the same outputs, and candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from lrfc.api import explore
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import load as keras_load
from lrfc.ir.products import without_products
from lrfc.passes.canonicalise import Canonicalise
from lrfc.search.facts import DesignSpace
from lrfc.state import Progress
from tests.compression import explored, state_of
from tests.helpers import difference, graph_of, random_inputs


def array(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def made(function: Callable[[Any], Any], *shape: int) -> Graph:
    image = keras.Input(shape, name="image")
    return graph_of(keras.Model(image, ops.relu(function(image))))


PRODUCTS: dict[str, tuple[Callable[[Any], Any], tuple[int, ...], str]] = {
    "matmul": (lambda x: ops.matmul(x, array(6, 8)), (5, 6), "Dense"),
    "operator": (lambda x: x @ array(6, 8), (6,), "Dense"),
    "dot": (lambda x: ops.dot(x, array(6, 8)), (4, 5, 6), "Dense"),
    "tensordot": (lambda x: ops.tensordot(x, array(6, 8), axes=1), (5, 6), "Dense"),
    "bias": (lambda x: ops.add(ops.matmul(x, array(6, 8)), array(8)), (5, 6), "Dense"),
    "row": (lambda x: ops.add(array(1, 8), ops.matmul(x, array(6, 8))), (5, 6), "Dense"),
    "heads": (lambda x: ops.einsum("bsc,cnh->bsnh", x, array(6, 2, 4)), (5, 6), "EinsumDense"),
    "first": (lambda x: ops.einsum("cd,bsc->bsd", array(6, 8), x), (5, 6), "EinsumDense"),
    "conv 1": (lambda x: ops.conv(x, array(3, 6, 4)), (9, 6), "Conv1D"),
    "conv 2": (
        lambda x: ops.add(ops.conv(x, array(3, 3, 6, 8), strides=2, padding="same"), array(8)),
        (9, 9, 6),
        "Conv2D",
    ),
    "conv 3": (lambda x: ops.conv(x, array(2, 2, 2, 3, 4)), (4, 4, 4, 3), "Conv3D"),
    "depthwise": (
        lambda x: ops.depthwise_conv(x, array(3, 3, 6, 2), padding="same"),
        (8, 8, 6),
        "DepthwiseConv2D",
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_becomes_a_layer(name: str) -> None:
    function, shape, kind = PRODUCTS[name]
    graph = made(function, *shape)
    lowered, stays = without_products(graph)
    lowered.check()
    assert not stays
    assert [op.kind for op in lowered] == ["InputLayer", kind, "ops.Relu"]
    batch = random_inputs(graph, 3, 0)
    assert difference(keras_io.predict(graph, batch), keras_io.predict(lowered, batch)) < 1e-5


@pytest.mark.parametrize(
    ("function", "shape", "why"),
    [
        (lambda x: ops.matmul(array(4, 5), x), (5, 6), "the first factor"),
        (lambda x: ops.matmul(x, array(6)), (5, 6), "no matrix"),
        (lambda x: ops.matmul(x, np.nan * array(6, 2)), (5, 6), "NaN"),
        (lambda x: ops.einsum("...c,cd->...d", x, array(6, 8)), (5, 6), "not all named"),
        (lambda x: ops.einsum("bsc,cdx->bsd", x, array(6, 8, 2)), (5, 6), "no other place"),
    ],
)
def test_what_stays_has_its_reason(function: Any, shape: tuple[int, ...], why: str) -> None:
    graph = made(function, *shape)
    lowered, stays = without_products(graph)
    assert [op.kind for op in lowered] == [op.kind for op in graph]
    (reason,) = stays.values()
    assert why in reason
    lines: list[str] = []
    Canonicalise()(replace(state_of(graph), progress=Progress(log=lines.append)))
    assert any(line.endswith(reason) for line in lines)


@pytest.mark.parametrize("constant", [np.array(2.0, np.float32), array(5, 1), array(1, 1, 1, 1)])
def test_what_is_added_stays_unless_it_is_a_vector(constant: np.ndarray[Any, Any]) -> None:
    graph = made(lambda x: ops.add(ops.matmul(x, array(6, 1)), constant), 5, 6)
    lowered, _ = without_products(graph)
    assert [op.kind for op in lowered] == ["InputLayer", "Dense", "ops.Add", "ops.Relu"]
    batch = random_inputs(graph, 3, 0)
    assert difference(keras_io.predict(graph, batch), keras_io.predict(lowered, batch)) < 1e-5


def test_an_output_keeps_its_name() -> None:
    image = keras.Input((5, 6), name="image")
    total = ops.add(ops.matmul(image, array(6, 8)), array(8))
    graph = graph_of(keras.Model(image, total))
    assert without_products(graph)[0].outputs == graph.outputs


def test_products_of_two_tensors_and_of_integers_are_left_alone() -> None:
    image = keras.Input((5, 6), name="image")
    number = keras.Input((5, 6), dtype="int32", name="number")
    products = [ops.matmul(image, ops.transpose(image, (0, 2, 1)))]
    products.append(ops.matmul(number, np.ones((6, 2), np.int32)))
    graph = graph_of(keras.Model([image, number], products))
    lowered, stays = without_products(graph)
    assert not stays
    assert [op.kind for op in lowered] == [op.kind for op in graph]


def test_a_saved_model_of_products_is_explored(tmp_path: Any) -> None:
    image = keras.Input((12, 24), name="image")
    x = ops.relu(ops.add(ops.matmul(image, array(24, 32)), array(32)))
    x = keras.layers.GlobalAveragePooling1D()(ops.matmul(x, array(32, 32)))
    path = tmp_path / "model.keras"
    keras.Model(image, keras.layers.Dense(4, name="classes")(x)).save(path)
    state = state_of(keras_io.from_keras(keras_load.load(path)))
    canonical = Canonicalise()(state).graph
    spaces = explored(state_of(canonical)).fact(DesignSpace).spaces
    assert {space.op.kind for space in spaces} == {"Dense"}
    assert sum(bool(space.candidates[1:]) for space in spaces) >= 2


def test_a_model_of_products_alone_is_explored(tmp_path: Any) -> None:
    image = keras.Input((12, 24), name="image")
    x = ops.relu(ops.matmul(image, array(24, 32)))
    model = keras.Model(image, ops.mean(ops.matmul(x, array(32, 8)), axis=1))
    spaces = explore(model, out=tmp_path / "out").design.spaces
    assert [space.op.kind for space in spaces] == ["Dense", "Dense"]
    assert all("svd" in {c.method for c in space.candidates} for space in spaces)
