"""Random flips and shifts of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.errors import UsageError
from lrfc.ir.batch import Batch
from lrfc.ir.graph import Graph
from lrfc.ir.op import Shape

#: The least height and width of an input with three channels that counts as a natural image.
SMALLEST = 24
#: The share of images whose predicted class must not change for a change to be harmless.
AGREEMENT = 0.9


@dataclass(frozen=True)
class Augmentation:
    """Random changes of the image inputs, which are given by their numbers.

    ``flip``: from left to right, in half of the cases. ``shift``: by up to 1/8 of each side.
    """

    images: tuple[int, ...] = ()
    flip: bool = False
    shift: bool = False

    def __bool__(self) -> bool:
        return bool(self.images) and (self.flip or self.shift)

    def __str__(self) -> str:
        if not self:
            return "none"
        return " and ".join(
            name for name, on in (("flips", self.flip), ("shifts", self.shift)) if on
        )

    def __call__(self, inputs: Sequence[Any], seed: Any) -> list[Any]:
        """The inputs (tensors (N, ...)), changed at random by ``seed``, an int32 tensor (2,)."""
        return [
            changed(x, seed, flip=self.flip, shift=self.shift) if i in self.images else x
            for i, x in enumerate(inputs)
        ]


def changed(x: Any, seed: Any, *, flip: bool, shift: bool) -> Any:
    """Images (N, H, W, C), each flipped with probability 1/2 and shifted by whole pixels.

    The border is mirrored: padding and cropping, as usual for CIFAR.
    """
    import tensorflow as tf

    count, height, width = tf.shape(x)[0], int(x.shape[1]), int(x.shape[2])
    draws = tf.random.stateless_uniform((3, count), seed)
    if flip:
        x = tf.where(draws[0][:, None, None, None] < 0.5, x, tf.reverse(x, [2]))
    if shift:
        for axis, length in ((1, height), (2, width)):
            most = max(1, length // 8)
            offsets = tf.cast(tf.floor(draws[axis] * (2 * most + 1)), tf.int32) - most
            rows = tf.range(length)[None] + offsets[:, None]
            rows = tf.where(
                rows < 0, -rows, tf.where(rows >= length, 2 * (length - 1) - rows, rows)
            )
            x = tf.gather(x, rows, axis=axis, batch_dims=1)
    return x


def augmentation(
    graph: Graph,
    inputs: Batch,
    targets: Batch | None,
    run: Callable[[Batch], Batch],
    *,
    wanted: bool | None = None,
    seed: int = 0,
) -> Augmentation:
    """The augmentation that suits the data; ``wanted`` forces all of it on or off.

    By default it is for classifiers of natural images only (height and width of at least 24, three
    channels), and only a change that keeps the class is made: the original (``run``) must predict
    the same class for 9 of 10 of these samples (a few hundred). Traffic signs may not be flipped.
    UsageError when augmentation is forced on, but the model takes no images, or the labels would
    have to move with them.
    """
    natural = wanted is None
    images = tuple(
        i
        for i, name in enumerate(graph.inputs)
        if _is_image(graph.tensors(name)[0].shape, natural=natural)
    )
    moving = any(len(graph.tensor(ref).shape) > 2 for ref in graph.outputs)
    if wanted:
        _check_possible(graph, images=bool(images), moving=moving)
        return Augmentation(images, flip=True, shift=True)
    if wanted is False or moving or not images:
        return Augmentation()
    classes = [i for i, ref in enumerate(graph.outputs) if (graph.tensor(ref).shape[-1] or 0) > 1]
    if len(classes) < len(graph.outputs) or any(y.dtype.kind == "f" for y in targets or ()):
        return Augmentation()  # a value may depend on the position in the image
    plain = [values.argmax(-1) for values in run(inputs)]
    harmless = {}
    for name in ("flip", "shift"):
        outputs = run(applied(Augmentation(images, **{name: True}), inputs, seed))
        harmless[name] = all(
            float(np.mean(before == values.argmax(-1))) >= AGREEMENT
            for before, values in zip(plain, outputs, strict=True)
        )
    return Augmentation(images, **harmless)


def _check_possible(graph: Graph, *, images: bool, moving: bool) -> None:
    """Raise UsageError when the model cannot be trained with augmentation."""
    if not images:
        raise UsageError(
            f"augmentation is on, but model '{graph.name}' takes no images (height, width,"
            " channels)"
        )
    if moving:
        raise UsageError(
            f"augmentation is on, but the outputs of model '{graph.name}' are maps, which would"
            " have to move with the images"
        )


def applied(change: Augmentation, inputs: Batch, seed: int) -> Batch:
    """The inputs as arrays, changed at random by ``seed``."""
    import tensorflow as tf

    moved: list[NDArray[Any]] = [
        np.asarray(x)
        for x in change(
            [tf.constant(np.asarray(x)) for x in inputs], tf.constant([seed, 0], tf.int32)
        )
    ]
    return tuple(moved)


def _is_image(shape: Shape, *, natural: bool) -> bool:
    if len(shape) != 4 or None in shape[1:]:
        return False
    height, width, channels = (length or 0 for length in shape[1:])
    return (min(height, width) >= SMALLEST and channels == 3) if natural else channels in (1, 3)
