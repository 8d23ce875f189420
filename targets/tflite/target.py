"""TensorFlow Lite in all its precisions, run by LiteRT."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lrfc.config.formats import check
from lrfc.config.precision import PRECISIONS, Name
from lrfc.costs.tail import tail_bytes
from lrfc.costs.workload import workloads
from lrfc.errors import LrfcError, ModelError, UsageError
from lrfc.factorization.threads import workers
from lrfc.ir import backend
from lrfc.ir.batch import Batch, batches
from lrfc.ir.fold import inference_form
from lrfc.ir.graph import Graph
from lrfc.ir.steady_norms import with_steady_norms
from lrfc.protocols import Artifact, Patch, Runner
from lrfc.system import files, scratch
from lrfc.system.spans import span
from lrfc.targets import refusals, trace
from lrfc.targets.base import FileTarget
from lrfc.targets.imports import need
from lrfc.targets.quiet import quiet
from lrfc.targets.samples import Spec, checked, joined
from lrfc.targets.tflite import direct, flatfile, operators, xnnpack
from lrfc.targets.tflite.conversion import Conversion, started
from lrfc.targets.tflite.memory_plan import planned_bytes, with_plan
from lrfc.targets.tflite.operators import Operators
from lrfc.targets.tflite.patches import tiled
from lrfc.targets.tflite.ports import Port
from lrfc.targets.tflite.tails import file_tail
from lrfc.targets.trace import Traced

#: Bytes of weights from which on they stay variables while a file is written, and the converter has
#: a process of its own. It holds constants in memory more than twenty times, but is faster with
#: them when they are few; and the process takes some 4 CPU-s to import TensorFlow.
LARGE = 32 << 20


@dataclass(frozen=True)
class TFLite(FileTarget):
    """One ``.tflite`` file with a fixed batch of one and built-in operators only.

    'int8' quantises weights (per channel) and activations, 'int16x8' weights to 8 and activations
    to 16 bits, 'dynamic' weights only: activations are quantised at run time, where the runtime has
    a kernel for that. 'fp16' halves the weights, and is computed in float32. Inputs and outputs
    keep the dtypes of the model, unless ``int8_io``. The signature ``serving_default`` names inputs
    and outputs like the model's ops, and the file lists both in the model's order. The same graph
    gives the same bytes. ``memory_plan``: whether the file holds one for microcontrollers, see
    ``lrfc.targets.tflite.memory_plan``. ``limit_bytes``: activations beyond it are computed in
    strips where that helps, see ``lrfc.targets.tflite.patches``; None for no limit. With a memory
    plan the limit is on activations and tail.
    """

    precision: Name = "fp32"
    int8_io: bool = False
    memory_plan: bool = False
    limit_bytes: float | None = None
    name: ClassVar[str] = "tflite"

    def __post_init__(self) -> None:
        check(self.name, self.precision, int8_io=self.int8_io)

    def refusals(self, graph: Graph) -> Sequence[str]:
        """Every reason why the graph cannot be emitted, one line each; empty when it can."""
        rules = {"int8": refusals.TFLITE_INT8, "int16x8": refusals.TFLITE_INT16X8}
        return refusals.of(graph, rules.get(self.precision, refusals.TFLITE))

    @span("emission")
    def emit(self, graph: Graph, path: Path, calibration: Batch | None = None) -> Artifact:
        """Write the file.

        ``calibration``: one array (N, ...) per input; integer precisions read the range of every
        activation from these samples, one by one. UsageError when they lack it or the file cannot
        be written; ModelError when the converter fails, with its output in the error's notes.
        """
        if self._integer and (calibration is None or len(calibration[0]) == 0):
            raise UsageError(
                f"{self.precision} needs calibration samples to read the range of each activation:"
                " give --data, or choose --precision fp32"
            )
        computed = graph
        if self.precision == "int8" and calibration is not None:
            computed = with_steady_norms(graph, calibration)
        content = trace.converted(
            graph,
            f"TFLite {self.precision}",
            lambda: self._convert(partial(trace.trace, computed), calibration),
        )
        return self._written(path, content)

    @span("emission")
    def direct(self, graph: Graph, path: Path) -> Artifact | None:
        """Write a float file without the converter; see ``lrfc.targets.tflite.direct``."""
        plain = self.precision == "fp32" and not self.memory_plan and self.limit_bytes is None
        if not plain or not direct.write(graph, path):
            return None
        return Artifact(path, self.name, self.precision)

    def same_operators(self, one: Artifact, two: Artifact) -> bool:
        """Whether the files have the same operators, in any order."""
        first, second = (direct.operators(file.path.read_bytes()) for file in (one, two))
        return first == second

    def emit_trained(self, graph: Graph, model: Any, path: Path) -> Artifact:
        """Write the file of a tf_keras model that was trained with its rounding simulated.

        Its ranges are those of the training. ``graph``: names the inputs and outputs. The errors of
        ``emit``.
        """
        import tensorflow as tf

        def start() -> Traced:
            inputs, outputs = trace.names(graph)
            specs = [
                Spec(name, (1, *t.shape[1:]), t.dtype.name)
                for name, t in zip(inputs, model.inputs, strict=True)
            ]

            def call(*tensors: Any) -> list[Any]:
                return [
                    tf.identity(y) for y in tf.nest.flatten(model(list(tensors), training=False))
                ]

            return trace.traced(graph.name, call, specs, outputs, model.variables)

        content = trace.converted(
            graph, f"TFLite {self.precision}", lambda: self._convert(start, None)
        )
        return self._written(path, content)

    def load(self, artifact: Artifact, threads: int = 1) -> Runner:
        """Load the file into a LiteRT interpreter; ModelError when LiteRT refuses it."""
        return _LiteRT(artifact.path, threads)

    def reference(self, artifact: Artifact) -> Runner:
        """The file under LiteRT's reference kernels, which TensorFlow Lite Micro nearly follows.

        Its outputs are equal to the bit for networks of convolutions, poolings and additions. A
        fully connected layer differs by one step in one value of a few samples (7 of 120), and what
        is behind it by more (a softmax by up to 11 steps). They are slow. ModelError, on a call,
        when LiteRT refuses the file.
        """
        return _Reference(artifact.path)

    def tail_bytes(self, graph: Graph) -> int:
        """The tail of the arena of TensorFlow Lite Micro; 0 for a file without a memory plan."""
        if not self.memory_plan:
            return 0
        ops = workloads(inference_form(graph))
        return tail_bytes((workload for _, workload in ops), float_io=not self.int8_io)

    def scales(self, path: Path) -> tuple[tuple[str, float, int], ...]:
        """Name, scale and zero point of each input and output that holds integers."""
        return scales(path)

    def with_plan(self) -> TFLite:
        """The target whose files hold a memory plan."""
        return replace(self, memory_plan=True)

    def within(self, limit_bytes: float) -> TFLite:
        """The target whose files compute operators in strips beyond a limit; in int8 only."""
        return replace(self, limit_bytes=limit_bytes) if self.precision == "int8" else self

    def arena_bytes(self, path: Path) -> int | None:
        """The bytes of the planned activation arena; None where they are known at run time only."""
        return planned_bytes(flatfile.unpack(path.read_bytes()))

    def workspace_bytes(self, path: Path) -> int | None:
        """The bytes of XNNPACK's workspace; None where its rule is not known."""
        return xnnpack.workspace_bytes(flatfile.unpack(path.read_bytes()))

    def need_bytes(self, path: Path) -> int | None:
        """The bytes that a limit is on: activations and, with a memory plan, the tail."""
        planned = self.arena_bytes(path)
        if planned is None or not self.memory_plan:
            return planned
        return planned + file_tail(flatfile.unpack(path.read_bytes()))

    def operators(self, path: Path) -> Operators:
        """The operators of a file; the errors of ``lrfc.targets.tflite.operators.read``."""
        return operators.read(path)

    @property
    def _integer(self) -> bool:
        return PRECISIONS[self.precision].integer

    def _written(self, path: Path, content: bytes | bytearray) -> Artifact:
        """Write the file, within the limit on its activations and with a memory plan."""
        patches: tuple[Patch, ...] = ()
        added = 0
        if self.limit_bytes is not None:
            tiling = tiled(content, self.limit_bytes, with_tail=self.memory_plan)
            content, patches, added = tiling.content, tiling.patches, tiling.added_macs
        files.write(path, with_plan(content) if self.memory_plan else content)
        return Artifact(path, self.name, self.precision, patches, added)

    def _convert(self, start: Callable[[], Traced], calibration: Batch | None) -> bytearray:
        """The bytes of the file. Without ``calibration`` the ranges are in the traced function.

        ``start``: traces the function.
        """
        traced = self._traced(start)
        inputs, outputs = tuple(spec.name for spec in traced.inputs), traced.outputs
        samples = None
        if calibration is not None and self._integer:
            samples = checked(calibration, traced.inputs, "the model")
        conversion = Conversion(traced.name, self.precision, inputs, samples, self.int8_io)
        with (
            scratch.folder() as folder,
            started(folder) if traced.variables else nullcontext() as process,
        ):
            _save(traced, folder)
            del traced  # it holds the weights
            try:
                content = conversion.run(folder, process)
            except LrfcError:
                raise
            except Exception as error:
                missing = set(re.findall(r"'tf\.(\w+)' op is neither", str(error)))
                if not missing:
                    raise
                raise ModelError(
                    f"'{conversion.name}' cannot be converted to TFLite: it has no operator for"
                    f" TensorFlow's {self._traced(start).places(missing)}"
                ) from error
        _order(content, inputs, outputs)
        return content

    def _traced(self, start: Callable[[], Traced]) -> Traced:
        """The function as it is saved: its weights are constants, unless they are LARGE.

        ModelError for a loop that cannot be calibrated.
        """
        traced = start()
        if sum(v.dtype.size * v.shape.num_elements() for v in traced.variables) < LARGE:
            traced = traced.frozen()
        if self._integer and any(kind.startswith("TensorList") for kind in traced.kinds()):
            # The calibrator does not fail on it: it takes the process down.
            raise ModelError(
                f"'{traced.name}' has a loop that calibration cannot run: unroll its recurrent"
                " layers (unroll=True), or choose --precision fp32"
            )
        return traced


def _save(traced: Traced, folder: Path) -> None:
    """Write the function as a SavedModel."""
    import tensorflow as tf

    def call(*tensors: Any) -> dict[str, Any]:
        return dict(zip(traced.outputs, traced.function(*tensors), strict=True))

    specs = [tf.TensorSpec(spec.shape, spec.dtype, spec.name) for spec in traced.inputs]
    signature = tf.function(call, autograph=False).get_concrete_function(*specs)
    module = tf.Module()
    module.weights = traced.variables
    # Without custom gradients: they cannot be saved once the variables are constants, and a file is
    # for inference.
    tf.saved_model.save(
        module,
        str(folder),
        {"serving_default": signature},
        tf.saved_model.SaveOptions(experimental_custom_gradients=False),
    )


def scales(path: Path) -> tuple[tuple[str, float, int], ...]:
    """Name, scale and zero point of each input and output that holds integers.

    value = scale · (integer - zero point).
    """
    return tuple(
        (name, port.scale, port.zero_point)
        for name, port in _LiteRT(path, 1).ports().items()
        if port.scale
    )


def _order(content: bytearray, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """List inputs and outputs in the model's order; the converter sorts them by name."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content)
    graph, signature = model.Subgraphs(0), model.SignatureDefs(0)
    places = {
        entry.Name().decode(): entry.TensorIndex()
        for entries, count in (
            (signature.Inputs, signature.InputsLength()),
            (signature.Outputs, signature.OutputsLength()),
        )
        for entry in map(entries, range(count))
    }
    # Both are views into the buffer.
    graph.InputsAsNumpy()[:] = [places[name] for name in inputs]
    graph.OutputsAsNumpy()[:] = [places[name] for name in outputs]


class _LiteRT:
    """A loaded ``.tflite`` file.

    Samples run one by one: with XNNPACK a batch is not faster, and the file runs as it ships.
    """

    def __init__(self, path: Path, threads: int, *, reference: bool = False) -> None:
        litert = need("ai_edge_litert.interpreter", "ai-edge-litert")
        kernels = litert.OpResolverType.BUILTIN_REF if reference else litert.OpResolverType.AUTO
        try:
            with quiet():
                self._interpreter = litert.Interpreter(
                    model_path=str(path), num_threads=threads, experimental_op_resolver_type=kernels
                )
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError, OSError) as error:
            raise ModelError(f"LiteRT cannot load {path}: {backend.reason(error)}") from error
        self._inputs, self._outputs = (
            [Port.of(entry) for entry in details()]
            for details in (
                self._interpreter.get_input_details,
                self._interpreter.get_output_details,
            )
        )
        self._name = path.name

    def ports(self) -> dict[str, Port]:
        """Inputs and outputs, by the names that the signature gives them."""
        signature = self._interpreter.get_signature_runner()
        named = {**signature.get_input_details(), **signature.get_output_details()}
        names = {entry["index"]: name for name, entry in named.items()}
        return {names[port.number]: port for port in (*self._inputs, *self._outputs)}

    def __call__(self, batch: Batch) -> Batch:
        arrays = [
            port.quantised(x)
            for port, x in zip(
                self._inputs,
                checked(batch, [port.spec for port in self._inputs], self._name),
                strict=True,
            )
        ]
        results: list[list[np.ndarray[Any, Any]]] = []
        for i in range(len(arrays[0])):
            for port, x in zip(self._inputs, arrays, strict=True):
                self._interpreter.set_tensor(port.number, x[i : i + 1])
            try:
                self._interpreter.invoke()
            except RuntimeError as error:
                raise ModelError(
                    f"LiteRT cannot run {self._name}: {backend.reason(error)}"
                ) from error
            results.append(
                [
                    port.dequantised(self._interpreter.get_tensor(port.number))
                    for port in self._outputs
                ]
            )
        return joined(results)


class _Reference:
    """A ``.tflite`` file under the reference kernels.

    These use one thread, so several interpreters share the samples.
    """

    #: Samples of one share: few, so that Ctrl-C does not wait.
    SHARE: ClassVar[int] = 32

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, batch: Batch) -> Batch:
        def run(share: Batch) -> Batch:  # an interpreter runs one sample at a time
            return _LiteRT(self._path, 1, reference=True)(share)

        pool = ThreadPoolExecutor(workers())
        try:
            return joined(list(pool.map(run, batches(batch, self.SHARE))))
        finally:
            pool.shutdown(cancel_futures=True)
