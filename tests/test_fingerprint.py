"""Fingerprints: equal for equal inputs, and different for every change that matters."""

from __future__ import annotations

import hashlib

import numpy as np

from lrfc.ir.fingerprint import digest, model_digest
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref
from tests import helpers


def changed(graph: Graph, op: Op) -> Graph:
    other = graph.copy()
    other.replace(op)
    return other


def test_equal_graphs_have_equal_digests() -> None:
    graph, again = (helpers.graph_of(helpers.conv_net()) for _ in range(2))
    again.name = "another"
    assert digest(graph) == digest(again) == digest(graph.copy())


def test_every_part_of_a_graph_counts() -> None:
    graph = helpers.graph_of(helpers.conv_net())
    conv = graph.op("conv0")
    kernel = np.array(conv.weights["kernel"])
    kernel[0, 0, 0, 0] += 1e-3
    graphs = [
        graph,
        changed(graph, conv.with_attrs(trainable=False)),
        graph.with_weights({"conv0": {**conv.weights, "kernel": kernel}}),
        graph.with_outputs([Ref("conv0")]),
    ]
    assert len({digest(each) for each in graphs}) == len(graphs)


def test_arrays_count_with_shape_and_dtype() -> None:
    zeros = np.zeros(4, np.float32)
    values = [zeros, zeros.reshape(2, 2), zeros.astype(np.int32), zeros + 1]
    assert len({digest(value) for value in values}) == len(values)
    assert digest(np.arange(6).reshape(2, 3).T) == digest(np.arange(6).reshape(2, 3).T.copy())


def test_parts_do_not_run_into_each_other() -> None:
    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest(("ab", "c"))}) == 4


def test_the_digest_in_manifests_is_that_of_earlier_versions() -> None:
    graph = Graph("net")
    graph.add(Op("x", "InputLayer", {"batch_shape": (None, 2)}))
    kernel = np.arange(4, dtype=np.float32).reshape(2, 2)
    attrs = {"units": 2, "use_bias": False}
    graph.outputs = (graph.add(Op("dense", "Dense", attrs, {"kernel": kernel}), [Ref("x")]),)
    text = (
        "graph net\n  x = InputLayer() -> (?, 2)\n"
        "  dense = Dense(x) units=2 use_bias=False -> (?, 2)\n  return dense"
    )
    assert model_digest(graph) == hashlib.sha256(text.encode() + kernel.tobytes()).hexdigest()
