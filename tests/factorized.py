"""Random layers of every kind, and the checks of the factorization tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from lrfc.factorization import METHODS, Cost, Ranks, Statistics
from lrfc.factorization.layout import Layout
from lrfc.ir import ops
from lrfc.ir.channels_last import channels_last
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Op, Tensor

#: Builds the graph of a drawn layer. Strategies draw this, because building one may ask Keras,
#: which draws random numbers of its own.
Build = Callable[[], Graph]


def layer(
    kind: str,
    source: tuple[int, ...],
    kernel: tuple[int, ...],
    *,
    bias: int | tuple[int, ...] | None = None,
    seed: int = 0,
    **attrs: Any,
) -> Graph:
    """A graph of one layer, named 'layer', with normal weights."""
    rng = np.random.default_rng(seed)
    weights = {
        "kernel": (rng.standard_normal(kernel) / np.sqrt(prod(kernel[:-1]))).astype(np.float32)
    }
    if bias is not None:
        weights["bias"] = rng.standard_normal(bias).astype(np.float32)
    if kind != "EinsumDense":
        attrs["use_bias"] = bias is not None
    graph = Graph("one")
    graph.outputs = (
        graph.add(
            Op("layer", kind, attrs, weights),
            (graph.add(Op("x", "InputLayer", {"batch_shape": (None, *source)})),),
        ),
    )
    return graph


def parts(graph: Graph) -> tuple[Op, Tensor]:
    """The layer and its input."""
    return graph.op("layer"), graph.input_tensors("layer")[0]


def conv(
    kernel: tuple[int, ...],
    inputs: int,
    outputs: int,
    lengths: tuple[int, ...] = (),
    *,
    groups: int = 1,
    **attrs: Any,
) -> Graph:
    """A Conv1D, Conv2D or Conv3D with 'same' padding."""
    attrs = {
        "filters": outputs,
        "kernel_size": kernel,
        "padding": "same",
        "groups": groups,
        "bias": outputs,
    } | attrs
    return layer(
        f"Conv{len(kernel)}D",
        (*(lengths or (7,) * len(kernel)), inputs),
        (*kernel, inputs // groups, outputs),
        **attrs,
    )


def dense(inputs: int, outputs: int, leading: tuple[int, ...] = (), **attrs: Any) -> Graph:
    """A Dense layer on a vector or on more axes."""
    return layer(
        "Dense",
        (*leading, inputs),
        (inputs, outputs),
        **({"units": outputs, "bias": outputs} | attrs),
    )


@st.composite
def convolutions(draw: st.DrawFn) -> Build:
    """A convolution of any kind and rank that Keras runs.

    Kernel, stride, dilation, padding, groups, bias and activation are random.
    """
    family = draw(st.sampled_from(["Conv", "Conv", "Transpose", "Depthwise"]))
    rank = draw(st.sampled_from([1, 2] if family == "Depthwise" else [1, 2, 2, 3]))
    kernel = tuple(draw(st.integers(1, 4 if rank < 3 else 3)) for _ in range(rank))
    groups = draw(st.sampled_from([1, 1, 2])) if family == "Conv" else 1
    inputs, outputs = groups * draw(st.integers(1, 5)), groups * draw(st.integers(1, 5))
    window = draw(st.sampled_from(["plain", "strided", "dilated"]))
    sizes = st.integers(1, 3)
    strides, dilation = (1,) * rank, (1,) * rank
    if window == "strided":
        strides = tuple(draw(sizes) for _ in range(rank))
    if window == "dilated" and family != "Transpose":
        dilation = tuple(draw(sizes) for _ in range(rank))
    if family == "Depthwise":
        strides = strides[:1] * rank
    padding = draw(
        st.sampled_from(
            ["same", "valid", "causal"] if family == "Conv" and rank == 1 else ["same", "valid"]
        )
    )
    lengths = tuple(
        draw(st.integers(d * (k - 1) + 1, d * (k - 1) + 5))
        for k, d in zip(kernel, dilation, strict=True)
    )
    # TensorFlow's channels_first convolutions on a CPU give wrong numbers for some dilated kernels
    # on maps of length or depth 1.
    first = (
        family != "Transpose"
        and rank < 3
        and groups == 1
        and min(inputs, *lengths) > 1
        and draw(st.integers(0, 3)) == 0
    )
    attrs = {
        "kernel_size": kernel,
        "strides": strides,
        "dilation_rate": dilation,
        "padding": padding,
        "activation": draw(st.sampled_from([None, "relu", "tanh"])),
    }
    if first:
        attrs["data_format"] = "channels_first"
    source = (inputs, *lengths) if first else (*lengths, inputs)
    bias, seed = draw(st.booleans()), draw(st.integers(0, 99))
    if family == "Transpose":
        # With an even kernel and 'same' padding TensorFlow itself runs no transposed convolution
        # without an output padding.
        least = [int(padding == "same" and length % 2 == 0) for length in kernel]
        if all(low < stride for low, stride in zip(least, strides, strict=True)) and draw(
            st.booleans()
        ):
            attrs["output_padding"] = tuple(
                draw(st.integers(low, stride - 1))
                for low, stride in zip(least, strides, strict=True)
            )
        return partial(
            layer,
            f"Conv{rank}DTranspose",
            source,
            (*kernel, outputs, inputs),
            bias=outputs if bias else None,
            seed=seed,
            filters=outputs,
            **attrs,
        )
    if family == "Depthwise":
        multiplier = draw(st.integers(1, 3))
        bias_length = inputs * multiplier if bias else None
        return partial(
            layer,
            f"DepthwiseConv{rank}D",
            source,
            (*kernel, inputs, multiplier),
            bias=bias_length,
            seed=seed,
            depth_multiplier=multiplier,
            **attrs,
        )
    shape = (*kernel, inputs // groups, outputs)
    return partial(
        layer,
        f"Conv{rank}D",
        source,
        shape,
        bias=outputs if bias else None,
        seed=seed,
        filters=outputs,
        groups=groups,
        **attrs,
    )


@st.composite
def products(draw: st.DrawFn) -> Build:
    """A Dense layer on vectors or sequences, or an EinsumDense that is a matrix product."""
    sizes, seed, bias = (
        st.sampled_from([2, 4, 6, 8, 12, 16]),
        draw(st.integers(0, 99)),
        draw(st.booleans()),
    )
    activation = draw(st.sampled_from([None, "relu", "softmax"]))
    if draw(st.integers(0, 2)):
        leading = draw(st.sampled_from([(), (3,), (2, 3)]))
        inputs, outputs = draw(sizes), draw(sizes)
        return partial(
            dense,
            inputs,
            outputs,
            leading,
            activation=activation,
            bias=outputs if bias else None,
            seed=seed,
        )
    equation, shape, kernel, target, axes = draw(st.sampled_from([
        ("ab,bc->ac", (6,), (6, 5), (5,), "c"),
        ("ab,cb->ac", (6,), (5, 6), (5,), "c"),
        ("abc,cd->abd", (4, 6), (6, 5), (4, 5), "d"),
        ("abc,cde->abde", (4, 6), (6, 2, 3), (4, 2, 3), "de"),
        ("abde,dec->abc", (4, 2, 3), (2, 3, 5), (4, 5), "c"),
        ("abc,bd->adc", (4, 6), (4, 5), (5, 6), "d"),
        ("...x,xy->...y", (4, 6), (6, 5), (5,), "y"),
    ]))  # fmt: skip
    terms = equation.split("->")
    letters = dict(zip(terms[0].split(",")[1], kernel, strict=True))
    shape_of_bias = tuple(letters[axis] for axis in axes) + (1,) * (
        len(terms[1]) - 1 - terms[1].index(axes[-1])
    )
    attrs = {
        "equation": equation,
        "output_shape": target,
        "activation": None if activation == "softmax" else activation,
    }
    if bias:
        attrs["bias_axes"] = axes
    return partial(
        layer,
        "EinsumDense",
        shape,
        kernel,
        bias=shape_of_bias if bias else None,
        seed=seed,
        **attrs,
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """BLAS on one thread.

    On a busy machine the threads of many small products would wait for each other.
    """
    with threadpool_limits(1):
        yield


def statistics(
    layout: Layout, seed: int = 0, *, count: int | None = None, centred: bool = True
) -> Statistics:
    """Statistics of ``count`` correlated patches with a mean.

    With fewer patches than their length the covariance is singular.
    """
    rng = np.random.default_rng(seed)
    length, groups = layout.patch, layout.groups
    rows = patches(layout, 4 * length if count is None else count, rng)
    mean = rows.mean(0) if centred else np.zeros((groups, length))
    moved = rows - mean
    return Statistics(
        np.einsum("ngd,nge->gde", moved, moved) / len(rows), mean if centred else None, len(rows)
    )


def patches(layout: Layout, count: int, rng: np.random.Generator) -> np.ndarray:
    """Correlated patches (N, G, D) of uneven variance, with a mean."""
    length = layout.patch
    mixing = np.random.default_rng(length).standard_normal((length, length)) * np.logspace(
        0, -1, length
    )
    return 0.5 + rng.standard_normal((count, layout.groups, length)) @ mixing.T


def rewritten(
    graph: Graph,
    method: str,
    ranks: Ranks,
    *,
    stats: Statistics | None = None,
    scale: np.ndarray | None = None,
) -> Graph:
    """The graph with its layer factorized, checked."""
    op, source = parts(graph)
    result = graph.copy()
    result.splice(
        "layer", METHODS[method].decompose(op, source, scale=scale, statistics=stats).stages(ranks)
    )
    result.check()
    return result


def counted(graph: Graph) -> Cost:
    """Parameters and MACs of the whole graph."""
    return Cost(
        graph.params,
        sum(ops.macs(op, graph.input_tensors(op.name), graph.tensors(op.name)) for op in graph),
    )


def with_kernel(graph: Graph, kernel: np.ndarray, bias: np.ndarray | None = None) -> Graph:
    """The graph whose layer has another kernel."""
    result = graph.copy()
    op = graph.op("layer")
    weights = {**op.weights, "kernel": kernel} | ({} if bias is None else {"bias": bias})
    result.replace(replace(op, weights=weights))
    return result


def outputs(graph: Graph, samples: int = 2, seed: int = 0) -> np.ndarray:
    """The graph's outputs for normal inputs."""
    shape = graph.tensors("x")[0].shape[1:]
    batch = np.random.default_rng(seed).standard_normal((samples, *shape)).astype(np.float32)
    if any(op.attrs.get("data_format") == "channels_first" for op in graph):
        return np.asarray(
            keras_io.predict(channels_last(graph), (batch,))[0]
        )  # TensorFlow runs it as it is on some processors only
    return np.asarray(keras_io.to_keras(graph)(batch)).copy()


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """‖found - wanted‖ / ‖wanted‖."""
    assert found.shape == wanted.shape
    return float(
        np.linalg.norm(found.astype(np.float64) - wanted)
        / max(float(np.linalg.norm(wanted)), 1e-30)
    )


def last_weighted(graph: Graph) -> Op:
    """The last op that has weights."""
    return [op for op in graph if op.weights][-1]
