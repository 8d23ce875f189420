"""Steps of a training over several devices of this machine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any


def devices() -> list[str]:
    """The names of the devices that share a step: all GPUs that TensorFlow sees."""
    import tensorflow as tf

    return [device.name for device in tf.config.list_logical_devices("GPU")]


class Replicas:
    """Copies of a network on all devices, each of which computes a share of every batch.

    Without two devices, or with ``single``, everything is computed where TensorFlow puts it.
    """

    def __init__(self, *, single: bool = False) -> None:
        import tensorflow as tf

        names = [] if single else devices()
        self._strategy = tf.distribute.MirroredStrategy(names) if len(names) > 1 else None
        self.count = max(1, len(names)) if self._strategy is not None else 1

    def scope(self) -> AbstractContextManager[Any]:
        """Context manager: variables that are created have a copy on each device."""
        return nullcontext() if self._strategy is None else self._strategy.scope()

    def mean(self, compute: Callable[..., Any], *batch: Any) -> Any:
        """The mean over the devices of what ``compute`` returns for their shares of a batch.

        ``compute``: a function of the batch (nested tensors (N, ...)) that returns nested means
        over its samples. Called inside a tf.function; N is at least the number of devices.
        """
        import tensorflow as tf

        strategy = self._strategy
        if strategy is None:
            return compute(*batch)
        flat = tf.nest.flatten(batch)
        size = tf.shape(flat[0])[0]
        bounds = [size * number // self.count for number in range(self.count + 1)]

        def share(tensor: Any) -> Any:
            def of(context: Any) -> Any:
                number = context.replica_id_in_sync_group
                return tensor[bounds[number] : bounds[number + 1]]

            return strategy.experimental_distribute_values_from_function(of)

        def weighted(*parts: Any) -> Any:
            weight = tf.cast(tf.shape(parts[0])[0] / size, tf.float32)
            result = compute(*tf.nest.pack_sequence_as(batch, parts))
            return tf.nest.map_structure(lambda value: weight * value, result)

        return tf.nest.map_structure(
            lambda value: strategy.reduce("SUM", value, axis=None),
            strategy.run(weighted, tuple(map(share, flat))),
        )
