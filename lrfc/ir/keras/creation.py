"""Control over the weights that Keras creates with a layer: how many, and their initial values.

A configuration of a few bytes may ask for a layer of terabytes, and Keras creates the weights of
every layer before it reads the first from the file. Their initial values are drawn at random, in
three arrays of the weight's size at once, and then overwritten.
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
    left = elements

    def count(arguments: dict[str, Any]) -> None:
        nonlocal left
        left -= _size(arguments.get("shape"))
        if left < 0:
            raise TooManyWeights

    with _before_each(layer, count):
        yield


@contextmanager
def without_random_values(keras: Any) -> Iterator[None]:
    """Create the weights of layers that this thread builds as zeros where they would be random.

    For layers whose weights are set afterwards: drawing those of VGG-16 takes two gigabytes.
    """
    drawn = keras.initializers.RandomNormal.__mro__[1]  # Keras does not export RandomInitializer

    def clear(arguments: dict[str, Any]) -> None:
        initializer = arguments.get("initializer")
        if initializer is None or isinstance(keras.initializers.get(initializer), drawn):
            arguments["initializer"] = "zeros"

    with _before_each(keras.Layer, clear):
        yield


@contextmanager
def _before_each(layer: Any, change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Let ``change`` see and change the arguments of ``add_weight`` when this thread calls it."""
    with _lock:
        original, own = layer.add_weight, threading.get_ident()
        signature = inspect.signature(original)

        @functools.wraps(original)
        def add_weight(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != own:
                return original(*args, **kwargs)
            bound = signature.bind_partial(*args, **kwargs)
            change(bound.arguments)
            return original(*bound.args, **bound.kwargs)

        layer.add_weight = add_weight
        try:
            yield
        finally:
            layer.add_weight = original


def _size(shape: Any) -> int:
    """The number of elements of a shape; 1 for an invalid shape, which Keras refuses."""
    try:
        return math.prod(int(length) for length in shape)
    except (TypeError, ValueError, OverflowError):
        return 1
