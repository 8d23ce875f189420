"""TensorFlow Lite: float32, or int8 by full-integer post-training quantisation; run by LiteRT."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from lrfc.errors import ModelError, UsageError
from lrfc.ir import backend
from lrfc.ir.graph import Graph
from lrfc.state import Artifact, Batch, Runner
from lrfc.targets import files, refusals
from lrfc.targets.freeze import Frozen, converted
from lrfc.targets.imports import need
from lrfc.targets.quiet import quiet
from lrfc.targets.samples import Spec, checked, joined


@dataclass(frozen=True)
class TFLite:
    """One ``.tflite`` file with a fixed batch of one and built-in operators only.

    'int8' quantises weights (per channel) and activations; inputs and outputs stay as the model has them. The signature ``serving_default`` names
    inputs and outputs like the model's ops, and the file lists both in the model's order. The same graph gives the same bytes.
    """

    precision: Literal["fp32", "int8"] = "fp32"
    name: ClassVar[str] = "tflite"

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "int8"):
            raise UsageError(f"target tflite has no precision '{self.precision}'; choose fp32 or int8")

    def refusals(self, graph: Graph) -> Sequence[str]:
        """Every reason why the graph cannot be emitted, one line each. Empty when it can."""
        return refusals.of(graph, refusals.TFLITE_INT8 if self.precision == "int8" else refusals.TFLITE)

    def emit(self, graph: Graph, path: Path, calibration: Batch | None = None) -> Artifact:
        """Write the file.

        ``calibration``: one array (N, ...) per input; int8 reads the range of every activation from these samples, one by one.
        UsageError when int8 lacks it or the file cannot be written; ModelError when the converter fails, with all it wrote in the error's notes.
        """
        if self.precision == "int8" and (calibration is None or len(calibration[0]) == 0):
            raise UsageError("int8 needs calibration samples to read the range of each activation: give --data, or choose --precision fp32")
        content = converted(graph, f"TFLite {self.precision}", lambda frozen: self._convert(frozen, calibration))
        files.write(path, content)
        return Artifact(path, self.name, self.precision)

    def load(self, artifact: Artifact, threads: int = 1) -> Runner:
        """The file in a LiteRT interpreter. ModelError when LiteRT refuses it."""
        return _LiteRT(artifact.path, threads)

    def _convert(self, frozen: Frozen, calibration: Batch | None) -> bytes:
        import tensorflow as tf

        def call(*tensors: Any) -> dict[str, Any]:
            return dict(zip(frozen.outputs, frozen.function(*tensors), strict=True))

        if self.precision == "int8" and any(node.op.startswith("TensorList") for node in frozen.function.graph.as_graph_def().node):
            # The calibrator does not fail on it: it takes the process down.
            raise ModelError(
                f"'{frozen.name}' has a loop that int8 calibration cannot run: unroll its recurrent layers (unroll=True), or choose --precision fp32"
            )
        specs = [tf.TensorSpec(tensor.shape, tensor.dtype, name=name) for name, tensor in zip(frozen.inputs, frozen.function.inputs, strict=True)]
        signature = tf.function(call, autograph=False).get_concrete_function(*specs)
        with tempfile.TemporaryDirectory() as folder:
            # Without custom gradients: they cannot be saved once the variables are constants, and a file is for inference.
            tf.saved_model.save(tf.Module(), folder, {"serving_default": signature}, tf.saved_model.SaveOptions(experimental_custom_gradients=False))
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            if self.precision == "int8":
                assert calibration is not None
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
                converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
                samples = checked(
                    calibration,
                    [Spec(name, tuple(t.shape), t.dtype.as_numpy_dtype) for name, t in zip(frozen.inputs, specs, strict=True)],
                    "the model",
                )

                def representative() -> Iterator[dict[str, Any]]:
                    for i in range(len(samples[0])):
                        yield {name: x[i : i + 1] for name, x in zip(frozen.inputs, samples, strict=True)}

                converter.representative_dataset = representative
            try:
                content = converter.convert()
            except Exception as error:
                missing = set(re.findall(r"'tf\.(\w+)' op is neither", str(error)))
                if not missing:
                    raise
                raise ModelError(
                    f"'{frozen.name}' cannot be converted to TFLite: it has no operator for TensorFlow's {frozen.places(missing)}"
                ) from error
        return _in_order(bytes(content), frozen)


def _in_order(content: bytes, frozen: Frozen) -> bytes:
    """The file with its inputs and outputs listed in the model's order; the converter sorts them by name."""
    from ai_edge_litert import schema_py_generated as schema

    buffer = bytearray(content)
    model = schema.Model.GetRootAs(buffer)
    graph, signature = model.Subgraphs(0), model.SignatureDefs(0)
    inputs = {entry.Name().decode(): entry.TensorIndex() for entry in map(signature.Inputs, range(signature.InputsLength()))}
    outputs = {entry.Name().decode(): entry.TensorIndex() for entry in map(signature.Outputs, range(signature.OutputsLength()))}
    graph.InputsAsNumpy()[:] = [inputs[name] for name in frozen.inputs]  # views into the buffer
    graph.OutputsAsNumpy()[:] = [outputs[name] for name in frozen.outputs]
    return bytes(buffer)


class _LiteRT:
    """A loaded ``.tflite`` file. Samples run one by one: with XNNPACK a batch is not faster, and what runs is the file as it ships."""

    def __init__(self, path: Path, threads: int) -> None:
        litert = need("ai_edge_litert.interpreter", "ai-edge-litert")
        try:
            with quiet():
                self._interpreter = litert.Interpreter(model_path=str(path), num_threads=threads)
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError, OSError) as error:
            raise ModelError(f"LiteRT cannot load {path}: {backend.reason(error)}") from error
        details = self._interpreter.get_input_details()
        self._inputs = [Spec(entry["name"], tuple(entry["shape"].tolist()), entry["dtype"]) for entry in details]
        self._indices = [entry["index"] for entry in details]
        self._outputs = [entry["index"] for entry in self._interpreter.get_output_details()]
        self._name = path.name

    def __call__(self, batch: Batch) -> Batch:
        arrays = checked(batch, self._inputs, self._name)
        results: list[list[np.ndarray[Any, Any]]] = []
        for i in range(len(arrays[0])):
            for index, x in zip(self._indices, arrays, strict=True):
                self._interpreter.set_tensor(index, x[i : i + 1])
            try:
                self._interpreter.invoke()
            except RuntimeError as error:
                raise ModelError(f"LiteRT cannot run {self._name}: {backend.reason(error)}") from error
            results.append([self._interpreter.get_tensor(index) for index in self._outputs])
        return joined(results)
