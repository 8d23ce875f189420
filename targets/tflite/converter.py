"""TensorFlow's converter to TFLite; as a script, in a process of its own.

A script because the converter holds many times the size of a file in memory, which a process gives
back only when it ends, and because the system may kill it for that. It imports nothing of lrfc, so
that it runs in any folder. It reads one line of JSON on stdin, the arguments of ``convert`` with
the samples as paths of .npy files, which are mapped, and writes FILE in the SavedModel's folder, or
FAILURE with the message of the converter. It ends early when its stdin does.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

#: The names of the results of a process.
FILE, FAILURE = "converted.tflite", "failure.txt"


def convert(
    folder: str,
    precision: str,
    inputs: Sequence[str],
    samples: Sequence[Any] | None,
    *,
    int8_io: bool,
) -> bytes:
    """The bytes of the .tflite file of a SavedModel; the exceptions of TensorFlow's converter.

    ``precision``: a name of lrfc.config.precision. ``inputs``: the names of the inputs in the
    signature. ``samples``: an array (N, ...) for each of them, which the converter reads the ranges
    of the activations from; None for float precisions, and where the ranges are in the graph.
    ``int8_io``: inputs and outputs in int8.
    """
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    sets = {
        "int8": "TFLITE_BUILTINS_INT8",
        "int16x8": "EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8",
    }
    if precision != "fp32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "fp16":
        converter.target_spec.supported_types = [tf.float16]
    if int8_io:
        converter.inference_input_type = converter.inference_output_type = tf.int8
    if samples is not None:
        converter.target_spec.supported_ops = [getattr(tf.lite.OpsSet, sets[precision])]
        columns = list(zip(inputs, samples, strict=True))

        def representative() -> Iterator[dict[str, Any]]:
            for i in range(len(columns[0][1])):
                yield {name: x[i : i + 1] for name, x in columns}

        converter.representative_dataset = representative
    return bytes(converter.convert())


def _main() -> int:
    # The wrappers of Keras for scikit-learn are of no use here, and take a quarter of the import.
    sys.modules["sklearn"] = None  # type: ignore[assignment]
    # Nor are collections, which search TensorFlow's objects again and again.
    gc.disable()
    import numpy as np
    import tensorflow as tf

    gc.freeze()
    gc.enable()
    tf.config.optimizer.set_experimental_options({"remapping": False})  # as in the build's process
    line = sys.stdin.readline()
    if not line:
        return 1
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    task = json.loads(line)
    folder = Path(task["folder"])
    try:
        if task["samples"] is not None:
            task["samples"] = [np.load(path, mmap_mode="r") for path in task["samples"]]
        (folder / FILE).write_bytes(convert(**task))
    except Exception as error:  # noqa: BLE001  the converter's exceptions have no common base
        text = "there is too little memory" if isinstance(error, MemoryError) else str(error)
        (folder / FAILURE).write_text(text or type(error).__name__, encoding="utf-8")
        return 1
    return 0


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    code = _main()
    sys.stdout.flush()
    os._exit(code)  # without freeing all that TensorFlow holds
