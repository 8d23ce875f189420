"""Fingerprints by which caches, checkpoints and manifests recognise their inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from lrfc.ir.graph import Graph
from lrfc.ir.op import Array


def digest(*parts: object) -> str:
    """The SHA-256 (64 hexadecimal digits) of graphs, arrays and any other values.

    A graph counts with its ops, all their attributes, wiring, outputs and weights, but without its
    name. An array counts with shape, dtype and content; any other value by its ``repr``.
    """
    sha256 = hashlib.sha256()
    for part in parts:
        for piece in _pieces(part):
            sha256.update(len(piece).to_bytes(8, "big"))
            sha256.update(piece)
    return sha256.hexdigest()


def model_digest(graph: Graph) -> str:
    """The SHA-256 of a graph's text and weights, for the manifest of a model without a file.

    ``--locked`` compares it with those of earlier builds: what is hashed must stay as it is.
    """
    sha256 = hashlib.sha256(str(graph).encode())
    for op in graph.layers():
        for weight in op.weights.values():
            sha256.update(weight.tobytes())
    return sha256.hexdigest()


def _pieces(part: object) -> Iterator[bytes]:
    if isinstance(part, Graph):
        yield from _graph(part)
    elif isinstance(part, np.ndarray):
        yield from _array(part)
    else:
        yield b"value"
        yield repr(part).encode()


def _graph(graph: Graph) -> Iterator[bytes]:
    yield b"graph"
    for op in graph:
        origin = None if op.origin is None else (op.origin.__module__, op.origin.__qualname__)
        attrs = sorted(op.attrs.items())
        wiring = graph.operands(op.name), op.call, op.shared
        yield repr((op.name, op.kind, origin, attrs, wiring, list(op.weights))).encode()
    yield repr(graph.outputs).encode()
    for op in graph.layers():
        for weight in op.weights.values():
            yield from _array(weight)


def _array(array: Array) -> Iterator[bytes]:
    yield repr(("array", array.shape, str(array.dtype))).encode()
    yield array.tobytes()
