"""ONNX in float32, float16 and int8, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lrfc.config.formats import check
from lrfc.config.precision import Name
from lrfc.costs.latency import Layout
from lrfc.errors import ModelError, UsageError
from lrfc.ir import backend
from lrfc.ir.batch import Batch
from lrfc.ir.graph import Graph
from lrfc.protocols import Artifact, Runner
from lrfc.system import files, scratch
from lrfc.system.spans import span
from lrfc.targets import refusals
from lrfc.targets.base import FileTarget
from lrfc.targets.imports import need
from lrfc.targets.onnx import int8 as onnx_int8
from lrfc.targets.samples import Spec, checked, joined
from lrfc.targets.trace import Traced, converted, plain, trace

#: The operator set of the files: the newest one that tf2onnx writes and that runtimes of the last
#: years all read.
OPSET = 17


@dataclass(frozen=True)
class ONNX(FileTarget):
    """One ``.onnx`` file of standard operators (opset 17) with a fixed batch of one.

    Inputs and outputs have the layout, the order, the names and the dtypes of the model's. See
    lrfc.targets.onnx.int8 for 'fp16' and 'int8'. The same graph gives the same bytes.
    """

    precision: Name = "fp32"
    int8_io: bool = False
    name: ClassVar[str] = "onnx"
    layouts: ClassVar[Sequence[Layout]] = ((1, 1), (4, 8), (4, 16))

    def __post_init__(self) -> None:
        check(self.name, self.precision, int8_io=self.int8_io)

    def refusals(self, graph: Graph) -> Sequence[str]:
        """Every reason why the graph cannot be emitted, one line each; empty when it can."""
        return refusals.of(graph, refusals.ONNX_INT8 if self.precision == "int8" else refusals.ONNX)

    @span("emission")
    def emit(self, graph: Graph, path: Path, calibration: Batch | None = None) -> Artifact:
        """Write the file.

        ``calibration``: one array (N, ...) per input; int8 reads the range of every activation from
        these samples, one by one. UsageError when int8 lacks it or the file cannot be written;
        ModelError when the converter fails, with its output in the error's notes.
        """
        if self.precision == "int8" and (calibration is None or len(calibration[0]) == 0):
            raise UsageError(
                "int8 needs calibration samples to read the range of each activation: give --data,"
                " or choose --precision fp32"
            )
        content = converted(
            graph,
            f"ONNX {self.precision}",
            lambda: self._convert(trace(graph).frozen(), calibration),
        )
        files.write(path, content)
        return Artifact(path, self.name, self.precision)

    def load(self, artifact: Artifact, threads: int = 1) -> Runner:
        """Load the file into an onnxruntime session; ModelError when onnxruntime refuses it."""
        return _OnnxRuntime(artifact.path, threads)

    def _convert(self, frozen: Traced, calibration: Batch | None) -> bytes:
        """The bytes of the file at the precision."""
        import onnx

        model = _plain(frozen)
        if self.precision == "fp16":
            model = onnx_int8.halved(model)
        if self.precision == "int8":
            assert calibration is not None
            model = onnx_int8.quantised(
                model,
                [spec.name for spec in frozen.inputs],
                tuple(checked(calibration, frozen.inputs, "the model")),
            )
        if self.precision != "fp32":
            _rename(model.graph, frozen)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))


def _ports(frozen: Traced) -> list[str]:
    """The names of the inputs and outputs in the file."""
    return [*(spec.name for spec in frozen.inputs), *frozen.outputs]


def _plain(frozen: Traced) -> Any:
    """The float32 model; ModelError for ops that ONNX does not have."""
    import onnx

    tf2onnx = need("tf2onnx", "tf2onnx")
    tensors = [*frozen.function.inputs, *frozen.function.outputs]
    names = {tensor.name: name for tensor, name in zip(tensors, _ports(frozen), strict=True)}
    # from_keras fails on Keras 3; from_function mistakes constant tensors of the model for inputs.
    model, _ = tf2onnx.convert.from_graph_def(
        frozen.function.graph.as_graph_def(),
        name=frozen.name,
        input_names=[t.name for t in frozen.function.inputs],
        output_names=[t.name for t in frozen.function.outputs],
        opset=OPSET,
        tensors_to_rename=names,
        custom_op_handlers={"Erfc": (_erfc, []), "Expm1": (_expm1, []), "Log1p": (_log1p, [])},
    )
    unknown = {
        node.op_type for node in model.graph.node if not onnx.defs.has(node.op_type, node.domain)
    }
    if unknown:
        raise ModelError(
            f"'{frozen.name}' cannot be converted to ONNX: it has no operator for TensorFlow's"
            f" {frozen.places(unknown)}"
        )
    model = _folded(model)
    _rename(model.graph, frozen)
    return model


# TensorFlow ops that tf2onnx does not convert; erfc is in the GELU of Keras.


def _erfc(context: Any, node: Any, name: str, args: Any) -> None:
    """1 - erf(x)."""
    y = _stage(context, node, name, "Erf", list(node.input))
    _stage(context, node, name, "Sub", [_one(context, name), y], last=True)


def _expm1(context: Any, node: Any, name: str, args: Any) -> None:
    """exp(x) - 1."""
    y = _stage(context, node, name, "Exp", list(node.input))
    _stage(context, node, name, "Sub", [y, _one(context, name)], last=True)


def _log1p(context: Any, node: Any, name: str, args: Any) -> None:
    """log(1 + x)."""
    y = _stage(context, node, name, "Add", [_one(context, name), *node.input])
    _stage(context, node, name, "Log", [y], last=True)


def _one(context: Any, name: str) -> str:
    """A constant of 1."""
    return str(context.make_const(f"{name}/one", np.ones((), np.float32)).output[0])


def _stage(
    context: Any, node: Any, name: str, kind: str, operands: list[str], *, last: bool = False
) -> str:
    """Add an op with the shape and dtype of ``node``, and return its output.

    The last one replaces ``node``.
    """
    options = {"shapes": node.output_shapes, "dtypes": node.output_dtypes}
    if last:
        context.remove_node(name)
        options |= {"name": name, "outputs": node.output}
    return str(context.make_node(kind, operands, **options).output[0])


def _folded(model: Any) -> Any:
    """The model after onnxruntime's basic optimisation, which uses standard operators only.

    It folds constants, and a BatchNorm after a biased convolution.
    """
    import onnx

    runtime = need("onnxruntime", "onnxruntime")
    with scratch.folder() as folder:
        options = runtime.SessionOptions()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folder / "folded.onnx")
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        folded = onnx.load(options.optimized_model_filepath)
    used = {node.domain for node in folded.graph.node}
    opsets = [entry for entry in folded.opset_import if entry.domain in used]
    del folded.opset_import[:]
    folded.opset_import.extend(opsets)
    return folded


def _rename(graph: Any, frozen: Traced) -> None:
    """Name nodes and tensors by the graph alone, and sort the initializers by their first use.

    The converter numbers names with a counter of the process, and its order of the initializers
    changes with Python's hash seed.
    """
    names = {name: name for name in ("", *_ports(frozen))}
    taken = set(names)

    def unique(name: str) -> str:
        base = candidate = plain(name, frozen.name)
        number = 1
        while candidate in taken:
            number += 1
            candidate = f"{base}.{number}"
        taken.add(candidate)
        return candidate

    def renamed(name: str) -> str:
        if name not in names:
            names[name] = unique(name)
        return names[name]

    def rename(subgraph: Any) -> None:
        for value in subgraph.input:
            value.name = renamed(value.name)
        for node in subgraph.node:
            node.name = unique(node.name)
            node.input[:] = [renamed(name) for name in node.input]
            for attribute in node.attribute:
                # The body of a loop or a branch reads tensors of the graph around it.
                if attribute.HasField("g"):
                    rename(attribute.g)
            node.output[:] = [renamed(name) for name in node.output]
        for value in [*subgraph.output, *subgraph.initializer]:
            value.name = renamed(value.name)
        order = {name: i for i, name in enumerate(names.values())}
        initializers = sorted(subgraph.initializer, key=lambda tensor: order[tensor.name])
        del subgraph.initializer[:]
        subgraph.initializer.extend(initializers)
        del subgraph.value_info[:]

    rename(graph)


class _OnnxRuntime:
    """A loaded ``.onnx`` file.

    Samples run one by one: a batch is not faster, and the file runs as it ships.
    """

    def __init__(self, path: Path, threads: int) -> None:
        runtime = need("onnxruntime", "onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own exceptions have no common base
            raise ModelError(f"onnxruntime cannot load {path}: {backend.reason(error)}") from error
        self._inputs = [
            Spec(entry.name, tuple(entry.shape), np.dtype(_DTYPES[entry.type]))
            for entry in self._session.get_inputs()
        ]
        self._name = path.name

    def __call__(self, batch: Batch) -> Batch:
        arrays = checked(batch, self._inputs, self._name)
        names = [spec.name for spec in self._inputs]
        try:
            return joined(
                [
                    self._session.run(
                        None, {name: x[i : i + 1] for name, x in zip(names, arrays, strict=True)}
                    )
                    for i in range(len(arrays[0]))
                ]
            )
        except Exception as error:  # as above
            raise ModelError(
                f"onnxruntime cannot run {self._name}: {backend.reason(error)}"
            ) from error


_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}
