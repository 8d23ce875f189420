"""Each method on each kind of layer that it takes passes through TFLite and ONNX."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lrfc.factorization import METHODS
from lrfc.factorization.support import EXAMPLES
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Op, Ref
from lrfc.targets.catalog import target


def examples() -> Graph:
    """A graph with an input per kind, and outputs by kind and method at a quarter of the ranks."""
    rng = np.random.default_rng(0)
    graph = Graph("all")
    outputs = []
    for number, (kind, (op, source)) in enumerate(EXAMPLES.items()):
        names = [name for name, method in METHODS.items() if method.refuses(op, source) is None]
        if not names:
            continue
        read = graph.add(Op(f"in{number}", "InputLayer", {"batch_shape": source.shape}))
        kernel = op.weights["kernel"]
        weights = {
            "kernel": (
                (rng.standard_normal(kernel.shape) / np.sqrt(kernel.shape[-2])).astype(np.float32)
            )
        }
        attrs = dict(op.attrs)
        if kind == "EinsumDense":
            attrs["bias_axes"], weights["bias"] = (
                "de",
                rng.standard_normal(kernel.shape[1:]).astype(np.float32),
            )
        else:
            length = (
                kernel.shape[-2] * kernel.shape[-1]
                if kind.startswith("Depthwise")
                else kernel.shape[-2 if kind.endswith("Transpose") else -1]
            )
            attrs["use_bias"], weights["bias"] = (
                True,
                rng.standard_normal(length).astype(np.float32),
            )
        for name in names:
            layer = replace(
                op,
                name=f"layer{number}_{name}",
                attrs={**attrs, "activation": "relu"},
                weights=weights,
            )
            ranks = tuple(max(1, rank // 4) for rank in METHODS[name].full(layer, source))
            last: Ref = read
            for stage in METHODS[name].decompose(layer, source).stages(ranks):
                last = graph.add(stage, (last,))
            outputs.append(last)
    graph.outputs = tuple(outputs)
    graph.check()
    return graph


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tflite", "onnx"])
def test_every_method_on_every_kind_is_emitted_and_agrees(kind, tmp_path):
    graph = examples()
    assert len(graph.outputs) > 50
    rng = np.random.default_rng(1)
    batch = tuple(
        rng.standard_normal(
            (2, *(n for n in graph.tensors(name)[0].shape[1:] if n is not None))
        ).astype(np.float32)
        for name in graph.inputs
    )
    emitter = target(kind)
    assert not emitter.refusals(graph)
    runner = emitter.load(emitter.emit(graph, tmp_path / f"all.{kind}"))
    for ref, found, wanted in zip(
        graph.outputs, runner(batch), keras_io.predict(graph, batch), strict=True
    ):
        assert np.abs(found - wanted).max() <= 1e-4 * max(1.0, float(np.abs(wanted).max())), ref
