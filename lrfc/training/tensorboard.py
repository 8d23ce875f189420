"""Event files for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from lrfc.errors import UsageError
from lrfc.system.reader import shown


def prepare(folder: Path) -> None:
    """Create the folder of the event files; UsageError where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--log-dir {shown(folder)}: {error.strerror}") from error


class Board:
    """The event file of one fine-tune, in a new folder ``fine-tune-N`` of the given one."""

    def __init__(self, folder: Path) -> None:
        prepare(folder)
        self._place = _numbered(folder)
        self._writer: Any = None

    def write(self, epoch: int, values: Mapping[str, float]) -> None:
        """Add the figures of an epoch, by their names; they can be read at once."""
        import tensorflow as tf

        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self._place))
        # What tf.summary.scalar writes, which needs the package tensorboard.
        scalars = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
        kind = tf.compat.v1.SummaryMetadata(plugin_data=scalars, data_class="DATA_CLASS_SCALAR")
        with self._writer.as_default():
            for name, value in values.items():
                tf.summary.write(name, tf.constant(value, tf.float32), epoch, metadata=kind)
        self._writer.flush()


def _numbered(folder: Path) -> Path:
    """The first of the folders fine-tune-1, fine-tune-2, … that does not exist, created."""
    for number in count(1):
        place = folder / f"fine-tune-{number}"
        try:
            place.mkdir()
        except FileExistsError:
            continue
        return place
    raise AssertionError
