"""A bound on the weights that layers make while a file is loaded, by what the file holds.

A configuration of a few bytes may ask for a layer of terabytes. Keras makes the weights of every
layer before it reads one from the file.
"""

from __future__ import annotations

import functools
import inspect
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_lock = threading.RLock()


class TooManyWeights(Exception):  # noqa: N818  a condition of the file, not an error of the reader
    """Layers ask for more weights than allowed."""


@contextmanager
def weights_bounded(layer: Any, elements: int) -> Iterator[None]:
    """Raise TooManyWeights when layers that this thread builds make more weights than ``elements`` in all.

    ``layer``: the class Layer, of keras or of tf_keras. What other threads build is not counted.
    """
    with _lock:
        made = layer.add_weight
        layer.add_weight = _counting(made, elements)
        try:
            yield
        finally:
            layer.add_weight = made


def _counting(made: Callable[..., Any], elements: int) -> Callable[..., Any]:
    signature, own, left = inspect.signature(made), threading.get_ident(), elements

    @functools.wraps(made)
    def add_weight(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        if threading.get_ident() == own:
            left -= _size(signature.bind_partial(*args, **kwargs).arguments.get("shape"))
            if left < 0:
                raise TooManyWeights
        return made(*args, **kwargs)

    return add_weight


def _size(shape: Any) -> int:
    """The number of elements of a shape; 1 for what is none, which Keras refuses."""
    try:
        return math.prod(int(length) for length in shape)
    except (TypeError, ValueError, OverflowError):
        return 1
