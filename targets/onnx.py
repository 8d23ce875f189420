"""ONNX in float32, run by onnxruntime."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from lrfc.errors import LrfcError, ModelError, UsageError
from lrfc.ir import backend
from lrfc.ir.graph import Graph
from lrfc.state import Artifact, Batch, Runner
from lrfc.targets import files, refusals
from lrfc.targets.freeze import Frozen, freeze
from lrfc.targets.imports import need
from lrfc.targets.quiet import quiet
from lrfc.targets.samples import Spec, checked, joined

#: The operator set that is written: the newest one that tf2onnx converts and that runtimes of the last years all read.
OPSET = 17


@dataclass(frozen=True)
class ONNX:
    """One ``.onnx`` file of standard operators (opset 17) with a fixed batch of one.

    Inputs and outputs keep the layout, the order and the names of the model's. The same graph gives the same bytes.
    """

    precision: Literal["fp32"] = "fp32"
    name: ClassVar[str] = "onnx"

    def __post_init__(self) -> None:
        if self.precision != "fp32":
            raise UsageError(f"target onnx has no precision '{self.precision}' yet; choose fp32, or target tflite for int8")

    def refusals(self, graph: Graph) -> Sequence[str]:
        """Every reason why the graph cannot be emitted, one line each. Empty when it can."""
        return refusals.of(graph, refusals.ONNX)

    def emit(self, graph: Graph, path: Path, calibration: Batch | None = None) -> Artifact:
        """Write the file. UsageError when it cannot be written; ModelError when the converter fails, with all it wrote in the error's notes."""
        need("tf2onnx", "tf2onnx")
        with quiet() as noise:
            try:
                content = _convert(freeze(graph), graph.name)
            except LrfcError:
                raise
            except Exception as error:  # the converters raise whatever comes; all of it means the same to the user
                failure = ModelError(f"'{graph.name}' cannot be converted to ONNX: {backend.reason(error)}")
                failure.add_note(noise())
                raise failure from error
        files.write(path, content)
        return Artifact(path, self.name, self.precision)

    def load(self, artifact: Artifact, threads: int = 1) -> Runner:
        """The file in an onnxruntime session. ModelError when onnxruntime refuses it."""
        return _OnnxRuntime(artifact.path, threads)


def _convert(frozen: Frozen, name: str) -> bytes:
    import onnx
    import tf2onnx

    tensors = [*frozen.function.inputs, *frozen.function.outputs]
    names = {tensor.name: name for tensor, name in zip(tensors, [*frozen.inputs, *frozen.outputs], strict=True)}
    # from_keras fails on Keras 3; from_function takes constant tensors of the model for inputs.
    model, _ = tf2onnx.convert.from_graph_def(
        frozen.function.graph.as_graph_def(), name=name, input_names=[t.name for t in frozen.function.inputs],
        output_names=[t.name for t in frozen.function.outputs], opset=OPSET, tensors_to_rename=names,
    )  # fmt: skip
    model = _folded(model)
    _rename(model.graph, [*frozen.inputs, *frozen.outputs])
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _folded(model: Any) -> Any:
    """The model after onnxruntime's basic optimisation, which keeps to standard operators: constants and a BatchNorm behind a biased conv are folded."""
    import onnx

    runtime = need("onnxruntime", "onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        options = runtime.SessionOptions()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        folded = onnx.load(options.optimized_model_filepath)
    used = {node.domain for node in folded.graph.node}
    opsets = [entry for entry in folded.opset_import if entry.domain in used]
    del folded.opset_import[:]
    folded.opset_import.extend(opsets)
    return folded


def _rename(graph: Any, kept: Sequence[str]) -> None:
    """Give nodes and tensors names that depend on the graph alone, and put the initializers in the order of their use.

    The converter numbers names with a counter of the process, and its order of the initializers changes with Python's hash seed.
    """
    names = {name: name for name in kept} | {"": ""}
    taken = set(names)

    def plain(name: str) -> str:
        base = unique = re.sub(r"(__\d+|:0)+(?=$|/)|_(?=\d+$)", "", name)
        number = 1
        while unique in taken:
            number += 1
            unique = f"{base}.{number}"
        taken.add(unique)
        return unique

    for node in graph.node:
        node.name = plain(node.name)
        for values in (node.input, node.output):
            for value in values:
                if value not in names:
                    names[value] = plain(value)
            values[:] = [names[value] for value in values]
    order = {name: i for i, name in enumerate(names)}
    initializers = sorted((tensor for tensor in graph.initializer if tensor.name in names), key=lambda tensor: order[tensor.name])
    for tensor in initializers:
        tensor.name = names[tensor.name]
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    del graph.value_info[:]


class _OnnxRuntime:
    """A loaded ``.onnx`` file. Samples run one by one: a batch is not faster, and what runs is the file as it ships."""

    def __init__(self, path: Path, threads: int) -> None:
        runtime = need("onnxruntime", "onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions have no common base
            raise ModelError(f"onnxruntime cannot load {path}: {backend.reason(error)}") from error
        self._inputs = [Spec(entry.name, tuple(entry.shape), np.dtype(_DTYPES[entry.type])) for entry in self._session.get_inputs()]
        self._name = path.name

    def __call__(self, batch: Batch) -> Batch:
        arrays = checked(batch, self._inputs, self._name)
        names = [spec.name for spec in self._inputs]
        return joined([self._session.run(None, {name: x[i : i + 1] for name, x in zip(names, arrays, strict=True)}) for i in range(len(arrays[0]))])


_DTYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(bool)": "bool", "tensor(uint8)": "uint8", "tensor(int8)": "int8",
    "tensor(int16)": "int16", "tensor(int32)": "int32", "tensor(int64)": "int64",
}  # fmt: skip
