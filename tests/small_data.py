"""Helpers: graphs and samples for the loading of data, and its errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lrfc.data.dataset import Data
from lrfc.data.load import load_data
from lrfc.errors import UsageError
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op

RNG = np.random.default_rng(0)


def graph(*shape: int, classes: int = 3, extra: tuple[int, ...] = (), flat: bool = True) -> Graph:
    """Return Input → Flatten → Dense, one for each output: load_data uses shapes only."""
    g = Graph("small")
    x = g.add(Op("image", "InputLayer", {"batch_shape": (None, *shape)}))
    if flat and len(shape) > 1:
        x = g.add(Op("flat", "Reshape", {"target_shape": (int(np.prod(shape)),)}), (x,))
    width = g.tensor(x).shape[-1] or 0
    for name, units in (
        ("head", classes),
        *((f"extra{i}", units) for i, units in enumerate(extra)),
    ):
        g.outputs += (
            g.add(
                Op(
                    name,
                    "Dense",
                    {"units": units},
                    {"kernel": np.zeros((width, units)), "bias": np.zeros(units)},
                ),
                (x,),
            ),
        )
    return g


def vectors(
    n: int = 80, features: int = 5, classes: int = 3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, features)).astype(np.float32), np.arange(n) % classes


def load(given: Any, g: Graph, **options: Any) -> Data:
    return load_data(given, g, **{"seed": 0, **options})


def said(given: Any, g: Graph, **options: Any) -> str:
    """Return the error message, which is one line."""
    with pytest.raises(UsageError) as caught:
        load(given, g, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
