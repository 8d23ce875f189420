"""Simulated int8 rounding in a tf_keras model, by tensorflow-model-optimization."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lrfc.errors import DependencyError, ModelError
from lrfc.ir.backend import quiet, reason
from lrfc.ir.batch import Batch, batches
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.keras.tf_keras_lower import Lowered
from lrfc.ir.op import Op, Ref
from lrfc.ir.rounding import rounds, scaled_by_channel
from lrfc.system.overrides import Override

_PACKAGE = "tensorflow_model_optimization"
#: Activations whose output range TFLite prescribes.
_FIXED = frozenset(("softmax", "sigmoid", "tanh", "log_softmax"))


def check() -> None:
    """Raise DependencyError unless the package for quantisation-aware training is installed."""
    if importlib.util.find_spec(_PACKAGE) is None:
        raise DependencyError(
            "--qat needs tensorflow-model-optimization; install it with: pip install 'lrfc[qat]'"
        )


@contextmanager
def tools() -> Iterator[Any]:
    """Context manager: tensorflow-model-optimization, without its change of the environment.

    It sets TF_USE_LEGACY_KERAS, with which child processes would load another Keras.
    """
    check()
    with quiet(), _LEGACY.to(None):
        yield importlib.import_module(_PACKAGE).quantization.keras


def _set_legacy(value: str | None) -> None:
    os.environ.pop("TF_USE_LEGACY_KERAS", None)
    if value is not None:
        os.environ["TF_USE_LEGACY_KERAS"] = value


_LEGACY: Override[str | None, None] = Override(
    lambda: os.environ.get("TF_USE_LEGACY_KERAS"), lambda _: None, _set_legacy
)


def annotated(tools: Any, graph: Graph, lowered: Lowered) -> Any:
    """The model with the rounding of kernels, and of activations where the file rounds them."""
    import tf_keras

    rules = _rules(tools)
    configs = {
        lowered.layers[op.name]: rules(
            kernel=_kernel(op), channels=scaled_by_channel(op), output=_rounds_output(graph, op)
        )
        for op in graph
    }

    def annotate(layer: Any) -> Any:
        if isinstance(layer, tf_keras.layers.InputLayer):
            return layer
        return tools.quantize_annotate_layer(layer, configs[layer.name])

    try:
        marked = tf_keras.models.clone_model(lowered.model, clone_function=annotate)
        marked.set_weights(lowered.model.get_weights())
        with tools.quantize_scope({"Rules": rules, **lowered.custom}):
            return tools.quantize_apply(marked, _scheme(tools))
    except Exception as error:  # layers without rules raise errors of any kind
        raise refusal(graph, error) from error


def refusal(graph: Graph, error: Exception) -> ModelError:
    """The error for a graph that cannot be trained with its rounding, in one line."""
    return ModelError(
        f"tensorflow-model-optimization refuses '{graph.name}': {reason(error)}; leave out --qat"
    )


def _kernel(op: Op) -> str | None:
    """The tf_keras name of the layer's kernel; None where the file does not round it."""
    if not rounds(op) or _in_float(op):
        return None
    return "depthwise_kernel" if op.info.is_depthwise else "kernel"


def _rounds_output(graph: Graph, op: Op) -> bool:
    """Whether the file rounds the op's output to a range of its own.

    It does not where a ReLU is fused into the op, the range is prescribed, or the op computes in
    float.
    """
    reader = graph.only_consumer(op.name)
    fused = reader is not None and _rectifies(reader)
    in_float = _in_float(op) or (
        _rectifies(op) and _in_float(graph.op(graph.operands(op.name)[0].op))
    )
    function = (
        op.attrs.get("activation")
        if isinstance(op.attrs.get("activation"), str)
        else op.kind.lower()
    )
    return (
        not op.info.keeps_range
        and function not in _FIXED
        and not fused
        and not in_float
        and graph.tensors(op.name)[0].dtype.startswith("float")
    )


def _in_float(op: Op) -> bool:
    """Whether the op has a kernel and TFLite computes it in float only."""
    return op.info.is_convolution and op.info.spatial_axes == 3


def _rectifies(op: Op) -> bool:
    return op.kind == "ReLU" or (op.kind == "Activation" and op["activation"] in ("relu", "relu6"))


def _scheme(tools: Any) -> Any:
    """The package's quantisation scheme with one rewrite only, the rounding of the inputs.

    The other rewrites expect a BatchNorm; without one they leave the kernel before a ReLU in float.
    """
    inside = f"{_PACKAGE}.python.core.quantization.keras"
    inputs = importlib.import_module(
        f"{inside}.default_8bit.default_8bit_transforms"
    ).InputLayerQuantize()
    transformer = importlib.import_module(f"{inside}.graph_transformations.model_transformer")
    registry = importlib.import_module(f"{inside}.default_8bit.default_8bit_quantize_registry")
    floats = inputs.pattern()
    floats.config = {"dtype": "float32"}
    inputs.pattern = lambda: floats

    base: Any = importlib.import_module(
        f"{inside}.quantize_layout_transform"
    ).QuantizeLayoutTransform

    class Layout(base):  # type: ignore[misc]
        def apply(self, model: Any, layer_quantize_map: Any) -> Any:
            return transformer.ModelTransformer(
                model, [inputs], set(layer_quantize_map), layer_quantize_map
            ).transform()

    class Scheme(tools.QuantizeScheme):  # type: ignore[misc]
        def get_layout_transformer(self) -> Any:
            return Layout()

        def get_quantize_registry(self) -> Any:
            return registry.Default8BitQuantizeRegistry()

    return Scheme()


def _kernel_quantizer(tools: Any) -> Any:
    """The class of quantizers of kernels."""
    import tensorflow as tf

    class Kernel(tools.quantizers.LastValueQuantizer):  # type: ignore[misc]
        """Quantizer of a kernel.

        Scales per channel need two spatial axes: a kernel (K, I, O) is read as (1, K, I, O).
        """

        def __call__(self, inputs: Any, training: Any, weights: Any, **kwargs: Any) -> Any:
            flat = self.per_axis and len(inputs.shape) == 3
            return super().__call__(
                tf.expand_dims(inputs, 0) if flat else inputs, training, weights, **kwargs
            )

    return Kernel


def _rules(tools: Any) -> Any:
    """The class of quantisation rules; the package's own lacks many kinds of layers."""
    quantizers, kernel_quantizer = tools.quantizers, _kernel_quantizer(tools)

    class Rules(tools.QuantizeConfig):  # type: ignore[misc]
        """Rules of one layer.

        ``kernel``: the kernel's name, or None. ``channels``: whether it has a scale per channel.
        ``output``: whether the output is rounded.
        """

        def __init__(self, kernel: str | None, channels: bool, output: bool) -> None:
            self._kernel, self._channels, self._output = kernel, channels, output

        def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
            if self._kernel is None:
                return []
            quantizer = kernel_quantizer(
                num_bits=8, per_axis=self._channels, symmetric=True, narrow_range=True
            )
            return [(getattr(layer, self._kernel), quantizer)]

        def set_quantize_weights(self, layer: Any, quantize_weights: Any) -> None:
            for weight in quantize_weights:
                setattr(layer, str(self._kernel), weight)

        def get_activations_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
            return []

        def set_quantize_activations(self, layer: Any, quantize_activations: Any) -> None:
            return None

        def get_output_quantizers(self, layer: Any) -> list[Any]:
            quantizer = quantizers.MovingAverageQuantizer(
                num_bits=8, per_axis=False, symmetric=False, narrow_range=False
            )
            return [quantizer] if self._output else []

        def get_config(self) -> dict[str, Any]:
            return {"kernel": self._kernel, "channels": self._channels, "output": self._output}

    return Rules


def calibrate(model: Any, graph: Graph, lowered: Lowered, inputs: Batch) -> None:
    """Set the ranges of activations to those of calibration samples.

    The moving averages would need thousands of steps to get there from their defaults.
    """
    floats = [Ref(op.name) for op in graph if graph.tensors(op.name)[0].dtype.startswith("float")]
    run = keras_io.outputs_at(graph, floats)
    ranges: dict[str, tuple[float, float]] = {}
    for part in batches(inputs, 50):
        for ref, values in zip(floats, run(part), strict=True):
            low, high = ranges.get(lowered.layers[ref.op], (0.0, 0.0))
            ranges[lowered.layers[ref.op]] = (
                min(low, float(values.min())),
                max(high, float(values.max())),
            )
    for layer in model.layers:
        if layer.name.startswith("quant_"):
            name = layer.name.removeprefix("quant_")
        else:  # a layer that rounds an input has the range of that input
            name = getattr(layer.inbound_nodes[0].inbound_layers, "name", None)
        if name not in ranges:
            continue
        for weight in layer.non_trainable_weights:
            role = weight.name.split(":")[0].rpartition("/")[2]
            if role.endswith(("_min", "_max")) and "kernel" not in role:
                weight.assign(ranges[name][role.endswith("_max")])
