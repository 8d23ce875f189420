"""Bound on the weights that Keras allocates while it loads a file.

A configuration of a few bytes may ask for a layer of terabytes, and Keras allocates the weights of
every layer before it reads the first from the file.
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
    """The layers of a file have more weights than allowed."""


@contextmanager
def weights_bounded(layer: Any, elements: int) -> Iterator[None]:
    """Raise TooManyWeights when this thread builds layers with more than ``elements`` weights.

    ``layer``: the class Layer, of keras or of tf_keras. Other threads are not counted.
    """
    with _lock:
        original = layer.add_weight
        layer.add_weight = _counting(original, elements)
        try:
            yield
        finally:
            layer.add_weight = original


def _counting(original: Callable[..., Any], elements: int) -> Callable[..., Any]:
    signature, own, left = inspect.signature(original), threading.get_ident(), elements

    @functools.wraps(original)
    def add_weight(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        if threading.get_ident() == own:
            left -= _size(signature.bind_partial(*args, **kwargs).arguments.get("shape"))
            if left < 0:
                raise TooManyWeights
        return original(*args, **kwargs)

    return add_weight


def _size(shape: Any) -> int:
    """The number of elements of a shape; 1 for an invalid shape, which Keras refuses."""
    try:
        return math.prod(int(length) for length in shape)
    except (TypeError, ValueError, OverflowError):
        return 1
