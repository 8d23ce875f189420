"""Embeddings: their tables factorized into a smaller table and a matrix product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from lrfc.config.build import Budget
from lrfc.costs.totals import totals
from lrfc.factorization import METHODS, Statistics
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.passes.factorize import Factorize
from lrfc.passes.select_ranks import SelectRanks
from lrfc.search.facts import DesignSpace
from lrfc.targets.onnx.target import ONNX
from lrfc.targets.tflite.target import TFLite
from tests import helpers
from tests.compression import explored, state_of

SVD = METHODS["svd"]
STEPS = 6


def model_of(tokens: int, width: int, behind: Any = None, **options: Any) -> keras.Model:
    """An embedding, called 'table', and what ``behind`` makes of its rows."""
    words = keras.Input((STEPS,), name="words", dtype="int32")
    rows = layers.Embedding(tokens, width, name="table", **options)(words)
    outputs = rows if behind is None else behind(rows)
    return helpers.random_weights(keras.Model(words, outputs, name="net"))


def words(tokens: int, count: int = 3, seed: int = 0) -> tuple[np.ndarray[Any, Any]]:
    return (np.random.default_rng(seed).integers(0, tokens, (count, STEPS)).astype(np.int32),)


def factorized(graph: Graph, ranks: tuple[int, ...] | None = None) -> Graph:
    """The graph with the table by factors; by default of full rank."""
    op, source = graph.op("table"), graph.input_tensors("table")[0]
    changed = graph.copy()
    changed.splice("table", SVD.decompose(op, source).stages(ranks or SVD.full(op, source)))
    return changed


@settings(max_examples=10)
@given(tokens=st.integers(1, 12), width=st.integers(1, 9), masked=st.booleans())
def test_factors_of_full_rank_look_up_the_same_rows(tokens: int, width: int, masked: bool) -> None:
    graph = helpers.graph_of(model_of(tokens, width, mask_zero=masked))
    (one,), (two,) = (keras_io.predict(g, words(tokens)) for g in (graph, factorized(graph)))
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_what_is_masked_stays_masked() -> None:
    graph = helpers.graph_of(model_of(9, 8, layers.LSTM(4, name="memory"), mask_zero=True))
    inputs = words(9)
    inputs[0][:, 3:] = 0
    (one,), (two,) = (keras_io.predict(g, inputs) for g in (graph, factorized(graph)))
    np.testing.assert_allclose(one, two, atol=1e-5)
    inputs[0][:, 3:] = 1
    (unmasked,) = keras_io.predict(factorized(graph), inputs)
    assert np.abs(two - unmasked).max() > 1e-3


@pytest.mark.parametrize("rank", [1, 5])
def test_costs_are_those_of_the_rewritten_network(rank: int) -> None:
    graph = helpers.graph_of(model_of(50, 8))
    cost = SVD.cost(graph.op("table"), graph.input_tensors("table")[0], (rank,))
    changed = factorized(graph, (rank,))
    assert (cost.params, cost.macs) == (changed.params, totals(changed)["macs"])
    assert (cost.params, cost.macs) == (50 * rank + rank * 8, STEPS * rank * 8)


def table_of(graph: Graph, statistics: Statistics | None, rank: int) -> np.ndarray[Any, Any]:
    """The rows of the factors for every token."""
    op, source = graph.op("table"), graph.input_tensors("table")[0]
    table, product = SVD.decompose(op, source, statistics=statistics).stages((rank,))
    return table.weights["embeddings"] @ product.weights["kernel"]


def test_the_factors_are_the_best_of_their_rank() -> None:
    """The bound of Eckart and Young; each token counts once, and as often as it is looked up."""
    graph = helpers.graph_of(model_of(40, 8))
    table = np.asarray(graph.op("table").weights["embeddings"], np.float64)
    often = np.random.default_rng(0).integers(0, 40, 3000) ** 2 // 40
    counts = np.bincount(often, minlength=40)[:, None]
    rows = table[often]
    statistics = Statistics((rows.T @ rows / len(rows))[None], None, len(rows))
    for rank in (2, 5):
        for given_, weights in ((None, np.ones((40, 1))), (statistics, 1 + counts)):
            lost = np.sqrt(weights) * (table_of(graph, given_, rank) - table)
            best = np.linalg.svd(np.sqrt(weights) * table, compute_uv=False)[rank:]
            assert np.linalg.norm(lost) == pytest.approx(np.linalg.norm(best), rel=1e-3)


def test_candidates_save_parameters_for_a_product() -> None:
    network = model_of(300, 16, lambda x: layers.Dense(3, name="head")(layers.Flatten()(x)))
    state = explored(state_of(helpers.graph_of(network)), methods=("svd", "tt_matrix"))
    table = next(s for s in state.fact(DesignSpace).spaces if s.op.name == "table")
    assert "use svd" in table.refusals["tt_matrix"]
    whole, *others = table.candidates
    assert whole.macs == 0
    assert others
    assert all(c.params < whole.params and c.macs > 0 < c.divergence for c in others)
    errors = [c.error for c in sorted(others, key=lambda c: c.params)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("target", [TFLite(), ONNX()], ids=["tflite", "onnx"])
def test_files_hold_the_factors(target: Any, tmp_path: Path) -> None:
    graph = helpers.graph_of(model_of(30, 8, layers.GlobalAveragePooling1D(), mask_zero=True))
    graph = factorized(graph, (3,))
    (wanted,) = keras_io.predict(graph, words(30))
    (outputs,) = target.load(target.emit(graph, tmp_path / f"net{target.suffix}"))(words(30))
    np.testing.assert_allclose(outputs, wanted, atol=1e-5)


def test_a_network_within_a_budget_has_a_smaller_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def behind(rows: Any) -> Any:
        rows = layers.Conv1D(24, 3, padding="same", activation="relu", name="conv")(rows)
        return layers.Dense(4, activation="softmax", name="head")(layers.Flatten()(rows))

    model = model_of(500, 32, behind)
    topics = rng.standard_normal((500, 6)) @ rng.standard_normal((6, 32)) / 3
    model.get_layer("table").set_weights([topics + rng.standard_normal((500, 32)) / 50])
    state = explored(state_of(helpers.graph_of(model)), methods=("svd",))
    state = Factorize()(SelectRanks(max_params=Budget(value=0.45, relative=True))(state))
    assert state.graph.params <= 0.45 * state.original.params
    assert state.graph.op("table__in").kind == "Embedding"
    assert state.graph.op("table").kind == "Dense"
    rounded = TFLite("int8").emit(state.graph, tmp_path / "int8.tflite", words(500, 64))
    classes = [
        keras_io.predict(graph, words(500, 64))[0] for graph in (state.original, state.graph)
    ]
    (integers,) = TFLite("int8").load(rounded)(words(500, 64))
    np.testing.assert_allclose(classes[1], classes[0], atol=0.1)
    np.testing.assert_allclose(integers, classes[1], atol=0.1)
