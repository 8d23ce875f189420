"""Outputs that are computed once for the same graph and arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras import outputs as module
from tests import helpers


@pytest.mark.parametrize("largest", [module.LARGEST, 0])
def test_a_graph_runs_once_on_the_same_arrays_unless_they_are_large(
    largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Graph] = []

    def predict(graph: Graph, batch: Any) -> Any:
        ran.append(graph)
        return keras_io.predict(graph, batch)

    monkeypatch.setattr(module, "predict", predict)
    monkeypatch.setattr(module, "LARGEST", largest)
    graph = helpers.graph_of(helpers.residual())
    batch = helpers.random_inputs(graph, 8)
    for inputs in (batch, batch, tuple(x.copy() for x in batch)):
        expected = keras_io.predict(graph, inputs)
        for one, other in zip(keras_io.outputs(graph, inputs), expected, strict=True):
            assert np.allclose(one, other, atol=1e-5)
    assert len(ran) == (2 if largest else 3)


def test_the_first_outputs_are_computed_once_for_the_most_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[int] = []

    def predict(graph: Graph, batch: Any) -> Any:
        ran.append(len(batch[0]))
        return keras_io.predict(graph, batch)

    monkeypatch.setattr(module, "predict", predict)
    graph = helpers.graph_of(helpers.residual())
    batch = helpers.random_inputs(graph, 8)
    (expected,) = keras_io.predict(graph, batch)
    for count in (4, 2, 6, 6, 100, 8):
        (found,) = keras_io.first_outputs(graph, batch, count)
        assert np.allclose(found, expected[:count], atol=1e-5)
    assert ran == [4, 6, 8]
