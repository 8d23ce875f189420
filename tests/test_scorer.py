"""Scores of the stages of a build, and of the original's own file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lrfc.data.dataset import Data, Split
from lrfc.engine import original_file, scorer
from lrfc.engine.scorer import Scorer, sampled
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.metrics.metric import metric
from lrfc.protocols import Artifact
from lrfc.state import State
from tests import helpers


@pytest.fixture(scope="module")
def graph() -> Graph:
    return helpers.graph_of(helpers.residual())


@pytest.fixture
def test(graph: Graph) -> Split:
    """Samples in the order of their classes, four of five labelled as the original answers."""
    inputs = helpers.random_inputs(graph, 60)
    (outputs,) = keras_io.predict(graph, inputs)
    labels = outputs.argmax(1)
    labels[::5] = (labels[::5] + 1) % 3
    order = np.argsort(labels, kind="stable")
    return Split(tuple(x[order] for x in inputs), (labels[order].astype(np.int32),))


def changed(graph: Graph) -> Graph:
    """The graph with other answers for some samples."""
    last = [op for op in graph.layers() if "kernel" in op.weights][-1]
    noise = np.random.default_rng(0).standard_normal(last.weights["kernel"].shape)
    kernel = last.weights["kernel"] + 0.3 * noise.astype(np.float32)
    return graph.with_weights({last.name: {**last.weights, "kernel": kernel}})


def test_a_stage_is_scored_on_a_sample_against_the_original(
    graph: Graph, test: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    scores = Scorer(metric(None, graph, test), test, graph, lines.append)
    other = changed(graph)
    exact = scores.whole(other)
    assert scores.before == pytest.approx(0.8)
    assert scores.estimated(other) == exact, "few samples are all used"
    monkeypatch.setattr(scorer, "STAGED", 30)
    scores = Scorer(metric(None, graph, test), test, graph, lines.append)
    assert sampled(test) == 30
    assert scores.estimated(graph) == pytest.approx(scores.before)
    assert scores.estimated(other) == pytest.approx(exact, abs=0.2)
    assert lines[-1].endswith("by 30 samples")
    rows = np.linspace(0, 59, 30).astype(int)
    sample = test.take(rows)
    answers = [keras_io.predict(each, sample.inputs)[0].argmax(1) for each in (graph, other)]
    assert sample.targets is not None
    hits = [float(np.mean(answer == sample.targets[0])) for answer in answers]
    assert scores.estimated(other) == pytest.approx(0.8 + hits[1] - hits[0])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_file_of_the_original_runs_once_and_on_all_samples(
    precision: str, graph: Graph, test: Split, tmp_path: Path
) -> None:
    ran: list[int] = []

    def run(inputs: Any) -> Any:
        ran.append(len(inputs[0]))
        return tuple(y + 1 for y in keras_io.predict(graph, inputs))

    file = tmp_path / f"{precision}.tflite"
    file.write_text(file.name)
    given: Any = SimpleNamespace(load=lambda file: run)
    state = State(graph, graph, Data("here", test, test, test))
    for _ in range(2):
        (outputs,) = original_file.outputs(state, given, Artifact(file, "tflite", precision))
        (expected,) = keras_io.predict(graph, test.inputs)
        assert np.allclose(outputs, expected + 1, atol=1e-5), "those of the file"
    assert ran == [len(test)]
